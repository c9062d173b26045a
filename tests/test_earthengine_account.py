"""Credentials and project by the settings and the environment; and what refusals tell a person."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import RefreshError

from cropray.config.earthengine import EarthEngineConfig
from cropray.imagery.earthengine_account import (
    credentials_of,
    project_of,
    refused_sign_in,
    without_answer,
)
from cropray.imagery.earthengine_failures import (
    RateLimitedError,
    TooLargeError,
    UnavailableError,
    failure,
)
from cropray.overrides import load_config
from cropray.types import InputError

SECRET = "-----BEGIN PRIVATE KEY-----\nMIIsecret\n-----END PRIVATE KEY-----\n"


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("EE_PROJECT", "GOOGLE_CLOUD_PROJECT", "EE_SERVICE_ACCOUNT_KEY", "GOOGLE_APPLICATION_CREDENTIALS")
    for name in names:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def key_text() -> str:
    """A key as Google writes it, of nobody."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {"type": "service_account", "client_email": "robot@any.iam.gserviceaccount.com"}
    return json.dumps(
        account | {"private_key": pem.decode(), "token_uri": "https://oauth2.googleapis.com/token"}
    )


def test_a_loopback_address_needs_no_credentials() -> None:
    config = EarthEngineConfig(url="http://127.0.0.1:8080")
    assert isinstance(credentials_of(config), AnonymousCredentials)
    assert project_of(config)


@pytest.mark.parametrize("url", ["https://earthengine.googleapis.com", "http://127.0.0.1.example.com:80", ""])
def test_no_other_address_is_taken_for_a_loopback(url: str) -> None:
    assert not EarthEngineConfig(url=url).is_loopback


def test_the_project_is_that_of_the_settings_then_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "cloud")
    assert project_of(EarthEngineConfig()) == "cloud"
    monkeypatch.setenv("EE_PROJECT", "mine")
    assert project_of(EarthEngineConfig()) == "mine"
    assert project_of(EarthEngineConfig(project="given")) == "given"


def test_a_key_is_read_from_its_file_or_from_the_environment(
    key_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key.json"
    path.write_text(key_text)
    robot = "robot@any.iam.gserviceaccount.com"
    given = credentials_of(EarthEngineConfig(service_account_key=str(path)))
    assert given.service_account_email == robot
    assert any("earthengine" in scope for scope in given.scopes)
    for value in (str(path), key_text):
        monkeypatch.setenv("EE_SERVICE_ACCOUNT_KEY", value)
        assert credentials_of(EarthEngineConfig()).service_account_email == robot
    monkeypatch.delenv("EE_SERVICE_ACCOUNT_KEY")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    assert credentials_of(EarthEngineConfig()).service_account_email == robot


def test_without_a_key_the_client_looks_for_stored_credentials() -> None:
    assert credentials_of(EarthEngineConfig()) == "persistent"


@pytest.mark.parametrize(
    "text", ["no json", '{"type": "authorized_user"}', "[]", json.dumps({"private_key": SECRET})]
)
def test_a_file_that_is_no_key_is_named_and_not_quoted(text: str, tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"key\.json is not the key of a service account") as raised:
        credentials_of(EarthEngineConfig(service_account_key=str(path)))
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None
    with pytest.raises(InputError, match=r"cannot read .*nowhere\.json: No such file"):
        credentials_of(EarthEngineConfig(service_account_key=str(tmp_path / "nowhere.json")))


def test_a_key_in_place_of_its_path_is_refused_without_repeating_it(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text('source: {earthengine: {service_account_key: \'{"private_key": "MIIsecret"}\'}}')
    with pytest.raises(InputError, match="give the path of the key's file") as raised:
        load_config(path)
    assert "secret" not in str(raised.value)
    path.write_text("source: {earthengine: {service_account_key: {private_key: MIIsecret}}}")
    with pytest.raises(InputError, match="give the path of the key's file") as raised:
        load_config(path)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (
            429,
            "Too Many Requests: Request was rejected because the request rate or concurrency",
            RateLimitedError,
        ),
        (403, "User Rate Limit Exceeded", RateLimitedError),
        (400, "User memory limit exceeded.", TooLargeError),
        (400, "Computation timed out.", TooLargeError),
        (
            400,
            "Total request size (60000000 bytes) must be less than or equal to 50331648 bytes.",
            TooLargeError,
        ),
        (400, "Pixel grid dimensions (40000x1) must be less than or equal to 32768.", TooLargeError),
        (500, "An internal error has occurred", UnavailableError),
        (502, "", UnavailableError),
        (503, "The service is currently unavailable.", UnavailableError),
        (200, "<html>", UnavailableError),
        (400, "Image.select: Band pattern 'B99' did not match any bands.", InputError),
        (404, "Project 'projects/nowhere' not found", InputError),
    ],
)
def test_an_answer_says_whether_to_wait_to_halve_or_to_stop(status: int, message: str, kind: type) -> None:
    got = failure(status, message, "mine")
    assert type(got) is kind
    assert str(status) in str(got)
    assert message[:40].rstrip(".") in str(got)


@pytest.mark.parametrize(
    ("status", "message", "advice"),
    [
        (401, "Request had invalid authentication credentials.", "earthengine authenticate"),
        (
            403,
            "Google Earth Engine API has not been used in project 123 before or it is disabled.",
            "enable the",
        ),
        (403, "Caller does not have required permission to use project mine.", "Service Usage Consumer"),
        (403, "Project mine is not registered to use Earth Engine.", "register 'mine'"),
        (404, "Project 'projects/mine' not found or deleted.", "EE_PROJECT"),
    ],
)
def test_a_refusal_says_what_to_do(status: int, message: str, advice: str) -> None:
    got = failure(status, message, "mine")
    assert isinstance(got, InputError)
    assert advice in str(got)


def test_what_the_client_refuses_itself_says_what_to_do() -> None:
    assert "gcloud auth application-default login" in str(without_answer("Please authorize access to your"))
    assert "source.earthengine.project" in str(without_answer("ee.Initialize: no project found. Call with"))


def test_a_sign_in_that_fails_says_what_the_service_said_and_asks_for_the_clock() -> None:
    old = RefreshError("invalid_grant: Invalid JWT: Token must be a short-lived token", {"error": "x"})
    assert "is the clock of this machine right?" in str(refused_sign_in(old))
    assert "Token must be a short-lived token" in str(refused_sign_in(old))
    other = str(refused_sign_in(RefreshError("deleted_client: The OAuth client was deleted.")))
    assert "clock" not in other
    assert "earthengine authenticate" in other
