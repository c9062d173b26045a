"""On whose account Earth Engine is asked: credentials and project. Keys are read here and stay here."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from email.utils import mktime_tz, parsedate_tz
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import google.auth
import httplib2
import requests
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.oauth2 import service_account
from requests.adapters import HTTPAdapter

from cropray.config.imagery import EarthEngineConfig
from cropray.errors import InputError

SIGN_IN = (
    "run `earthengine authenticate` or `gcloud auth application-default login`, or give a service "
    "account's key file in source.earthengine.service_account_key or EE_SERVICE_ACCOUNT_KEY"
)
NO_CREDENTIALS = f"Earth Engine: there are no usable credentials; {SIGN_IN}"
NO_PROJECT = (
    "Earth Engine: no project is named; set source.earthengine.project or EE_PROJECT to a Google Cloud "
    "project that is registered for Earth Engine"
)

_SCOPES = ("https://www.googleapis.com/auth/earthengine", "https://www.googleapis.com/auth/cloud-platform")
_CLOCK_OFF_S = 60.0  # the service lets less than a few minutes pass
_STORED = "persistent"  # the client's word for what it finds itself


def project_of(config: EarthEngineConfig) -> str:
    """The project of the settings or the environment; empty where the credentials must name it."""
    environment = os.environ.get("EE_PROJECT") or os.environ.get("GOOGLE_CLOUD_PROJECT") or ""
    return config.project or environment or ("loopback" if config.is_loopback else "")


def credentials_of(config: EarthEngineConfig) -> Any:
    """What `ee.Initialize` takes: a service account's key by the settings, then by the environment,
    then the default credentials that GOOGLE_APPLICATION_CREDENTIALS names; else the client looks for
    what `earthengine authenticate` or gcloud stored. A loopback address needs none, and only a key
    of the settings is used there.

    Raises InputError for a key that cannot be read.
    """
    if config.service_account_key:
        return _key_in(config.service_account_key)
    if config.is_loopback:
        return AnonymousCredentials()
    key = os.environ.get("EE_SERVICE_ACCOUNT_KEY", "")
    if key.lstrip().startswith("{"):
        return _service_account(key, "EE_SERVICE_ACCOUNT_KEY")
    if key:
        return _key_in(key)
    if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        try:
            credentials, _ = google.auth.default(scopes=_SCOPES)
        except DefaultCredentialsError as error:
            raise InputError(f"{NO_CREDENTIALS} (GOOGLE_APPLICATION_CREDENTIALS names none)") from error
        return credentials
    return _STORED


def refused_sign_in(error: GoogleAuthError, clock_ahead_s: float | None) -> InputError:
    """What the sign-in service said. A key signs with the time of this machine, so a clock that is
    off is refused; `clock_ahead_s` is by how much it is ahead, where the answer told.
    """
    said = str(error.args[0] if error.args else type(error).__name__).rstrip(".")
    if clock_ahead_s is not None and abs(clock_ahead_s) > _CLOCK_OFF_S:
        return InputError(
            f"Earth Engine: signing in failed: {said}; the clock of this machine is "
            f"{timedelta(seconds=round(abs(clock_ahead_s)))} {'ahead' if clock_ahead_s > 0 else 'behind'}: "
            "set it (timedatectl set-ntp true) and run the same command again"
        )
    return InputError(f"Earth Engine: signing in failed: {said}; {SIGN_IN}")


def without_answer(message: str) -> InputError:
    """What the client says before it has asked anything."""
    if "authorize access" in message:
        return InputError(NO_CREDENTIALS)
    if "no project found" in message:
        return InputError(NO_PROJECT)
    return InputError(f"Earth Engine: {message}")


def _key_in(path: str) -> Any:
    try:
        text = Path(path).expanduser().read_text()
    except OSError as error:
        raise InputError(f"cannot read the service account's key {path}: {error.strerror}") from error
    return _service_account(text, path)


def _service_account(text: str, where: str) -> Any:
    try:
        return service_account.Credentials.from_service_account_info(json.loads(text), scopes=_SCOPES)
    except (ValueError, AttributeError, TypeError):
        # Without its cause: what it says may quote the key.
        raise InputError(f"{where} is not the key of a service account; wanted: the JSON of one") from None


_QUOTA_HEADER = "x-earth-engine-quota-status"
_CONNECT_S = 20.0
_CHUNK = 1 << 20
_BEGINNINGS = (b"{", b"\x93")  # of JSON and of NPY; a page of a proxy passes for a success too


class Transport:
    """`requests` behind the interface of httplib2, which the client asks for.

    The client's own has no deadline for a whole answer and ten connections. Raises TimeoutError
    past the deadline and ConnectionError for every other way in which no whole answer came, as the
    client's own does; and InputError for a server whose certificate is not trusted.
    """

    def __init__(self, deadline_s: float, connections: int, *, through_proxies: bool) -> None:
        self._deadline_s = deadline_s
        self._session = requests.Session()
        self._session.trust_env = through_proxies
        adapter = HTTPAdapter(pool_connections=4, pool_maxsize=connections)
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)
        self._last = threading.local()

    @property
    def restricted(self) -> bool:
        """Whether the last answer to this thread said that the project is in restricted mode."""
        return getattr(self._last, "restricted", False)

    @property
    def clock_ahead_s(self) -> float | None:
        """By how much this machine's clock was ahead of the last answer to this thread, if it said."""
        return getattr(self._last, "clock_ahead_s", None)

    def request(
        self,
        uri: str,
        method: str = "GET",
        body: bytes | str | None = None,
        headers: dict[str, str] | None = None,
        **_httplib2: Any,
    ) -> tuple[httplib2.Response, bytes]:
        end = time.monotonic() + self._deadline_s
        timeout = (min(_CONNECT_S, self._deadline_s), self._deadline_s)
        try:
            with self._session.request(
                method, uri, data=body, headers=headers, timeout=timeout, stream=True
            ) as response:
                content = self._read(response, end)
        except requests.Timeout as error:
            raise TimeoutError(f"no answer within {self._deadline_s:g} s") from error
        except requests.exceptions.SSLError as error:
            raise _refused_certificate(uri, error) from error
        except requests.RequestException as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
        if response.ok and content[:1] not in _BEGINNINGS:
            raise ConnectionError(f"the answer is neither JSON nor an array but {content[:40]!r}")
        fields = {name.lower(): value for name, value in response.headers.items()}
        # Taken out, for the client would warn of it with every answer.
        self._last.restricted = "parallelism_restricted=true" in fields.pop(_QUOTA_HEADER, "")
        said = http_time(fields.get("date", ""))
        self._last.clock_ahead_s = None if said is None else time.time() - said
        return httplib2.Response({**fields, "status": str(response.status_code)}), content

    def _read(self, response: requests.Response, end: float) -> bytes:
        chunks = []
        for chunk in response.iter_content(_CHUNK):
            chunks.append(chunk)
            if time.monotonic() > end:
                raise TimeoutError(f"no whole answer within {self._deadline_s:g} s")
        return b"".join(chunks)


