"""On whose account Earth Engine would be asked, from what lies on this machine; one pixel if asked for."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from cropray.config import Config
from cropray.config.imagery import EarthEngineConfig
from cropray.doctor.finding import Finding, bad, ok
from cropray.errors import InputError


@dataclass(frozen=True)
class Account:
    """Credentials that were found, in words; and the project, empty where none is named."""

    credentials: str
    project: str


def judge_earth_engine(account: Account | InputError, *, wanted: bool) -> Finding:
    """Without credentials or project an export from Earth Engine cannot run; any other can."""
    from cropray.imagery.earthengine.session import NO_PROJECT, SIGN_IN

    if isinstance(account, InputError):
        found, remedy = str(account), SIGN_IN
    elif not account.credentials:
        found, remedy = "no credentials", SIGN_IN
    elif not account.project:
        found, remedy = f"{account.credentials}, but no project", NO_PROJECT.partition("; ")[2]
    else:
        return ok("earth engine", f"{account.credentials}, project {account.project}")
    if not wanted:
        return ok("earth engine", f"{found}; source.kind is not earthengine: not needed")
    return bad("earth engine", found, remedy)


def account_of(config: EarthEngineConfig) -> Account | InputError:
    """What Earth Engine would be asked with, in the order of `credentials_of`; nothing is sent."""
    from cropray.imagery.earthengine.session import credentials_of, project_of

    try:
        credentials = credentials_of(config)
    except InputError as error:
        return error
    project = project_of(config)
    if config.is_loopback and not config.service_account_key:
        return Account("an address of this machine, which needs no credentials", project)
    if not isinstance(credentials, str):
        email = getattr(credentials, "service_account_email", "") or type(credentials).__name__
        return Account(f"service account {email}", project or getattr(credentials, "project_id", "") or "")
    home = Path(os.environ.get("CLOUDSDK_CONFIG", "~/.config/gcloud")).expanduser()
    for path, who, key in (
        (Path("~/.config/earthengine/credentials").expanduser(), "earthengine authenticate", "project"),
        (home / "application_default_credentials.json", "gcloud", "quota_project_id"),
    ):
        stored = _json(path)
        if stored.get("refresh_token"):
            return Account(f"credentials by {who} ({path})", project or str(stored.get(key, "")))
    if _on_google():
        return Account("the service account of this machine (metadata server)", project)
    return Account("", project)


def ask_earth_engine(config: Config) -> Finding:
    """One pixel of one month, which the service computes: account, project and connection are right."""
    from cropray.grid import Grid
    from cropray.imagery.earthengine.source import EarthEngineSource
    from cropray.types import ImageRequest, Period

    grid = Grid("EPSG:32631", 600_000.0, 5_600_000.0, 10.0, height=1, width=1)
    request = ImageRequest(grid, grid, (Period(date(2022, 6, 1), date(2022, 7, 1)),), name="doctor")
    settings = config.source.earthengine.model_copy(update={"attempts": 1, "deadline_s": 60.0})
    try:
        EarthEngineSource(settings).preflight(request)
    except InputError as error:
        return bad("earth engine", str(error), "mend what it says, and ask again: cropray doctor --online")
    return ok("earth engine", "computed a pixel")


def _json(path: Path) -> dict[str, object]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _on_google() -> bool:
    product = Path("/sys/class/dmi/id/product_name")
    return product.exists() and "Google" in product.read_text()
