"""Tiles of an ROI, their patches, and the part that a tile becomes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from cropray.config import Config
from cropray.config.imagery import LabelsConfig, PatchConfig
from cropray.config.rois import GridConfig
from cropray.grid import Grid, Window, plan_starts, regular_end, transform_bounds
from cropray.imagery import ImagerySource, identity_of
from cropray.labels import make_labels, source_maps
from cropray.rois.calendar import periods_for
from cropray.shards.ledger import TILE_KEY, LedgerRow, part_name
from cropray.shards.schema import FORMAT_VERSION, ShardMetadata, encode_patch, quantise_composite, to_table
from cropray.shards.writer import write_shard
from cropray.storage import Folder
from cropray.types import (
    BACKGROUND,
    UNLABELLED,
    BoolArray,
    ByteArray,
    Composite,
    ImageRequest,
    IndexArray,
    Patch,
    Roi,
)

if TYPE_CHECKING:
    from geopandas import GeoDataFrame


@dataclass(frozen=True)
class Tile:
    """Neighbouring patches of one ROI that are exported together, as one part.

    Every pair of `rows` and `cols` is the first pixel of a patch of `size` x `size` pixels in `extent`, the
    grid of the ROI. Patches beyond the first `regular` rows and columns of `extent` end at its edge.
    """

    tile_id: str
    roi: Roi
    extent: Grid
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    size: int
    regular: tuple[int, int]

    @property
    def window(self) -> Window:
        """The part of `extent` that the patches cover."""
        height = self.rows[-1] - self.rows[0] + self.size
        width = self.cols[-1] - self.cols[0] + self.size
        return Window(self.rows[0], self.cols[0], height, width)

    @property
    def grid(self) -> Grid:
        return self.extent.window(self.window)

    @property
    def patches(self) -> list[Window]:
        """The windows of the patches in `extent`, row by row."""
        return [Window(row, col, self.size, self.size) for row, col in product(self.rows, self.cols)]


def extent_of(roi: Roi, grid: GridConfig, patch: PatchConfig) -> Grid:
    """The grid of an ROI: its bounds snapped outwards, one patch a side at least."""
    return Grid.covering(
        roi.bounds, roi.crs, crs=grid.crs, resolution=grid.resolution, snap=grid.snap, min_size=patch.size
    )


def plan_tiles(roi: Roi, grid: GridConfig, patch: PatchConfig) -> list[Tile]:
    """The tiles of an ROI, of at most `patch.tile_patches` patches a side.

    Patches are planned for the whole ROI, so the tile size only decides which part a patch is in.
    """
    extent = extent_of(roi, grid, patch)
    most, groups = patch.tile_patches, []
    for length in extent.shape:
        starts = plan_starts(length, patch.size, patch.max_overlap)
        groups.append([tuple(starts[i : i + most]) for i in range(0, len(starts), most)])
    height, width = (regular_end(length, patch.size, patch.max_overlap) for length in extent.shape)
    return [
        Tile(f"{roi.roi_id}-{i:03d}-{j:03d}", roi, extent, rows, cols, patch.size, (height, width))
        for (i, rows), (j, cols) in product(*map(enumerate, groups))
    ]


def shard_metadata(config: Config, source: ImagerySource) -> ShardMetadata:
    """What all parts of an export share."""
    imagery = config.model_dump(mode="json", include={"grid", "composite"})
    sections = {"classes", "window", "grid", "composite", "labels", "patch"}
    truth = config.labels.truth is not None
    return part_metadata(config, identity_of(source, config), sections, imagery=imagery, has_truth=truth)


def part_metadata(config: Config, identity: dict[str, Any], sections: set[str], **more: Any) -> ShardMetadata:
    """Metadata with a recipe: the hash of the settings in `sections` and of the source's identity."""
    settings = config.model_dump(mode="json", include=sections)
    recipe = json.dumps([FORMAT_VERSION, settings, identity], sort_keys=True)
    return ShardMetadata(
        classes=config.classes,
        size=config.patch.size,
        window=config.window.model_dump(mode="json"),
        s1_quantity=identity["s1_quantity"],
        recipe=xxhash.xxh3_128_hexdigest(recipe.encode()),
        source=identity,
        **more,
    )


def inputs_of(tile: Tile, parcels: GeoDataFrame) -> str:
    """Hash of what a part depends on besides its recipe: the ROI, its grid and the parcels near it."""
    import shapely

    near = parcels_near(tile, parcels)
    ids, crops, shapes = (parcels[name].array[near] for name in ("parcel_id", "crop", "geometry"))
    columns = (ids, crops, shapely.to_wkb(np.asarray(shapes)))
    return xxhash.xxh3_64_hexdigest(repr((tile, sorted(zip(*columns, strict=True)))).encode())


def request_of(tile: Tile, config: Config) -> ImageRequest:
    """What a tile needs of the imagery source. Raises InputError for an ROI without its dates."""
    return ImageRequest(
        grid=tile.grid,
        extent=tile.extent,
        periods=periods_for(config.window, tile.roi.harvest_start),
        recipe=config.composite.recipe(config.source.max_lost),
        not_after=config.window.as_of if config.window.anchor == "as_of" else None,
        maps=source_maps(config.labels),
        name=tile.tile_id,
    )


