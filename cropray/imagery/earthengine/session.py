"""The account and the connection for Earth Engine: credentials, HTTP, and what a failed request means.

| answer | exception | consequence |
|---|---|---|
| 429; 403 or 400 for a rate | RateLimitedError | wait, fewer in flight, try again |
| 5xx, 408, 409, 499; no answer in time; a dropped, truncated or damaged one | UnavailableError | as before |
| 400 for size, memory or computing time | TooLargeError | request less at once |
| known to need a person | InputError | none |
| any other | UnknownError | try again once |

Keys are read here and stay here.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from email.utils import parsedate_to_datetime
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
from cropray.imagery.earthengine.quota import RequestOutcome

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
_HOSTS = {"standard": "earthengine", "high_volume": "earthengine-highvolume"}
_CLOCK_OFF_S = 60.0  # the service tolerates less than a few minutes
_STORED = "persistent"  # by which the client means the credentials that it finds itself
_QUOTA_HEADER = "x-earth-engine-quota-status"
_CONNECT_S = 20.0
_READ_BYTES = 1 << 20
_FIRST_BYTES = (b"{", b"\x93")  # of JSON and of NPY; a proxy's page may come with the status of a success

# In the words of the service.
_TOO_LARGE = re.compile(
    r"memory limit exceeded|(computation|execution) timed out|must be less than or equal to|is too large"
    r"|too many (bands|pixels)",
    re.IGNORECASE,
)
_RATE = re.compile(
    r"rate ?limit|quota exceeded|resource.?exhausted|too many (concurrent )?(aggregations|requests)",
    re.IGNORECASE,
)
_TRANSIENT = re.compile(
    r"memory capacity exceeded|try again|temporar|deadline exceeded|cancell?ed|aborted|unavailable",
    re.IGNORECASE,
)
_TRANSIENT_STATUS = (408, 409, 499)

# What a person can do, by the status (None: any) and words of a refusal; the first that matches.
_ADVICE: tuple[tuple[int | None, str, str], ...] = (
    (401, "", f"the credentials are not accepted: {SIGN_IN}"),
    (
        None,
        "has not been used|is disabled",
        "enable the Earth Engine API for {project!r} "
        "(https://console.cloud.google.com/apis/library/earthengine.googleapis.com?project={project})",
    ),
    (None, "not registered", "register {project!r} at https://console.cloud.google.com/earth-engine"),
    (
        403,
        "[Pp]ermission",
        "the account needs the roles Earth Engine Resource Viewer and Service Usage Consumer on {project!r}, "
        "or set another project in source.earthengine.project",
    ),
    (
        None,
        "asset .* not found",
        "check that the catalogue of Earth Engine has it and that you may read it",
    ),
    (None, "did not match any bands", "the catalogue of Earth Engine has changed: use a newer cropray"),
    (404, "", "check that the project {project!r} exists (source.earthengine.project or EE_PROJECT)"),
)


class RequestError(OSError):
    """A request without a usable answer. The service may have said how long to wait."""

    outcome: RequestOutcome = "unavailable"

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimitedError(RequestError):
    outcome: RequestOutcome = "rate_limited"


class UnavailableError(RequestError):
    outcome: RequestOutcome = "unavailable"


class TooLargeError(RequestError):
    outcome: RequestOutcome = "too_large"


class UnknownError(RequestError):
    """A refusal in words that are not known: it may pass, or need a person."""

    outcome: RequestOutcome = "refused"


def failure(status: int, message: str, project: str, retry_after_s: float = 0.0) -> RequestError | InputError:
    """What an answer without a result means; `message` is the service's own."""
    text = " ".join(message.split())[:500].rstrip(".") or f"HTTP {status} without a message"
    if status == 429 or (status in (400, 403) and _RATE.search(text)):
        return RateLimitedError(f"{status}: {text}", retry_after_s)
    if status in (400, 413) and _TOO_LARGE.search(text):
        return TooLargeError(f"{status}: {text}")
    # Below 300: a page instead of a result.
    transient = status in _TRANSIENT_STATUS or (status == 400 and _TRANSIENT.search(text))
    if status >= 500 or status < 300 or transient:
        return UnavailableError(f"{status}: {text}", retry_after_s)
    refused = f"Earth Engine refused the request ({status}): {text}"
    for of_status, words, advice in _ADVICE:
        if of_status in (None, status) and re.search(words, text):
            return InputError(f"{refused}; {advice.format(project=project)}")
    return InputError(refused) if status in (401, 403) else UnknownError(refused)


def sign_in_failure(error: GoogleAuthError, clock_ahead_s: float | None) -> InputError:
    """What a refusal by the sign-in service means.

    A key signs with the time of this machine, so the service refuses it where the clock is off.
    `clock_ahead_s` is how far the clock is ahead of the answer's date, None where it has none.
    """
    reason = str(error.args[0] if error.args else type(error).__name__).rstrip(".")
    advice = SIGN_IN
    if clock_ahead_s is not None and abs(clock_ahead_s) > _CLOCK_OFF_S:
        off = f"{timedelta(seconds=round(abs(clock_ahead_s)))} {'ahead' if clock_ahead_s > 0 else 'behind'}"
        advice = (
            f"the clock of this machine is {off}: set it (timedatectl set-ntp true) and run the same command "
            "again"
        )
    return InputError(f"Earth Engine: signing in failed: {reason}; {advice}")


def client_failure(message: str) -> InputError:
    """What an error means that the client raises before it sends anything."""
    if "authorize access" in message:
        return InputError(NO_CREDENTIALS)
    if "no project found" in message:
        return InputError(NO_PROJECT)
    return InputError(f"Earth Engine: {message}")


