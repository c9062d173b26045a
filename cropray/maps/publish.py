"""One finished map as a set of files: rasters, areas, picture and STAC item, published together."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cropray import __version__
from cropray.grid import Window
from cropray.maps.areas import areas_csv, class_areas
from cropray.maps.cartography import map_picture
from cropray.maps.mosaic import MAP, assemble
from cropray.maps.plan import MapPlan
from cropray.maps.stac_item import stac_item
from cropray.maps.tiles import PredictionSettings, TileResult
from cropray.storage import Folder
from cropray.types import InputError

AREAS = "areas.json"
AREAS_TABLE = "areas.csv"
PICTURE = "picture.png"
ITEM = "item.json"


@dataclass(frozen=True)
class MapIdentity:
    """What a map says of itself. `key` is the hash of everything that its pixels depend on."""

    title: str
    model: str
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    settings: PredictionSettings
    key: str


def publish_map(
    folder: Folder,
    plan: MapPlan,
    tiles: Iterable[Window],
    read_tile: Callable[[Window], TileResult],
    identity: MapIdentity,
    *,
    probabilities: bool,
) -> dict[str, Any]:
    """Make the files of a map in a scratch folder, publish them, the item last; returns its areas.

    Raises InputError where the disk is full; a file that is there already stays until it is
    replaced whole.
    """
    settings, classes = identity.settings, identity.classes
    as_of = settings.as_of.isoformat()
    tags = {"AS_OF": as_of, "MODEL": identity.model, "SOFTWARE": f"cropray {__version__}"}
    try:
        with tempfile.TemporaryDirectory(prefix="cropray-") as scratch:
            directory = Path(scratch)
            made = assemble(
                plan, tiles, read_tile, directory, classes=classes, tags=tags, probabilities=probabilities
            )
            areas = class_areas(str(directory / MAP), classes)
            title = f"{identity.title}\nas of {as_of}, model {identity.model}"
            texts = {
                AREAS: json.dumps({"as_of": as_of, "model": identity.model, "classes": areas}, indent=1),
                AREAS_TABLE: areas_csv(areas),
            }
            for name, text in texts.items():
                (directory / name).write_text(text)
            (directory / PICTURE).write_bytes(map_picture(str(directory / MAP), classes, title))
            made += [directory / name for name in (AREAS, AREAS_TABLE, PICTURE)]
            item = _item(plan, identity, made)
            for path in made:
                folder.publish(path, path.name)
            folder.write_text(ITEM, json.dumps(item, indent=1, ensure_ascii=False))
    except OSError as error:
        raise InputError(
            f"cannot write the map to {folder} (it is made under {tempfile.gettempdir()} first): {error}; "
            "make room, or set TMPDIR, and run the same command again: finished tiles are kept"
        ) from error
    return areas


def _item(plan: MapPlan, identity: MapIdentity, files: Sequence[Path]) -> dict[str, Any]:
    settings = identity.settings
    return stac_item(
        f"{plan.name or 'map'}-{settings.as_of.isoformat()}-{identity.key}",
        plan.grid,
        identity.classes,
        settings.periods,
        settings.as_of,
        {path.name: path.stat().st_size for path in files},
        {
            "title": identity.title,
            "cropray:version": __version__,
            "cropray:model": identity.model,
            "cropray:as_of": settings.as_of.isoformat(),
            "cropray:periods": [[p.start.isoformat(), p.end.isoformat()] for p in settings.periods],
            "cropray:thresholds": dict(zip(identity.classes, identity.thresholds, strict=True)),
            "cropray:key": identity.key,
        },
    )
