"""The sections of the report: each reads the files of one stage, and is None where they are absent."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from cropray import __version__
from cropray.config import Config
from cropray.errors import InputError
from cropray.figures.charts import EVALUATION, PICTURE, SWEEP, curves_chart, validity_chart
from cropray.figures.pictures import class_colours
from cropray.progress import progress, say
from cropray.rois.calendar import periods_for
from cropray.run import Run, Summary
from cropray.shards.ledger import LEDGER, read_ledger

Section = dict[str, Any]

STAGES = ("rois", "export", "compact", "pretrain", "finetune", "evaluate")

_CURVES = ("epoch", "train_loss", "val_loss", "val_mean_average_precision", "val_mean_f1")
_FACTS = (
    "rois", "parcels", "tiles", "patches", "samples", "parameters", "epochs", "best_epoch", "registered",
    "blocks", "pixels",
)  # fmt: skip
_TRIALS = 20  # of a sweep that are in its table
_MAPS = 6  # pictures of maps in the page: the rest is listed
_PALE = "#dddddd"


def colours_of(classes: Sequence[str]) -> dict[str, str]:
    """CSS colours of the classes and of no class, the same as in the maps."""
    rgb = dict(zip(classes, class_colours(len(classes)), strict=True))
    return {name: "#{:02x}{:02x}{:02x}".format(*value) for name, value in rgb.items()} | {
        "none": _PALE,
        "none of the classes": _PALE,
    }


def stages(run: Run) -> list[Section]:
    """What each stage recorded: its seconds, where it counts them, and its main figures."""
    found = []
    for stage in STAGES:
        summary = run.summary(stage)
        if summary is None:
            continue
        facts = {key: summary[key] for key in _FACTS if key in summary}
        found.append({"name": stage, "seconds": summary.get("seconds"), "facts": facts})
    return found


def data(run: Run) -> Section | None:
    """Regions by crop and split, and the ledger of the export in a few figures."""
    rois = run.summary("rois")
    if rois is None:
        return None
    return {"rois": rois, "samples": (run.summary("compact") or {}).get("samples"), "ledger": _ledger(run)}


def curves(run: Run) -> list[Section]:
    """Training curves, oldest training first: of the network that was started from, too."""
    folders = {}
    if run.config.finetune.init and not run.config.finetune.init.startswith("models:"):
        folders["pretraining, another run"] = run.place(run.config.finetune.init)
    folders |= {stage: run.folder.child(f"models/{stage}") for stage in ("pretrain", "finetune")}
    found = []
    for name, folder in folders.items():
        if not folder.exists("history.json"):
            continue
        history = json.loads(folder.read_text("history.json"))
        rows = [{key: row[key] for key in _CURVES if key in row} for row in history]
        found.append({"name": name, "epochs": len(history), "picture": _uri(curves_chart(rows))})
    return found


def sweeps(run: Run) -> list[Section]:
    """The trials of each sweep that came to its end."""
    root = run.folder.child("tune")
    found = []
    for path in root.names(f"/{SWEEP}"):
        name = path.split("/", 1)[0]
        sweep = json.loads(root.read_text(path))
        trials = sweep["trials"]
        found.append(
            {
                "name": name,
                **sweep,
                "searched": sorted(trials[0]["values"]),
                "shown": trials[:_TRIALS],
                "picture": _uri(root.read_bytes(f"{name}/{PICTURE}")),
            }
        )
    return found


def evaluation(run: Run) -> Section | None:
    """The evaluation's result with its pictures."""
    if not run.folder.exists(EVALUATION):
        return None
    result: Section = json.loads(run.folder.read_text(EVALUATION))
    folder = run.folder.child("evaluation")
    shown = {name: _uri(folder.read_bytes(name)) for name in ("confusion.png", "scores.png")}
    first, *others = result["methods"]
    return {
        **result,
        "confusion": shown["confusion.png"],
        "scores": shown["scores.png"],
        "rois": [_uri(folder.read_bytes(name)) for name in result["pictures"]],
        "first": first,
        "verdicts": [_verdict(name, result["differences"][name]) for name in others],
    }


