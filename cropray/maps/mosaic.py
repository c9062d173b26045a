"""Finished tiles to one pair of Cloud-Optimized GeoTIFFs, tile by tile."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Literal

import numpy as np

from cropray.figures.pictures import colour_table
from cropray.grid import Grid, Window
from cropray.maps.plan import MapPlan
from cropray.maps.tiles import NODATA, TileResult
from cropray.rasters import TiledWriter, create_tiled, write_cog
from cropray.types import BACKGROUND

MAP = "map.tif"
PROBABILITIES = "probabilities.tif"


def encode_tile(result: TileResult) -> bytes:
    """A part: compressed npz of the two arrays."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, class_hw=result.class_hw, percent_khw=result.percent_khw)
    return buffer.getvalue()


def decode_tile(data: bytes) -> TileResult:
    """The tile of a part."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return TileResult(arrays["class_hw"], arrays["percent_khw"])


def assemble(
    plan: MapPlan,
    tiles: Iterable[Window],
    read_tile: Callable[[Window], TileResult],
    directory: Path,
    *,
    classes: Sequence[str],
    tags: Mapping[str, str],
    probabilities: bool,
) -> list[Path]:
    """Write map.tif, and probabilities.tif where wanted, into a local directory.

    map.tif is uint8: 0..n-1, 254 none of the classes, 255 nodata, with a colour table and the names
    under the tag CLASSES (JSON, by value). probabilities.tif has one uint8 band a class, in per
    cent. One tile is held at a time. Raises InputError where the disk is full.
    """
    names = dict(enumerate(classes)) | {BACKGROUND: "none of the classes"}
    tags = {**tags, "CLASSES": json.dumps(names, ensure_ascii=False)}
    scratch = {name: directory / f"flat-{name}" for name in (MAP, PROBABILITIES)}
    with ExitStack() as stack:
        class_writer = stack.enter_context(_class_raster(scratch[MAP], plan.grid, classes, tags))
        percent_writer = None
        if probabilities:
            percent_writer = stack.enter_context(
                _percent_raster(scratch[PROBABILITIES], plan.grid, classes, tags)
            )
        for tile in tiles:
            result = read_tile(tile)
            if (result.class_hw == NODATA).all():
                continue  # the file is sparse: what is not written is nodata
            class_writer.write(result.class_hw[None], tile)
            if percent_writer is not None:
                percent_writer.write(result.percent_khw, tile)
    made = [_as_cog(scratch[MAP], directory / MAP, "nearest")]
    if probabilities:
        made.append(_as_cog(scratch[PROBABILITIES], directory / PROBABILITIES, "average"))
    return made


def _class_raster(
    path: Path, grid: Grid, classes: Sequence[str], tags: Mapping[str, str]
) -> AbstractContextManager[TiledWriter]:
    return create_tiled(
        path,
        grid,
        count=1,
        dtype="uint8",
        nodata=NODATA,
        descriptions=["class"],
        tags=tags,
        colours=colour_table(len(classes)),
    )


def _percent_raster(
    path: Path, grid: Grid, classes: Sequence[str], tags: Mapping[str, str]
) -> AbstractContextManager[TiledWriter]:
    return create_tiled(
        path,
        grid,
        count=len(classes),
        dtype="uint8",
        nodata=NODATA,
        descriptions=classes,
        tags={**tags, "UNIT": "per cent"},
    )


def _as_cog(flat: Path, target: Path, overviews: Literal["nearest", "average"]) -> Path:
    write_cog(flat, target, overviews=overviews)
    flat.unlink()  # at once: a large map's scratch is as large as the map
    return target
