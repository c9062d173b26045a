"""Messages: what went wrong, the nearest known name, and what to do."""

import errno
import json
from pathlib import Path

import pytest

from cropray.errors import (
    InputError,
    check_no_password,
    format_error,
    format_os_error,
    is_lasting,
    listed,
    nearest,
    redacted,
)


def test_the_message_of_an_error_depends_on_its_kind() -> None:
    assert format_error(InputError("no CRS")) == "no CRS"
    assert format_error(KeyError("B8A")) == "KeyError('B8A')"  # its text alone would say nothing
    full = OSError(errno.ENOSPC, "No space left on device", "/run/parts/a.parquet")
    assert "/run/parts/a.parquet" in format_error(full)
    assert "Free some space" in format_error(full)


def test_a_full_disk_names_the_file_and_the_free_space(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "new" / "a.tif"))
    assert is_lasting(full)
    message = format_os_error(full)
    assert message.startswith(f"{tmp_path}/new/a.tif: No space left on device (")
    assert f" MB free in {tmp_path})" in message


def test_an_error_of_an_unknown_cause_may_pass() -> None:
    reset = ConnectionResetError(errno.ECONNRESET, "reset by peer")
    assert not is_lasting(reset)
    assert "run the same command again" in format_os_error(reset)


def test_the_nearest_name_is_suggested_else_all_are_listed() -> None:
    known = ["", "Maize", "Onion_Spring", "Onion_Autumn"]
    assert nearest("Onion_Sprung", known) == " Did you mean 'Onion_Spring'?"
    assert nearest("xyz", known) == " Known: Maize, Onion_Autumn, Onion_Spring."
    assert nearest("xyz", [""]) == " Known: none."


def test_long_lists_are_cut_and_counted() -> None:
    assert listed(["a", "b"], most=2) == "  a\n  b"
    assert listed(["a", "b", "c", "d"], most=2) == "  a\n  b\n  … and 2 more"


PASSWORDS = ("secret", "p@ss", "a:b@c:d", "%40@@", "sl/ash@x")


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize(
    "uri", ["http://u:{}@host:5000/x", "postgresql://u:{}@host/db", "s3://KEY:{}@bucket/run"]
)
def test_a_uri_with_a_password_is_refused_without_showing_it(uri: str, password: str) -> None:
    with pytest.raises(InputError, match=r"variables") as error:
        check_no_password(uri.format(password))
    assert password not in str(error.value)
    assert "//…@" in str(error.value)
    shown = redacted(f"cannot read {uri.format(password)} now")
    assert shown == f"cannot read {uri.partition('//')[0]}//…@{uri.rpartition('@')[2]} now"


def test_a_token_without_a_user_is_a_password_of_an_http_address() -> None:
    with pytest.raises(InputError):
        check_no_password("https://t0ken@host/")


@pytest.mark.parametrize(
    "uri",
    [
        "runs/mine",
        "/home/me@work/a:b/run",
        "sqlite:////home/me@work/mlflow.db",
        "http://host:5000",
        "http://host:5000/me@work",
        "http://u:${PASSWORD}@host",
        "https://${TOKEN}@host",
        "postgresql://u:${PASSWORD}@host:5432/db",
        "postgresql://u@host/db",
        "gs://anonymous@bucket/run",
        "s3://bucket/run?endpoint_override=http://127.0.0.1:9",
    ],
)
def test_a_uri_without_a_password_is_taken_as_it_is(uri: str) -> None:
    assert check_no_password(uri) == uri


SIGNED = (
    "https://store/a.tif?st=2022&sig=s3cr%2Ft&se=1",
    "s3://bucket/key?X-Amz-Credential=s3cr/t&X-Amz-Signature=s3cr",
    "https://host/items?subscription-key=s3cr",
    "https://host/items?page=2&token=s3cr",
    "https://host/items?apikey=s3cr",
)


@pytest.mark.parametrize("uri", SIGNED)
def test_signatures_and_keys_in_queries_are_refused_and_never_shown(uri: str) -> None:
    with pytest.raises(InputError, match="variables") as error:
        check_no_password(uri)
    texts = (str(error.value), redacted(f'{{"href": "{uri}"}}'), format_error(OSError(f"cannot read {uri}")))
    for text in texts:
        assert "s3cr" not in text
        assert uri.partition("?")[0] in text
    assert json.loads(redacted(json.dumps({"href": uri})))
    assert redacted("https://host/?monkey=1&sigma=2") == "https://host/?monkey=1&sigma=2"


def test_a_variable_in_place_of_a_password_is_shown() -> None:
    uri = "postgresql://analyst:${DATABASE_PASSWORD}@host/mlflow"
    assert redacted(f"set {uri}") == f"set {uri}"
    assert "secret" not in redacted("postgresql://analyst:${DATABASE_PASSWORD}secret@host/mlflow")