def address_of(config: EarthEngineConfig) -> str:
    """The service's address by the settings."""
    return config.url or f"https://{_HOSTS[config.endpoint]}.googleapis.com"


def project_of(config: EarthEngineConfig, credentials: Any = None) -> str:
    """The project of the settings, the environment or a service account's key; empty if none names one."""
    environment = os.environ.get("EE_PROJECT") or os.environ.get("GOOGLE_CLOUD_PROJECT") or ""
    of_key = getattr(credentials, "project_id", None) or ""
    return config.project or environment or of_key or ("loopback" if config.is_loopback else "")


def credentials_of(config: EarthEngineConfig) -> Any:
    """What `ee.Initialize` takes as credentials.

    In this order: a service account's key from the settings, one from the environment, the default
    credentials that GOOGLE_APPLICATION_CREDENTIALS names; else the client looks for what
    `earthengine authenticate` or gcloud stored. A loopback address needs none, and uses only a key from the
    settings. Raises InputError for a key that cannot be read.
    """
    if config.is_loopback and not config.service_account_key:
        return AnonymousCredentials()
    key = config.service_account_key or os.environ.get("EE_SERVICE_ACCOUNT_KEY", "")
    if key:
        return _service_account(key)
    if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        try:
            credentials, _ = google.auth.default(scopes=_SCOPES)
        except DefaultCredentialsError as error:
            raise InputError(f"{NO_CREDENTIALS} (GOOGLE_APPLICATION_CREDENTIALS names none)") from error
        return credentials
    return _STORED


def _service_account(key: str) -> Any:
    """Credentials by a key: its JSON, or the path of its file."""
    is_path = not key.lstrip().startswith("{")
    try:
        text = Path(key).expanduser().read_text() if is_path else key
        return service_account.Credentials.from_service_account_info(json.loads(text), scopes=_SCOPES)
    except OSError as error:
        raise InputError(f"cannot read the service account's key {key}: {error.strerror}") from error
    except (ValueError, AttributeError, TypeError):
        where = key if is_path else "EE_SERVICE_ACCOUNT_KEY"
        # Without its cause, which may quote the key.
        raise InputError(f"{where} is not the key of a service account; wanted is its JSON") from None


class LastAnswer(threading.local):
    """What the last answer to this thread said."""

    restricted = False  # the project is in restricted mode
    clock_ahead_s: float | None = None  # how far this machine's clock is ahead of its date, if it has one


class Transport:
    """`requests` behind the interface of httplib2, which the client wants.

    The client's own transport has no deadline for a whole answer, and ten connections. As that one does,
    this raises TimeoutError past the deadline and ConnectionError where no whole answer comes for another
    reason. Raises InputError for a server whose certificate is not trusted.
    """

    def __init__(self, deadline_s: float, connections: int, *, through_proxies: bool) -> None:
        self._deadline_s = deadline_s
        # It warns, at each refresh of a token, that a time-out is ignored. Here every request has a deadline.
        logging.getLogger("google_auth_httplib2").setLevel(logging.ERROR)
        self.last_answer = LastAnswer()
        self._session = requests.Session()
        self._session.trust_env = through_proxies
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, HTTPAdapter(pool_connections=4, pool_maxsize=connections))

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
                chunks = []
                for chunk in response.iter_content(_READ_BYTES):
                    chunks.append(chunk)
                    if time.monotonic() > end:
                        raise TimeoutError(f"no whole answer within {self._deadline_s:g} s")
        except requests.Timeout as error:
            raise TimeoutError(f"no answer within {self._deadline_s:g} s") from error
        except requests.exceptions.SSLError as error:
            raise _certificate_failure(uri, error) from error
        except requests.RequestException as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
        content = b"".join(chunks)
        if response.ok and content[:1] not in _FIRST_BYTES:
            raise ConnectionError(f"the answer is neither JSON nor an array but {content[:40]!r}")
        fields = {name.lower(): value for name, value in response.headers.items()}
        # Removed, because the client would print a warning with every answer.
        self.last_answer.restricted = "parallelism_restricted=true" in fields.pop(_QUOTA_HEADER, "")
        sent = http_time(fields.get("date", ""))
        self.last_answer.clock_ahead_s = None if sent is None else time.time() - sent
        return httplib2.Response({**fields, "status": str(response.status_code)}), content


def http_time(text: str) -> float | None:
    """Seconds since 1970 of a date as in HTTP (RFC 9110, 5.6.7); None for anything else."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None


def retry_after_s(headers: Mapping[str, str]) -> float:
    """How long an answer asks to wait (RFC 9110, 10.2.3: seconds, or a date); 0 where it does not.

    A date is compared with the answer's own, so that the clock of this machine does not matter.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    until, sent = http_time(value), http_time(headers.get("date", ""))
    return 0.0 if until is None else max(0.0, until - (time.time() if sent is None else sent))


def _certificate_failure(uri: str, error: requests.exceptions.SSLError) -> Exception:
    """An untrusted certificate needs a person; a handshake that broke off can be tried again."""
    if "CERTIFICATE_VERIFY_FAILED" not in str(error):
        return ConnectionError(f"{type(error).__name__}: {error}")
    reason = str(error).partition("certificate verify failed: ")[2].partition(" (_ssl")[0]
    return InputError(
        f"the certificate of {urlsplit(uri).hostname} is not trusted ({reason}). Check the clock of this "
        "machine; behind a proxy with its own certificates, name their file in REQUESTS_CA_BUNDLE"
    )
