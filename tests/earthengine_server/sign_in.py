"""The token endpoint, which lets a service account in that signs with the right time."""

from __future__ import annotations

import base64
import json
from urllib.parse import parse_qs

_TOLERANCE_S = 300.0
_LONGEST_S = 3600.0

DELETED = "deleted@any.iam.gserviceaccount.com"


def token_for(body: bytes, now: float) -> tuple[int, dict[str, object]]:
    """Status and JSON of the answer to a signed assertion (RFC 7523), by the clock of the service.

    The signature is not looked at. What is refused is told in Google's words.
    """
    assertion = parse_qs(body.decode())["assertion"][0]
    payload = assertion.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    issued, expires = claims["iat"], claims["exp"]
    if claims["iss"] == DELETED:
        return _refused("Invalid grant: account not found")
    if issued > now + _TOLERANCE_S or expires < now - _TOLERANCE_S or expires - issued > _LONGEST_S:
        return _refused(
            "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. "
            "Check your iat and exp values in the JWT claim."
        )
    return 200, {"access_token": "a token", "expires_in": 3599, "token_type": "Bearer"}


def _refused(why: str) -> tuple[int, dict[str, object]]:
    return 400, {"error": "invalid_grant", "error_description": why}
