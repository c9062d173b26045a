"""The HTTP of the Earth Engine client: a deadline on every request, and enough connections."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from email.utils import mktime_tz, parsedate_tz
from typing import Any
from urllib.parse import urlsplit

import httplib2
import requests
from requests.adapters import HTTPAdapter

from cropray.types import InputError

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
