"""Credentials and project from the settings and the environment, and the advice in refusals."""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from unittest import mock

import google_auth_httplib2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import RefreshError

from cropray.config.imagery import EarthEngineConfig
from cropray.config.load import load_config
from cropray.errors import InputError
from cropray.grid import Grid
from cropray.imagery.earthengine.session import (
    RateLimitedError,
    TooLargeError,
    Transport,
    UnavailableError,
    UnknownError,
    client_failure,
    credentials_of,
    failure,
    project_of,
    sign_in_failure,
)
from cropray.imagery.earthengine.source import EarthEngineSource
from cropray.types import ImageRequest, Period
from tests.earthengine_server import Serving, serve
from tests.earthengine_server.sign_in import DELETED

SDK = "764086051850-any.apps.googleusercontent.com"  # that of gcloud, which is nobody's project
SECRET = "-----BEGIN PRIVATE KEY-----\nMIIsecret\n-----END PRIVATE KEY-----\n"


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("EE_PROJECT", "GOOGLE_CLOUD_PROJECT", "EE_SERVICE_ACCOUNT_KEY", "GOOGLE_APPLICATION_CREDENTIALS")
    for name in names:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def key_text() -> str:
    """A key as Google writes it, of nobody."""
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


def test_an_address_may_end_in_a_slash_and_no_other_text_is_one() -> None:
    assert EarthEngineConfig(url="http://127.0.0.1:8080/").url == "http://127.0.0.1:8080"
    for text in ("127.0.0.1:8080", "http://", "http://127.0.0.1:8080/v1", "ftp://127.0.0.1"):
        with pytest.raises(ValueError, match=f"'{text}' is not an address"):
            EarthEngineConfig(url=text)


def test_the_project_is_that_of_the_settings_then_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "cloud")
    assert project_of(EarthEngineConfig()) == "cloud"
    monkeypatch.setenv("EE_PROJECT", "mine")
    assert project_of(EarthEngineConfig()) == "mine"
    assert project_of(EarthEngineConfig(project="given")) == "given"


