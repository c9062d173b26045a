"""The page of a map, report.html: one file that needs no network. Its blocks are the files page/map_*.j2."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cropray import __version__
from cropray.config import Config
from cropray.figures.crops import class_names
from cropray.grid import Grid, transform_bounds
from cropray.maps.catalogue import ITEM, publish_beside, read_item, state_makers
from cropray.maps.field_files import found_in_imagery
from cropray.maps.finished import FinishedMap, open_folder
from cropray.rasters import read_grid
from cropray.report import sentences
from cropray.report.hectares import read_hectares
from cropray.report.language import Language, language, sentence
from cropray.report.origin import file_rows, locator, origin_rows, position
from cropray.report.place import read_place
from cropray.report.seen import Seen, read_seen
from cropray.report.summary import summary_pdf
from cropray.report.trust import Trust, read_trust
from cropray.report.viewer import MOST_FIELDS, viewer_data
from cropray.run import Run
from cropray.types import Period

PAGE, SUMMARY = "report.html", "summary.pdf"

_FLAGS = (
    *(sentence("edge"), sentence("no pixel"), sentence("small"), sentence("close call")),
    *(sentence("several crops"), sentence("declared otherwise")),
)
_FLAGS_TEXT = sentence(
    "Close call: the runner-up has more than half of the score. Several crops: another one on more than a "
    "quarter. Edge: cut by the border of the map. Small: fewer than 10 pixels. Choose a row to see it."
)
_WORDS = {
    "score": sentence("score"),
    "needed": sentence("needed"),
    "nothing": sentence("no crop reaches the score it needs"),
    "unseen": sentence("not mapped:"),
    "north": sentence("N"),
    "south": sentence("S"),
    "west": sentence("W"),
    "east": sentence("E"),
    "km": sentence("km"),
    "m": sentence("m"),
    "ha": sentence("ha"),
    "fields": sentence("fields"),
}


@dataclass(frozen=True)
class _Map:
    """A finished map with what is told of it."""

    source: FinishedMap
    config: Config
    lang: Language
    facts: sentences.Facts
    grid: Grid
    periods: tuple[Period, ...]
    warning: str

    @property
    def properties(self) -> dict[str, Any]:
        return dict(self.source.item["properties"])

    @property
    def title(self) -> str:
        """The name of the area, or its middle in degrees."""
        if self.config.report.title:
            return self.config.report.title
        west, south, east, north = transform_bounds(self.grid.bounds, self.grid.crs, "EPSG:4326")
        return position(self.lang, (south + north) / 2, (west + east) / 2)


def publish_pages(run: Run) -> list[str]:
    """Write report.html and summary.pdf beside the maps of `predict.name`, and state their makers.

    Returns the addresses of the pages. A map without a STAC item has none.
    """
    config, record = run.config, run.summary("predict") or {}
    output, made = run.folder.child(f"maps/{config.predict.name}"), config.report
    places = {part["name"]: output.child(part["name"]) if part["name"] else output for part in record["maps"]}
    names = [name for name, folder in places.items() if folder.exists(ITEM)]
    copernicus = config.source.kind != "simulated"
    state_makers(output, names, producer=made.producer, licence=made.licence, copernicus=copernicus)
    tested = config.predict.head == config.evaluate.head
    trust = read_trust(run, record.get("checkpoint", "") if tested else "")
    lang = language(made.language)
    for name in names:
        with open_folder(places[name]) as source:
            shown = _read(run, source, trust, lang, record.get("warning") or "")
            summary = summary_pdf(source, lang, shown.facts, title=shown.title, notices=_notices(shown))
            publish_beside(source.folder, {SUMMARY: summary})
            publish_beside(source.folder, {PAGE: _page(shown).encode()})
    return [f"{places[name]}/{PAGE}" for name in names]


def _read(run: Run, source: FinishedMap, trust: Trust | None, lang: Language, warning: str) -> _Map:
    properties, grid = source.item["properties"], read_grid(source.path)
    as_of = date.fromisoformat(properties["cropray:as_of"])
    periods = tuple(Period(*map(date.fromisoformat, each)) for each in properties["cropray:periods"])
    facts = sentences.Facts(
        as_of=as_of,
        hectares=read_hectares(source.folder, source.classes),
        trust=trust,
        seen=read_seen(source, periods),
        place=read_place(run, grid, source.classes, as_of),
    )
    return _Map(source, run.config, lang, facts, grid, periods, warning)


def _page(shown: _Map) -> str:
    lang, facts, source = shown.lang, shown.facts, shown.source
    thresholds = list(shown.properties["cropray:thresholds"].values())
    viewer = viewer_data(source, facts.place, thresholds)
    values = {name: index for index, name in enumerate(class_names(source.classes).values())}
    words = {key: lang(text) for key, text in _WORDS.items()} | {"flags": {f: lang(f) for f in _FLAGS}}
    data = {
        "data": viewer,
        "words": words,
        "names": [lang.crop(name) for name in values],
        "classes": list(values),
        "months": [lang.days(month.first, month.last) for month in facts.seen.months],
    }
    whole = facts.hectares.whole
    return (
        _environment(lang)
        .get_template("map.html.j2")
        .render(
            lang=lang,
            version=__version__,
            title=shown.title,
            as_of=facts.as_of,
            notices=_notices(shown),
            sensors=_sensors(shown),
            headline=sentences.headline(lang, facts),
            lead=sentences.lead(lang, facts),
            tiles=sentences.tiles(lang, facts),
            viewer=viewer,
            values=values,
            clearest=_clearest(facts.seen),
            map_text=_map_text(shown),
            sites_inside=viewer["sites"] and _touches(viewer),
            score_note=lang("Crops differ in the score that they need (the black tick)."),
            hectares=facts.hectares,
            hectares_text=sentences.hectares_text(lang, facts),
            largest=max((row.mapped for row in whole.rows), default=0.0),
            verdicts=facts.verdicts,
            words=sentences.verdict_words(lang),
            verdict_text=sentences.verdict_text(lang),
            locator=locator(lang, facts.place, shown.grid),
            flags=_FLAGS,
            fields_text=_fields_text(shown, len(viewer["fields"])),
            flags_text=lang(_FLAGS_TEXT),
            seen=facts.seen,
            seen_text=sentences.seen_text(lang, facts.seen),
            harvest_text=sentences.harvest_text(lang, facts.harvests),
            origin=origin_rows(
                lang, shown.config, source.item, shown.grid, shown.periods, lang.day(facts.as_of)
            ),
            files=file_rows(lang, read_item(source.folder)),
            page_data=_json(data),
            **_trust(lang, facts),
        )
    )


def _trust(lang: Language, facts: sentences.Facts) -> dict[str, Any]:
    """What the block on trust shows."""
    trust = facts.trust
    if trust is None:
        return {"trust": None}
    rows = [row for row in facts.hectares.whole.rows if row.name in trust.crops]
    methods = []
    for name in trust.methods:
        score, interval = trust.scores[name]
        if score is not None:
            low, high = interval or (None, None)
            text = f"{_method(lang, name)}: {lang.number(score, 2)}"
            methods.append(
                {"name": _method(lang, name), "score": score, "low": low, "high": high, "text": text}
            )
    return {
        "trust": trust,
        "trust_text": sentences.trust_text(lang, trust),
        "tested_crops": [(row, trust.crops[row.name]) for row in rows],
        "methods": methods,
        "confusion_rows": list(zip(trust.labels, trust.confusion, strict=False)),
        "iso": date.fromisoformat,
    }


def _method(lang: Language, name: str) -> str:
    words = {
        "network": lang("this map's network"),
        "forest": lang("random forest"),
        "logistic": lang("logistic regression"),
        "boosting": lang("gradient boosting"),
        "majority": lang("the most common crop everywhere"),
    }
    return words.get(name, name)


def _notices(shown: _Map) -> list[str]:
    """What stands above all else."""
    lang, found = shown.lang, []
    if shown.config.source.kind == "simulated":
        found.append(
            lang(
                "Demonstration on a simulated world: places, fields and imagery are invented by the software "
                "and say nothing of real land."
            )
        )
    if shown.warning:
        found.append(shown.warning)
    return found


def _sensors(shown: _Map) -> str:
    names = {"s1": "Sentinel-1", "s2": "Sentinel-2"}
    sensors = shown.lang.listed([names[sensor] for sensor in sorted(shown.config.composite.sensors)])
    return f"{sensors}, {shown.lang.number(shown.grid.resolution)} {shown.lang('m')}"


def _clearest(seen: Seen) -> int:
    """The latest of the months that were seen best."""
    shares = [month.clear or 0.0 for month in seen.months]
    return max(range(len(shares)), key=lambda index: (round(shares[index], 2), index), default=0)


def _map_text(shown: _Map) -> str:
    metres = shown.grid.resolution / 1000
    sides = {
        "width": shown.lang.number(shown.grid.width * metres, 1),
        "height": shown.lang.number(shown.grid.height * metres, 1),
    }
    return shown.lang(
        "Crop map of %(width)s by %(height)s kilometres. The tables below hold its figures.", **sides
    )


def _touches(viewer: dict[str, Any]) -> bool:
    """Whether a test site lies on the map."""
    for ring in viewer["sites"]:
        (west, north), (east, south) = np.min(ring, axis=0), np.max(ring, axis=0)
        if west < viewer["width"] and east > 0 and north < viewer["height"] and south > 0:
            return True
    return False


def _fields_text(shown: _Map, number: int) -> str:
    lang = shown.lang
    text = lang("Pixels vote in each field of the file that was given.")
    if number and found_in_imagery(shown.source.folder):
        text = lang(
            "No file of fields was given: these are regions of similar pixels that a program found. They are "
            "no cadastre; neighbouring fields of one crop are often one region."
        )
    if number == MOST_FIELDS:
        most = lang.number(MOST_FIELDS)
        text += " " + lang("The %(most)s largest are listed; fields.gpkg holds all.", most=most)
    return text


def _json(data: Any) -> Markup:
    """JSON inside a script element, without any tag."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704


def page_environment() -> Environment:
    """The templates of pages: what is filled in is escaped, and what is missing is an error."""
    return Environment(
        loader=PackageLoader("cropray.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _environment(lang: Language) -> Environment:
    environment = page_environment()
    environment.globals["_"] = lang
    folder = files(__package__).joinpath("page")
    for name, file in (("css", "map.css"), ("viewer_js", "viewer.js"), ("fields_js", "fields.js")):
        environment.globals[name] = Markup(folder.joinpath(file).read_text("utf-8"))  # noqa: S704
    return environment
