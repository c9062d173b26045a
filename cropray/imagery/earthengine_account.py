"""On whose account Earth Engine is asked: credentials and project. Keys are read here and stay here."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import google.auth
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.oauth2 import service_account

from cropray.config.earthengine import EarthEngineConfig
from cropray.types import InputError

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