def http_time(text: str) -> float | None:
    """Seconds since 1970 of a date as HTTP writes it (RFC 9110, 5.6.7); None for anything else."""
    parsed = parsedate_tz(text)
    try:
        return None if parsed is None else float(mktime_tz(parsed))
    except (ValueError, OverflowError):
        return None


def retry_after_s(headers: Mapping[str, str]) -> float:
    """How long an answer asks to wait (RFC 9110, 10.2.3: seconds, or a date); 0 where it does not.

    A date is reckoned from the answer's own, so that the clock of this machine does not matter.
    """
    asked = headers.get("retry-after", "").strip()
    if asked.isascii() and asked.isdigit():
        return float(asked)
    until, said = http_time(asked), http_time(headers.get("date", ""))
    return 0.0 if until is None else max(0.0, until - (time.time() if said is None else said))


def _refused_certificate(uri: str, error: requests.exceptions.SSLError) -> Exception:
    """Not to be tried again where it is the certificate; a handshake that broke off is."""
    if "CERTIFICATE_VERIFY_FAILED" not in str(error):
        return ConnectionError(f"{type(error).__name__}: {error}")
    reason = str(error).partition("certificate verify failed: ")[2].partition(" (_ssl")[0]
    return InputError(
        f"the certificate of {urlsplit(uri).hostname} is not trusted ({reason}); is the clock of this "
        "machine right? Behind a proxy with certificates of its own, name their file in REQUESTS_CA_BUNDLE"
    )