def test_the_project_of_a_key_is_used_where_nothing_else_names_one(
    key_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key.json"
    path.write_text(json.dumps(json.loads(key_text) | {"project_id": "of-the-key"}))
    config = EarthEngineConfig(service_account_key=str(path))
    assert project_of(config, credentials_of(config)) == "of-the-key"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    assert project_of(EarthEngineConfig(), credentials_of(EarthEngineConfig())) == "of-the-key"
    monkeypatch.setenv("EE_PROJECT", "mine")
    assert project_of(config, credentials_of(config)) == "mine"


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
        (400, "Too many concurrent aggregations.", RateLimitedError),
        (400, "Execution timed out.", TooLargeError),
        (400, "Memory capacity exceeded.", UnavailableError),
        (408, "Request timed out.", UnavailableError),
        (409, "The operation was aborted.", UnavailableError),
        (499, "The operation was cancelled.", UnavailableError),
        (400, "Words that nobody has heard before.", UnknownError),
        (412, "", UnknownError),
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
    assert "gcloud auth application-default login" in str(client_failure("Please authorize access to your"))
    assert "source.earthengine.project" in str(client_failure("ee.Initialize: no project found. Call with"))


@pytest.mark.parametrize(
    ("ahead_s", "said"),
    [(3725.4, "1:02:05 ahead"), (-86_500.0, "1 day, 0:01:40 behind"), (30.0, None), (None, None)],
)
def test_a_sign_in_that_fails_names_a_clock_that_is_off(ahead_s: float | None, said: str | None) -> None:
    got = str(sign_in_failure(RefreshError("invalid_grant: Invalid JWT: Token must be ...", {}), ahead_s))
    assert "invalid_grant: Invalid JWT: Token must be" in got
    if said is None:
        assert "clock" not in got
        assert "earthengine authenticate" in got
    else:
        assert f"the clock of this machine is {said}: set it" in got


# Over HTTP, with the real client.

GRID = Grid("EPSG:32631", 590_000, 5_600_000, 10, 8, 8)
REQUEST = ImageRequest(GRID, GRID, (Period(date(2022, 5, 1), date(2022, 6, 1)),), name="a tile")


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serve() as serving, mock.patch("ee.deprecation._FetchDataCatalogStac", return_value={}):
        yield serving


def key_of(server: Serving, key_text: str, folder: Path, **changes: str) -> str:
    """The path of a key of nobody, whose tokens the server gives."""
    path = folder / "key.json"
    path.write_text(json.dumps(json.loads(key_text) | {"token_uri": f"{server.url}/token"} | changes))
    return str(path)


def refusal(config: EarthEngineConfig) -> str:
    with pytest.raises(InputError) as raised:
        EarthEngineSource(config).preflight(REQUEST)
    return str(raised.value)


def test_a_key_gives_access_through_its_token(server: Serving, key_text: str, tmp_path: Path) -> None:
    key = key_of(server, key_text, tmp_path)
    EarthEngineSource(EarthEngineConfig(url=server.url, service_account_key=key)).preflight(REQUEST)


def test_requests_go_to_the_project_of_the_key(server: Serving, key_text: str, tmp_path: Path) -> None:
    key = key_of(server, key_text, tmp_path, project_id="forbidden")
    got = refusal(EarthEngineConfig(url=server.url, service_account_key=key))
    assert "project forbidden" in got


def test_a_token_with_a_time_out_is_refreshed_without_a_word(
    server: Serving, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the credentials of a machine are, from its metadata server."""
    transport = Transport(10, 2, through_proxies=False)
    answer = google_auth_httplib2.Request(transport)(f"{server.url}/-/counters", timeout=3)
    assert answer.status == 200
    assert caplog.records == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("ahead_s", "said"), [(5400.0, "1:(30:0|29:5). behind"), (-9000.0, "2:(30:0|29:5). ahead")]
)
def test_a_refusal_names_a_clock_that_is_off(
    server: Serving, key_text: str, tmp_path: Path, ahead_s: float, said: str
) -> None:
    config = EarthEngineConfig(url=server.url, service_account_key=key_of(server, key_text, tmp_path))
    server.service.clock_ahead_s = ahead_s
    try:
        got = refusal(config)
    finally:
        server.service.clock_ahead_s = 0.0
    assert "Token must be a short-lived token" in got
    assert re.search(rf"the clock of this machine is {said}: set it", got)
    assert "authenticate" not in got


def test_the_clock_is_not_blamed_for_a_deleted_key(server: Serving, key_text: str, tmp_path: Path) -> None:
    key = key_of(server, key_text, tmp_path, client_email=DELETED)
    got = refusal(EarthEngineConfig(url=server.url, service_account_key=key))
    assert "account not found" in got
    assert "clock" not in got


def test_without_credentials_or_project_nothing_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "CLOUDSDK_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setattr(socket.socket, "connect", mock.Mock(side_effect=AssertionError("it was asked")))
    assert "there are no usable credentials; run `earthengine authenticate`" in refusal(EarthEngineConfig())
    stored = tmp_path / "stored.json"
    stored.write_text(
        json.dumps({"type": "authorized_user", "client_id": SDK, "client_secret": "b", "refresh_token": "c"})
    )
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(stored))
    assert "set source.earthengine.project or EE_PROJECT" in refusal(EarthEngineConfig())
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "gone.json"))
    assert "GOOGLE_APPLICATION_CREDENTIALS names none" in refusal(EarthEngineConfig(project="any"))


@pytest.mark.parametrize(
    ("days", "trusted", "reason"),
    [(30, True, "not yet valid"), (-30, True, "has expired"), (0, False, "self.signed")],
)
def test_an_untrusted_certificate_is_refused_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int, trusted: bool, reason: str
) -> None:
    with https_server(tmp_path, days) as (url, certificate):
        if trusted:
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        with pytest.raises(
            InputError, match=rf"certificate of localhost is not trusted \(.*{reason}"
        ) as raised:
            Transport(10, 2, through_proxies=True).request(url)
    assert "clock" in str(raised.value)


@contextmanager
def https_server(folder: Path, days: int) -> Iterator[tuple[str, Path]]:
    """A server with a certificate of its own, valid for a day in so many days' time; and its file."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    start = datetime.now(UTC) + timedelta(days=days, hours=-12)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    with QuietServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"https://localhost:{server.server_port}/", path
        server.shutdown()
        thread.join()


class QuietServer(HTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that does not trust the certificate hangs up."""
