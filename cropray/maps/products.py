"""The files of a finished map: rasters, legends, tables, picture and STAC item, published together."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cropray import __version__
from cropray.errors import InputError
from cropray.figures.pictures import map_picture
from cropray.grid import Window
from cropray.imagery.scenes import scene_of
from cropray.maps.catalogue import ITEM, MapIdentity, map_item
from cropray.maps.mosaic import MAP, assemble, class_areas
from cropray.maps.observed import SCENES_TABLE, Observed, scenes_csv
from cropray.maps.request import MapPlan
from cropray.maps.styles import legend, style_files
from cropray.maps.tables import AREAS_TABLE, WHOLE, areas_csv
from cropray.maps.tiles import TileResult
from cropray.rasters import read_reduced
from cropray.storage import Folder

AREAS = "areas.json"
THUMBNAIL = "thumbnail.png"
_PICTURE_PIXELS = 1200  # a side, at most


class PublishedMap(NamedTuple):
    """The areas of a map by class, its files, and the names of the scenes that its tiles could not use."""

    areas: dict[str, Any]
    files: list[str]
    lost: list[str]


def publish_map(
    folder: Folder,
    plan: MapPlan,
    tiles: Iterable[Window],
    read_tile: Callable[[Window], TileResult],
    identity: MapIdentity,
    *,
    scores: bool,
) -> PublishedMap:
    """Make the files of a map in a temporary folder and publish them, the item last.

    Each file replaces an older one whole. Raises InputError if the disk is full.
    """
    lost: set[str] = set()

    def read(tile: Window) -> TileResult:
        result = read_tile(tile)
        lost.update(map(scene_of, result.lost))
        return result

    classes, as_of = identity.classes, identity.settings.as_of.isoformat()
    tags = {"AS_OF": as_of, "MODEL": identity.model, "SOFTWARE": f"cropray {__version__}"}
    windows = list(tiles)
    try:
        with tempfile.TemporaryDirectory(prefix="cropray-") as temporary:
            directory = Path(temporary)
            made = assemble(
                plan.grid,
                windows,
                read,
                directory,
                classes=classes,
                tags=tags,
                scores=scores,
                sure=identity.settings.sure,
                months=[period.start.isoformat() for period in identity.settings.periods],
            )
            areas = class_areas(str(directory / MAP), classes)
            record = {"as_of": as_of, "model": identity.model, "classes": areas}
            hectares_uk = np.array([[row["hectares"] for row in areas.values()]])
            texts = {
                AREAS: json.dumps(record, indent=1),
                AREAS_TABLE: areas_csv([WHOLE], list(areas), hectares_uk),
                **style_files(legend(classes, areas)),
            }
            observed = scenes_csv(_observed(windows, read_tile))
            if len(observed.splitlines()) > 1:  # the source knows its acquisitions
                texts[SCENES_TABLE] = observed
            for name, text in texts.items():
                (directory / name).write_text(text)
            title = f"{identity.title}\nas of {as_of}, model {identity.model}"
            values, grid = read_reduced(str(directory / MAP), _PICTURE_PIXELS)
            (directory / THUMBNAIL).write_bytes(map_picture(values[0], grid, classes, title))
            made += [directory / name for name in (*texts, THUMBNAIL)]
            item = map_item(plan, identity, made, _scenes(windows, read_tile, identity), sorted(lost))
            for path in made:
                folder.publish(path, path.name)
            folder.write_text(ITEM, json.dumps(item, indent=1, ensure_ascii=False))
    except OSError as error:
        raise InputError(
            f"cannot write the map to {folder} (it is made in {tempfile.gettempdir()} first): {error}. "
            "Free some space or set TMPDIR, and run the same command again. Finished tiles are kept."
        ) from error
    return PublishedMap(areas, [*(path.name for path in made), ITEM], sorted(lost))


def _observed(tiles: Iterable[Window], read_tile: Callable[[Window], TileResult]) -> Iterator[Observed]:
    for tile in tiles:
        observed = read_tile(tile).observed
        if observed is not None:
            yield observed


def _scenes(
    tiles: Iterable[Window], read_tile: Callable[[Window], TileResult], identity: MapIdentity
) -> list[str]:
    """The addresses of the scenes of a map, of sensors whose catalogue is known."""
    if not identity.scene_roots:
        return []
    found = {
        f"{identity.scene_roots[view.sensor]}/{name}"
        for observed in _observed(tiles, read_tile)
        for view in observed.views
        if view.sensor in identity.scene_roots
        for name in view.scenes
    }
    return sorted(found)