def maps(run: Run) -> list[Section]:
    """The predicted maps, each with its pictures and with its areas added up."""
    root = run.folder.child("maps")
    found = []
    for summary in root.names("summary.json"):
        name = summary.split("/", 1)[0]
        record = json.loads(root.read_text(summary))["summary"]
        folder = root.child(name)
        pictures = folder.names("picture.png")
        found.append(
            {
                "name": name,
                "as_of": record["as_of"],
                "model": record["model"],
                "warning": record["warning"],
                "hectares": _summed([part["hectares"] for part in record["maps"]]),
                "pictures": [_uri(folder.read_bytes(picture)) for picture in pictures[:_MAPS]],
                "number": len(record["maps"]),
            }
        )
    return found


def _ledger(run: Run) -> Section | None:
    if not run.folder.exists(LEDGER):
        return None
    rows = read_ledger(run.folder)
    valid = {
        sensor: np.average(
            [getattr(row, f"valid_{sensor}") for row in rows if row.patches],
            axis=0,
            weights=[row.patches for row in rows if row.patches],
        )
        for sensor in ("s2", "s1")
        if any(row.patches for row in rows)
    }
    return {
        "tiles": len(rows),
        "patches": sum(row.patches for row in rows),
        "gigabytes": sum(row.nbytes for row in rows) / 1e9,
        "empty": sum(not row.patches for row in rows),
        "validity": _uri(validity_chart(_months(run), valid["s2"], valid["s1"])) if valid else None,
    }


def _months(run: Run) -> list[str]:
    """Names of the months that are seen: of the calendar, or counted back from the harvest."""
    window = run.config.window
    if window.anchor == "as_of":
        return [f"{period.start:%-d %b %Y}" for period in periods_for(window, None)]
    first = window.lead_months + window.months
    return [f"{first - i} to {first - i - 1}" for i in range(window.months)]


def _verdict(name: str, difference: Section) -> str:
    """Which is ahead, as far as the interval of the paired difference says."""
    if difference["interval"] is None or difference["score"] is None:
        return f"There is no interval to set the network beside the {name} with."
    low, high = difference["interval"]
    figures = f"{difference['score']:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"
    if low > 0:
        return f"The network is ahead of the {name}: {figures}."
    if high < 0:
        return f"The network is behind the {name}: {figures}."
    return f"The blocks do not tell the network from the {name}: {figures}."


def _summed(tables: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: sum(table.get(name, 0.0) for table in tables) for name in names}


def _uri(png: bytes) -> str:
    """A picture inside the page, so that the page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


REPORT = "report.html"

_SECTIONS: dict[str, Callable[[Run], Any]] = {
    "data": data,
    "curves": curves,
    "sweeps": sweeps,
    "evaluation": evaluation,
    "maps": maps,
}


def report(run: Run) -> Summary:
    """Write report.html; the configuration is the one that the run folder was made with.

    Raises InputError where the run has finished no stage yet.
    """
    made = _as_made(run)
    found = stages(made)
    if not found:
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
        colours=colours_of(made.config.classes),
        stages=found,
        **sections,
    )
    run.folder.write_text(REPORT, page)
    say(f"report: {run.folder}/{REPORT}")
    return {"report": f"{run.folder}/{REPORT}", "stages": [stage["name"] for stage in found]}


def _as_made(run: Run) -> Run:
    if not run.folder.exists("config.yaml"):
        return run
    return Run(run.folder, Config.model_validate(yaml.safe_load(run.folder.read_text("config.yaml"))))


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("cropray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.filters["count"] = lambda value: f"{value:,}".replace(",", "\u202f")
    return environment.get_template("report.html.j2")
