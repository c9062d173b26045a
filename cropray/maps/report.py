"""The report stage: one HTML page of whatever a run has done, that opens without a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from cropray import __version__
from cropray.config import Config
from cropray.maps import report_parts
from cropray.progress import progress, say
from cropray.run import Run, Summary
from cropray.types import InputError

REPORT = "report.html"

_SECTIONS: dict[str, Callable[[Run], Any]] = {
    "data": report_parts.data,
    "curves": report_parts.curves,
    "sweeps": report_parts.sweeps,
    "evaluation": report_parts.evaluation,
    "maps": report_parts.maps,
}


def report(run: Run) -> Summary:
    """Write report.html; the configuration is the one that the run folder was made with.

    Raises InputError where the run has finished no stage yet.
    """
    made = _as_made(run)
    stages = report_parts.stages(made)
    if not stages:
        raise InputError(f"{run.folder} has finished no stage yet: there is nothing to report")
    sections = {}
    with progress("report", len(_SECTIONS)) as bar:
        for name, section in _SECTIONS.items():
            sections[name] = section(made)
            bar.advance()
    page = _template().render(
        name=run.folder.uri.rstrip("/").rsplit("/", 1)[-1],
        folder=run.folder.uri,
        version=__version__,
        config=made.config,
        config_yaml=made.config.to_yaml(),
        colours=report_parts.colours_of(made.config.classes),
        stages=stages,
        **sections,
    )
    run.folder.write_text(REPORT, page)
    say(f"report: {run.folder}/{REPORT}")
    return {"report": f"{run.folder}/{REPORT}", "stages": [stage["name"] for stage in stages]}


def _as_made(run: Run) -> Run:
    if not run.folder.exists("config.yaml"):
        return run
    return Run(run.folder, Config.model_validate(yaml.safe_load(run.folder.read_text("config.yaml"))))


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("cropray.maps"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.filters["count"] = lambda value: f"{value:,}".replace(",", "\u202f")
    return environment.get_template("report.html.j2")
