"""What a request to Earth Engine can fail of, and what is to be done then.

| answer | here | what follows |
|---|---|---|
| 429; 403 for a rate | RateLimitedError | wait, fewer in flight, try again |
| 5xx, no answer in time, a dropped, truncated or damaged one | UnavailableError | wait, try again |
| 400 for size, memory or computing time | TooLargeError | ask for less at once |
| any other | InputError | nothing: it needs a person |
"""

from __future__ import annotations

import re

from cropray.errors import InputError
from cropray.imagery.earthengine.quota import RequestOutcome
from cropray.imagery.earthengine.session import SIGN_IN


class RequestError(OSError):
    """A request without a usable answer; the service may have said how long to wait."""

    outcome: RequestOutcome = "unavailable"

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimitedError(RequestError):
    outcome: RequestOutcome = "rate_limited"


class UnavailableError(RequestError):
    pass


class TooLargeError(RequestError):
    outcome: RequestOutcome = "too_large"


# In the words of the service.
_TOO_LARGE = re.compile(
    r"memory limit exceeded|computation timed out|must be less than or equal to|is too large"
    r"|too many (bands|pixels)",
    re.IGNORECASE,
)
_RATE = re.compile(r"rate ?limit|quota exceeded|resource.?exhausted", re.IGNORECASE)

# What a person can do, by the status (None: any) and words of a refusal; the first that fits.
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
        "or another project in source.earthengine.project",
    ),
    (
        None,
        "asset .* not found",
        "may the account read it, and is it still in the catalogue of Earth Engine?",
    ),
    (404, "", "is there a project {project!r}? (source.earthengine.project or EE_PROJECT)"),
)


def failure(status: int, message: str, project: str, retry_after_s: float = 0.0) -> RequestError | InputError:
    """What an answer that is no result means; `message` is the service's own."""
    text = " ".join(message.split())[:500].rstrip(".") or f"HTTP {status} without a message"
    if status == 429 or (status == 403 and _RATE.search(text)):
        return RateLimitedError(f"{status}: {text}", retry_after_s)
    if status >= 500 or status < 300:  # a page instead of a result passes for a success
        return UnavailableError(f"{status}: {text}", retry_after_s)
    if status in (400, 413) and _TOO_LARGE.search(text):
        return TooLargeError(f"{status}: {text}")
    return InputError(f"Earth Engine refused the request ({status}): {text}{_advice(status, text, project)}")


def _advice(status: int, text: str, project: str) -> str:
    for of_status, words, advice in _ADVICE:
        if of_status in (None, status) and re.search(words, text):
            return "; " + advice.format(project=project)
    return ""
