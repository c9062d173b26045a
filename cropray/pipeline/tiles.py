"""Which tiles an ROI is exported in: pure planning, before any pixel is asked for."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from cropray.bands import S1_BANDS, S2_BANDS
from cropray.config import Config
from cropray.config.imagery import LabelsConfig, PatchConfig
from cropray.config.rois import GridConfig
from cropray.grid import Grid, Window, plan_starts, regular_end
from cropray.imagery import ImagerySource
from cropray.labels import make_labels, source_maps
from cropray.rois.calendar import periods_for
from cropray.shards.ledger import TILE_KEY, LedgerRow, part_name
from cropray.shards.schema import FORMAT_VERSION, ShardMetadata, encode_patch, quantise, to_table
from cropray.shards.writer import write_shard
from cropray.storage import Folder
from cropray.types import BACKGROUND, UNLABELLED, BoolArray, ByteArray, Composite, ImageRequest, Patch, Roi

if TYPE_CHECKING:
    from geopandas import GeoDataFrame


@dataclass(frozen=True)
class Tile:
    """Neighbouring patches of one ROI that are exported together, as one part.

    `rows` and `cols` are the first pixels of its patches in `extent`, the grid of the whole ROI:
    every pair of them is a patch of `size` pixels a side. The patches beyond the first `regular`
    (rows, columns) of `extent` lie flush with its edge and are there for the remainder only.
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
    """The tiles of an ROI, at most `patch.tile_patches` patches a side.

    Patches are planned for the ROI as a whole and then shared out, so the tile size changes which
    part a patch lies in and nothing else.
    """
    extent = extent_of(roi, grid, patch)
    rows = _groups(plan_starts(extent.height, patch.size, patch.max_overlap), patch.tile_patches)
    cols = _groups(plan_starts(extent.width, patch.size, patch.max_overlap), patch.tile_patches)
    height, width = (regular_end(length, patch.size, patch.max_overlap) for length in extent.shape)
    return [
        Tile(f"{roi.roi_id}-{i:03d}-{j:03d}", roi, extent, row_group, col_group, patch.size, (height, width))
        for i, row_group in enumerate(rows)
        for j, col_group in enumerate(cols)
    ]


def _groups(starts: list[int], most: int) -> list[tuple[int, ...]]:
    return [tuple(starts[i : i + most]) for i in range(0, len(starts), most)]


_RECIPE_SECTIONS = {"classes", "window", "grid", "composite", "labels", "patch"}
_PART_CODEC = "lz4"  # parts are read once, by compaction, which applies the codec that was chosen


def shard_metadata(config: Config, source: ImagerySource) -> ShardMetadata:
    """What all parts of an export share, the hash of its recipe included."""
    identity = source.identity()
    settings = config.model_dump(mode="json", include=_RECIPE_SECTIONS)
    recipe = json.dumps([FORMAT_VERSION, settings, identity], sort_keys=True)
    return ShardMetadata(
        classes=config.classes,
        size=config.patch.size,
        window=config.window.model_dump(mode="json"),
        s1_quantity=identity["s1_quantity"],
        recipe=xxhash.xxh3_128_hexdigest(recipe.encode()),
        source=identity,
        imagery=config.model_dump(mode="json", include={"grid", "composite"}),
        has_truth=config.labels.truth is not None,
    )


def inputs_of(tile: Tile, parcels: GeoDataFrame) -> str:
    """Hash of all that a part rests on beside its recipe: the ROI, its grid, the parcels near it."""
    near = _near(tile, parcels)
    columns = (near["parcel_id"], near["crop"], near.geometry.to_wkb())
    return xxhash.xxh3_64_hexdigest(repr((tile, sorted(zip(*columns, strict=True)))).encode())