def export_tile(
    tile: Tile,
    config: Config,
    metadata: ShardMetadata,
    parcels: GeoDataFrame,
    source: ImagerySource,
    folder: Folder,
    provisional: str = "",
) -> LedgerRow:
    """Publish the part of a tile and return its ledger row. The same inputs give the same bytes.

    `parcels` are those of the run. `provisional` is today's date if some of its months are not over. A tile
    without a valid pixel gives a part without samples that says so. If this raises InputError, or what the
    source raises, nothing is published.
    """
    request = request_of(tile, config)
    composite = source.composite(request)
    patches: list[Patch] = []
    reason = "no valid pixel in any month of either sensor"
    if composite.s2_valid_thw.any() or composite.s1_valid_thw.any():
        label_hw, truth_hw = make_labels(
            tile.grid, parcels.iloc[parcels_near(tile, parcels)], config, composite.maps
        )
        known_hw = known_pixels(label_hw, truth_hw, config.labels)
        patches = cut_patches(tile, composite, label_hw, known_hw, truth_hw)
        reason = "nothing is known of the remainder at the edge of the ROI"
    return write_part(
        folder,
        metadata,
        (encode_patch(patch, tile.roi, tile.extent, request.periods) for patch in patches),
        tile_id=tile.tile_id,
        roi=tile.roi,
        window=tile.window,
        inputs=inputs_of(tile, parcels),
        reason="" if patches else reason,
        valid_s2=composite.s2_valid_thw.mean((1, 2)).tolist(),
        valid_s1=composite.s1_valid_thw.mean((1, 2)).tolist(),
        scenes_s2=list(composite.scenes.get("s2", ())),
        scenes_s1=list(composite.scenes.get("s1", ())),
        provisional=provisional,
        impossible_s2=list(composite.impossible.get("s2", ())),
        impossible_s1=list(composite.impossible.get("s1", ())),
        orbits_s1=list(composite.orbits_s1),
        lost=list(composite.lost),
    )


def write_part(
    folder: Folder,
    metadata: ShardMetadata,
    samples: Iterable[Mapping[str, Any]],
    *,
    tile_id: str,
    roi: Roi,
    window: Window,
    **known: Any,
) -> LedgerRow:
    """Publish samples as a part with their ledger row in its footer; `known` are its other fields."""
    # One sample a row group: compaction picks single samples out of many parts.
    groups = [to_table([sample], metadata) for sample in samples]
    row = LedgerRow(
        tile_id=tile_id,
        roi_id=roi.roi_id,
        crop=roi.crop,
        season=roi.season,
        split=roi.split,
        recipe=metadata.recipe,
        patches=len(groups),
        nbytes=len(groups) * sum(spec.nbytes for spec in metadata.tensors.values()),
        checksum=xxhash.xxh3_64_hexdigest(b"".join(group["xxh3"].to_numpy().tobytes() for group in groups)),
        **asdict(window),
        **known,
    )
    # Parts are read once, by compaction, which applies the codec that was chosen.
    write_shard(folder, part_name(tile_id), metadata, groups, codec="lz4", footer={TILE_KEY: row.to_json()})
    return row


def known_pixels(label_hw: ByteArray, truth_hw: ByteArray | None, labels: LabelsConfig) -> BoolArray:
    """Pixels (H, W) whose class or truth is known, so that training or evaluation counts them.

    Background counts if it is from a class map. That from land cover surrounds all parcels and is never
    scored.
    """
    known_hw = label_hw != UNLABELLED if labels.class_map is not None else label_hw < BACKGROUND
    return known_hw if truth_hw is None else known_hw | (truth_hw != UNLABELLED)


def cut_patches(
    tile: Tile, composite: Composite, label_hw: ByteArray, known_hw: BoolArray, truth_hw: ByteArray | None
) -> list[Patch]:
    """The patches of a tile as they are stored; all arrays lie on the tile's grid.

    All regular patches are stored: training chooses which to learn from, and evaluation looks at whole ROIs.
    A patch for the remainder is left out if nothing is known there. Otherwise an ROI of one patch, whose
    grid is snapped to two pixels more, would give its pixels four times.
    """
    s1_cthw, s2_cthw = quantise_composite(composite)
    patches = []
    for window in tile.patches:
        inside = Window(window.row - tile.rows[0], window.col - tile.cols[0], tile.size, tile.size)
        rows, cols = inside.slices
        if not _wanted(tile, window, known_hw[rows, cols]):
            continue
        patches.append(
            Patch(
                sample_id=f"{tile.roi.roi_id}-{window.row:05d}-{window.col:05d}",
                row=window.row,
                col=window.col,
                s2_cthw=s2_cthw[:, :, rows, cols],
                s1_cthw=s1_cthw[:, :, rows, cols],
                label_hw=label_hw[rows, cols],
                truth_hw=None if truth_hw is None else truth_hw[rows, cols],
            )
        )
    return patches


def _wanted(tile: Tile, window: Window, known_hw: BoolArray) -> bool:
    """Whether a patch is regular, or covers known pixels in the remainder."""
    skip_row, skip_col = (
        max(0, regular - start) if start + tile.size > regular else 0
        for regular, start in zip(tile.regular, (window.row, window.col), strict=True)
    )
    return (skip_row, skip_col) == (0, 0) or bool(known_hw[skip_row:, skip_col:].any())


def parcels_near(tile: Tile, parcels: GeoDataFrame) -> IndexArray:
    """The rows of the parcels (longitude, latitude) that touch the tile."""
    import shapely

    west, south, east, north = transform_bounds(tile.grid.bounds, tile.grid.crs, "EPSG:4326")
    turns = np.array([0, 360, -360])  # a tile and its parcels may run past 180° from two sides
    boxes = shapely.box(west + turns, south, east + turns, north)
    rows: IndexArray = np.unique(parcels.sindex.query(boxes, predicate="intersects")[1])
    return rows
