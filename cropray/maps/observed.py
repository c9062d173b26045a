"""What the satellites saw of a map: clear months, true colour by month, and each acquisition.

Shape suffixes: S the two sensors, T months, H rows, W columns of a tile; h, w those of the true colour, which
has every `colour_step`-th pixel.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cropray.bands import S2_NAMES
from cropray.grid import Grid, Window
from cropray.types import UNLABELLED, BoolArray, ByteArray, Composite, View

SCENES_TABLE = "scenes.csv"
SCENES_HEAD = ("sensor", "time", "orbit", "clear_share", "scenes")

_COLOUR_PIXELS = 768  # a side of the true colour of a map, at most (of one up to 49,152 pixels)
_BRIGHT, _GAMMA = 0.3, 1.3  # reflectance that is white in true colour, and how far shadows are lifted
_RGB = [S2_NAMES.index(name) for name in ("B04", "B03", "B02")]


class Observed(NamedTuple):
    """What was seen of a tile. `pixels` are those of the imagery that was read, which `views` count."""

    months_shw: ByteArray  # months with a valid view of Sentinel-2 and Sentinel-1, or UNLABELLED
    colour_tchw: ByteArray  # (T, 3, h, w): red, green and blue from 1 to 255, 0 where unseen
    views: tuple[View, ...]
    pixels: int


def colour_step(grid: Grid) -> int:
    """Pixels of a map for one of its true colour: a power of two, so that it divides the tiles."""
    step = 1
    while max(grid.shape) > _COLOUR_PIXELS * step and step < 64:
        step *= 2
    return step


def colour_grid(grid: Grid) -> Grid:
    """The grid of the true colour of a map."""
    step = colour_step(grid)
    height, width = (-(-length // step) for length in grid.shape)
    return Grid(grid.crs, grid.x0, grid.y0, grid.resolution * step, height, width)


def observe(composite: Composite, hull: Window, core: Window, wanted_hw: BoolArray, grid: Grid) -> Observed:
    """What a composite of the window `hull` of a map's `grid` shows of its tile `core`."""
    shared = hull.shared(core)
    in_core, in_hull = shared.within(core).slices, shared.within(hull).slices
    months_shw = np.full((2, core.height, core.width), UNLABELLED, np.uint8)
    valid_sthw = np.stack([composite.s2_valid_thw, composite.s1_valid_thw])[:, :, *in_hull]
    months_shw[:, *in_core] = np.where(wanted_hw[in_core], valid_sthw.sum(axis=1), UNLABELLED)
    step = colour_step(grid)
    rows, cols = np.arange(core.row, core.bottom, step), np.arange(core.col, core.right, step)
    colour_tchw = np.zeros((len(composite.periods), 3, len(rows), len(cols)), np.uint8)
    row_in = np.flatnonzero((rows >= hull.row) & (rows < hull.bottom))
    col_in = np.flatnonzero((cols >= hull.col) & (cols < hull.right))
    row, col = np.ix_(rows[row_in] - hull.row, cols[col_in] - hull.col)
    values_tchw = composite.s2_tchw[:, _RGB][:, :, row, col]
    bright_tchw = np.clip(np.nan_to_num(values_tchw) / _BRIGHT, 0, 1) ** (1 / _GAMMA) * 254 + 1
    seen_thw = composite.s2_valid_thw[:, row, col]
    place_row, place_col = np.ix_(row_in, col_in)
    colour_tchw[:, :, place_row, place_col] = np.where(seen_thw[:, None], np.rint(bright_tchw), 0)
    return Observed(months_shw, colour_tchw, composite.views, hull.height * hull.width)


def arrays_of(observed: Observed) -> dict[str, npt.NDArray[Any]]:
    """As arrays that `observed_of` reads."""
    views = [[view.sensor, view.when.isoformat(), *view[2:]] for view in observed.views]
    text = np.array(json.dumps([observed.pixels, views]))
    return {"months_shw": observed.months_shw, "colour_tchw": observed.colour_tchw, "views": text}


def observed_of(arrays: Mapping[str, npt.NDArray[Any]]) -> Observed | None:
    """What `arrays_of` wrote; None if it is not there."""
    if "views" not in arrays:
        return None
    pixels, rows = json.loads(str(arrays["views"]))
    views = (
        View(sensor, datetime.fromisoformat(when), orbit, tuple(scenes), clear)
        for sensor, when, orbit, scenes, clear in rows
    )
    return Observed(arrays["months_shw"], arrays["colour_tchw"], tuple(views), pixels)


def scenes_csv(tiles: Iterable[Observed]) -> str:
    """The acquisitions of a map by time, with their clear share of the imagery that was read.

    Sentinel-2 is clear where no cloud is, Sentinel-1 where it has backscatter. An acquisition that does not
    reach a tile saw nothing of it. Imagery reaches up to a patch beyond the tiles.
    """
    clear, scenes = Counter[tuple[str, datetime, str]](), dict[tuple[str, datetime, str], set[str]]()
    total = 0
    for tile in tiles:
        total += tile.pixels
        for view in tile.views:
            key = view.sensor, view.when, view.orbit
            clear[key] += view.clear
            scenes.setdefault(key, set()).update(view.scenes)
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(SCENES_HEAD)
    for sensor, when, orbit in sorted(clear, key=lambda key: (key[1], key[0], key[2])):
        key = sensor, when, orbit
        names = " ".join(sorted(scenes[key]))
        table.writerow([sensor, f"{when:%Y-%m-%dT%H:%M:%SZ}", orbit, f"{clear[key] / total:.4f}", names])
    return buffer.getvalue()