def request_of(tile: Tile, config: Config) -> ImageRequest:
    """What a tile takes from the imagery source. Raises InputError for an ROI without its dates."""
    return ImageRequest(
        grid=tile.grid,
        extent=tile.extent,
        periods=periods_for(config.window, tile.roi.harvest_start),
        recipe=config.composite.recipe(),
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
) -> LedgerRow:
    """Make a tile's part and publish it whole, with its ledger row in the footer.

    `parcels` are all that there are; those near the tile are chosen here. A tile without any valid
    pixel gets a part without samples that says so. The same inputs give the same bytes. Raises
    InputError, or whatever the source raises, and then publishes nothing.
    """
    request = request_of(tile, config)
    composite = source.composite(request)
    patches: list[Patch] = []
    reason = "no valid pixel in any month of either sensor"
    if composite.s2_valid_thw.any() or composite.s1_valid_thw.any():
        label_hw, truth_hw = make_labels(tile.grid, _near(tile, parcels), config, composite.maps)
        patches = cut_patches(
            tile, composite, label_hw, known_pixels(label_hw, truth_hw, config.labels), truth_hw
        )
        reason = "nothing is known of the remainder at the edge of the ROI"
    # One sample a row group: compaction picks single samples out of many parts.
    groups = [
        to_table([encode_patch(patch, tile.roi, tile.extent, request.periods)], metadata) for patch in patches
    ]
    digest = xxhash.xxh3_64()
    for group in groups:
        digest.update(group["xxh3"].to_numpy().tobytes())
    row = LedgerRow(
        tile_id=tile.tile_id,
        roi_id=tile.roi.roi_id,
        crop=tile.roi.crop,
        season=tile.roi.season,
        split=tile.roi.split,
        recipe=metadata.recipe,
        inputs=inputs_of(tile, parcels),
        patches=len(patches),
        reason="" if patches else reason,
        nbytes=len(patches) * sum(spec.nbytes for spec in metadata.tensors.values()),
        checksum=digest.hexdigest(),
        **asdict(tile.window),
        valid_s2=_by_month(composite.s2_valid_thw),
        valid_s1=_by_month(composite.s1_valid_thw),
        scenes_s2=list(composite.scenes.get("s2", ())),
        scenes_s1=list(composite.scenes.get("s1", ())),
    )
    footer = {TILE_KEY: row.to_json()}
    write_shard(folder, part_name(tile.tile_id), metadata, groups, codec=_PART_CODEC, footer=footer)
    return row


def known_pixels(label_hw: ByteArray, truth_hw: ByteArray | None, labels: LabelsConfig) -> BoolArray:
    """Where (H, W) something is known that training or evaluation counts.

    That is a class, or truth; of background that of a class map, which is measured against, and not
    that of land cover, which lies around the parcels everywhere and is never scored.
    """
    known_hw = label_hw != UNLABELLED if labels.class_map is not None else label_hw < BACKGROUND
    return known_hw if truth_hw is None else known_hw | (truth_hw != UNLABELLED)


def cut_patches(
    tile: Tile, composite: Composite, label_hw: ByteArray, known_hw: BoolArray, truth_hw: ByteArray | None
) -> list[Patch]:
    """The patches of a tile as they are stored; `composite` and labels lie on the tile's grid.

    Regular patches are all stored, labelled or not: which of them to learn from is training's choice,
    and an evaluation looks at whole ROIs. A patch that is there for the remainder is left out where
    nothing is known of the remainder (`known_hw`): the grid of an ROI of exactly one patch is,
    snapped, two pixels longer, and its pixels should not be learnt from four times.
    """
    s2_cthw = quantise(composite.s2_tchw, composite.s2_valid_thw[:, None], S2_BANDS[0].scale).swapaxes(0, 1)
    s1_cthw = quantise(composite.s1_tchw, composite.s1_valid_thw[:, None], S1_BANDS[0].scale).swapaxes(0, 1)
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
    """Whether a patch is one of the regular ones or covers something known in the remainder."""
    skip_row, skip_col = (
        max(0, regular - start) if start + tile.size > regular else 0
        for regular, start in zip(tile.regular, (window.row, window.col), strict=True)
    )
    return (skip_row, skip_col) == (0, 0) or bool(known_hw[skip_row:, skip_col:].any())


def _near(tile: Tile, parcels: GeoDataFrame) -> GeoDataFrame:
    """Those of `parcels` (in longitude and latitude) that touch the tile."""
    import shapely

    box = shapely.box(*tile.grid.bounds_in("EPSG:4326"))
    return parcels.iloc[parcels.sindex.query(box, predicate="intersects")]


def _by_month(valid_thw: BoolArray) -> list[float]:
    return [float(np.mean(valid_hw)) for valid_hw in valid_thw]
