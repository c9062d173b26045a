"""The report of a run: one HTML page. Each section reads the files of a stage and is empty without them."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jinja2 import Template

from cropray import __version__
from cropray.errors import InputError, redacted
from cropray.figures.charts import EVALUATION, PICTURE, SWEEP, curves_chart, validity_chart
from cropray.figures.crops import NONE_OF_THEM, by_area, class_colours, colour_table, hexadecimal
from cropray.progress import progress, say
from cropray.report.map_page import PAGE, page_environment, publish_pages
from cropray.rois.calendar import periods_for
from cropray.run import Run, Summary, config_of
from cropray.shards.ledger import LEDGER, read_ledger
from cropray.storage import Folder
from cropray.types import BACKGROUND

REPORT = "report.html"

Section = dict[str, Any]

_STAGES = ("rois", "export", "compact", "pretrain", "finetune", "evaluate")
_FACTS = (
    "rois", "parcels", "tiles", "patches", "samples", "parameters", "epochs", "best_epoch", "registered",
    "blocks", "pixels",
)  # fmt: skip
_CURVES = ("epoch", "train_loss", "val_loss", "val_mean_average_precision", "val_mean_f1")
_METHODS = {
    "forest": "random forest",
    "logistic": "logistic regression",
    "boosting": "gradient boosting",
    "majority": "majority crop",
}
_MAPS = 6  # pictures of a prediction


def report(run: Run) -> Summary:
    """Write report.html with the configuration in the run folder.

    Raises InputError if the run has finished no stage yet.
    """
    stored = config_of(run.folder) or run.config
    run = Run(run.folder, stored.model_copy(update={"report": run.config.report}))
    stages = _stages(run)
    if not stages:
        raise InputError(f"{run.folder} has finished no stage yet. Run cropray rois first.")
    for name in _map_names(run):
        predict = run.config.predict.model_copy(update={"name": name})
        publish_pages(Run(run.folder, run.config.model_copy(update={"predict": predict})))
    sections = {}
    with progress("report", len(_SECTIONS)) as bar:
        for name, section in _SECTIONS.items():
            sections[name] = section(run)
            bar.advance()
    page = _template().render(
        name=run.folder.uri.rstrip("/").rsplit("/", 1)[-1],
        folder=run.folder.uri,
        version=__version__,
        config=run.config,
        config_yaml=redacted(run.config.to_yaml()),
        colours=_css_colours(run.config.classes),
        stages=stages,
        **sections,
    )
    run.folder.write_text(REPORT, page)
    say(f"report: {run.folder}/{REPORT}")
    return {"report": f"{run.folder}/{REPORT}", "stages": [stage["name"] for stage in stages]}


def _stages(run: Run) -> list[Section]:
    """The main figures of each finished stage."""
    found = []
    for stage in _STAGES:
        summary = run.summary(stage)
        if summary is not None:
            facts = {key: summary[key] for key in _FACTS if key in summary}
            found.append({"name": stage, "seconds": summary.get("seconds"), "facts": facts})
    return found


def _data(run: Run) -> Section | None:
    """ROIs by crop and split, and the main figures of the export."""
    rois = run.summary("rois")
    if rois is None or "rois" not in rois:  # of an import of patches
        return None
    return {"rois": rois, "samples": (run.summary("compact") or {}).get("samples"), "ledger": _ledger(run)}


def _ledger(run: Run) -> Section | None:
    if not run.folder.exists(LEDGER):
        return None
    rows = read_ledger(run.folder)
    full = [row for row in rows if row.patches]
    validity = None
    if full:
        weights = [row.patches for row in full]
        s2 = np.average([row.valid_s2 for row in full], axis=0, weights=weights)
        s1 = np.average([row.valid_s1 for row in full], axis=0, weights=weights)
        validity = _data_uri(validity_chart(_months(run), s2, s1))
    return {
        "tiles": len(rows),
        "patches": sum(row.patches for row in rows),
        "gigabytes": sum(row.nbytes for row in rows) / 1e9,
        "empty": len(rows) - len(full),
        "validity": validity,
    }


def _months(run: Run) -> list[str]:
    """Names of the months of the window: first days, or months before the harvest."""
    window = run.config.window
    if window.anchor == "as_of":
        return [f"{period.start:%-d %b %Y}" for period in periods_for(window, None)]
    first = window.lead_months + window.months
    return [f"{first - i} to {first - i - 1}" for i in range(window.months)]


def _curves(run: Run) -> list[Section]:
    """Curves of the trainings, oldest first. The run that gave the initial weights is the first."""
    folders = {}
    if run.config.finetune.init and not run.config.finetune.init.startswith("models:"):
        folders["pretraining, another run"] = run.place(run.config.finetune.init)
    folders |= {stage: run.folder.child(f"models/{stage}") for stage in ("pretrain", "finetune")}
    found = []
    for name, folder in folders.items():
        if folder.exists("history.json"):
            history = json.loads(folder.read_text("history.json"))
            rows = [{key: row[key] for key in _CURVES if key in row} for row in history]
            found.append({"name": name, "epochs": len(history), "picture": _data_uri(curves_chart(rows))})
    return found


def _sweeps(run: Run) -> list[Section]:
    """The best trials of each finished sweep."""
    root = run.folder.child("tune")
    found = []
    for path in root.names(f"/{SWEEP}"):
        name, sweep = path.split("/", 1)[0], json.loads(root.read_text(path))
        sweep |= {"name": name, "picture": _data_uri(root.read_bytes(f"{name}/{PICTURE}"))}
        found.append(sweep | {"searched": sorted(sweep["trials"][0]["values"])})
    return found


def _evaluation(run: Run) -> Section | None:
    """The result of the evaluation with its pictures."""
    if not run.folder.exists(EVALUATION):
        return None
    result: Section = json.loads(run.folder.read_text(EVALUATION))
    folder = run.folder.child("evaluation")
    first, *others = result["methods"]
    return {
        **result,
        "confusion": _data_uri(folder.read_bytes("confusion.png")),
        "scores": _data_uri(folder.read_bytes("scores.png")),
        "calibration_picture": _optional(folder, "calibration.png"),
        "dates_picture": _optional(folder, "dates.png"),
        "rois": [_data_uri(folder.read_bytes(name)) for name in result["pictures"]],
        "first": first,
        "verdicts": [_verdict(name, result["differences"][name]) for name in others],
    }


def _verdict(name: str, difference: Section) -> str:
    """Whether the network or another method is ahead, by the interval of their paired difference."""
    name = _METHODS.get(name, name)
    if difference["interval"] is None or difference["score"] is None:
        return f"There is no interval for the difference between the network and the {name}."
    low, high = difference["interval"]
    figures = f"{difference['score']:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"
    if low > 0:
        return f"The network is ahead of the {name}: {figures}."
    if high < 0:
        return f"The network is behind the {name}: {figures}."
    return f"The difference between the network and the {name} is not statistically significant: {figures}."


def _map_names(run: Run) -> list[str]:
    """Names of the finished predictions."""
    root = run.folder.child("maps")
    names = [path.split("/", 1)[0] for path in root.names("summary.json")]
    return [name for name in names if json.loads(root.read_text(f"{name}/summary.json"))["summary"]]


def _maps(run: Run) -> list[Section]:
    """The predictions, each with its first pictures and the sum of its areas."""
    root = run.folder.child("maps")
    found = []
    for name in _map_names(run):
        summary = json.loads(root.read_text(f"{name}/summary.json"))["summary"]
        folder, hectares = root.child(name), Counter[str]()
        for part in summary["maps"]:
            # As areas.csv has them, which the map's page shows: two pages round one number.
            hectares.update({label: round(area, 2) for label, area in part["hectares"].items()})
        found.append(
            {
                "name": name,
                **{key: summary[key] for key in ("as_of", "model", "warning")},
                "hectares": {label: hectares[label] for label in by_area([*hectares], hectares)},
                "pages": [f"maps/{name}/{page}" for page in folder.names(PAGE)],
                "pictures": [_data_uri(folder.read_bytes(p)) for p in folder.names("thumbnail.png")[:_MAPS]],
                "number": len(summary["maps"]),
            }
        )
    return found


_SECTIONS: dict[str, Callable[[Run], Any]] = {
    "data": _data,
    "curves": _curves,
    "sweeps": _sweeps,
    "evaluation": _evaluation,
    "maps": _maps,
}


def _css_colours(classes: Sequence[str]) -> dict[str, str]:
    """CSS colours of the classes and of none of them, as in the maps."""
    rgb = zip(classes, class_colours(classes), strict=True)
    colours = {name: hexadecimal(value) for name, value in rgb}
    none = hexadecimal(colour_table(())[BACKGROUND])
    return colours | {"none": none, NONE_OF_THEM: none}


def _optional(folder: Folder, name: str) -> str | None:
    """A picture that evaluations of earlier versions lack."""
    return _data_uri(folder.read_bytes(name)) if folder.exists(name) else None


def _data_uri(png: bytes) -> str:
    """A picture inside the page, which then needs no other file."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _template() -> Template:
    environment = page_environment()
    environment.filters["score"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.filters["count"] = lambda value: f"{value:,}".replace(",", "\u202f")
    return environment.get_template("run.html.j2")
