from dataclasses import replace
from datetime import date
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropray.bands import NODATA
from cropray.config.imagery import ClassMapConfig, LabelsConfig, PatchConfig
from cropray.config.rois import GridConfig
from cropray.errors import InputError
from cropray.grid import Grid
from cropray.pipeline.tiles import (
    cut_patches,
    export_tile,
    inputs_of,
    known_pixels,
    plan_tiles,
    shard_metadata,
)
from cropray.shards.ledger import read_ledger, read_rows
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from cropray.types import BACKGROUND, UNLABELLED, Batch, ImageRequest, Roi
from tests.export_inputs import PlainSource, export_here, make_config, make_parcels, make_roi
from tests.samples import PERIODS, plan_windows

LAND_COVER = LabelsConfig(land_cover=ClassMapConfig(path="cover.tif", codes=(10,)))
CLASS_MAP = LabelsConfig(class_map=ClassMapConfig(path="crops.tif", codes=(1, 2)))
EXTENT = Grid("EPSG:32639", 500_000.0, 4_000_320.0, 10.0, 32, 40)


def all_samples(folder: Folder) -> Batch:
    uris = [f"{folder.uri}/parts/{name}" for name in folder.child("parts").names(".parquet")]
    reader = ShardReader(uris, batch_size=100, shuffle=False)
    return reader.take(range(len(reader.table)))


@given(st.integers(160, 3000), st.integers(160, 3000), st.integers(1, 9))
def test_tiles_share_out_the_patches_of_the_whole_roi(width: int, height: int, side: int) -> None:
    roi = replace(make_roi(), bounds=(500_000.0, 4_000_000.0, 500_000.0 + width, 4_000_000.0 + height))
    patch = PatchConfig(size=16, max_overlap=8, tile_patches=side)
    tiles = plan_tiles(roi, GridConfig(), patch)
    extent = tiles[0].extent
    patches = [window for tile in tiles for window in tile.patches]
    wanted = plan_windows(extent.height, extent.width, 16, 8)
    assert sorted(patches, key=str) == sorted(wanted, key=str)
    assert all(len(tile.rows) <= side and len(tile.cols) <= side for tile in tiles)
    assert len({tile.tile_id for tile in tiles}) == len(tiles)
    for tile in tiles:
        assert tile.grid == extent.window(tile.window)
        assert {window.row + 16 for window in tile.patches} <= set(
            range(tile.window.row + tile.window.height + 1)
        )


def test_an_roi_smaller_than_a_patch_is_widened_to_one() -> None:
    roi = replace(make_roi(), bounds=(500_000.0, 4_000_000.0, 500_050.0, 4_000_050.0))
    (tile,) = plan_tiles(roi, GridConfig(), PatchConfig(size=64))
    assert min(tile.extent.shape) >= 64
    assert tile.regular == (64, 64)


def test_the_remainder_gives_patches_only_where_something_is_known_of_it() -> None:
    roi = replace(make_roi(), bounds=(500_005.0, 4_000_005.0, 500_165.0, 4_000_165.0))
    (tile,) = plan_tiles(roi, GridConfig(), PatchConfig(size=16, max_overlap=0))
    assert tile.extent.shape == (18, 18)
    composite = PlainSource().composite(ImageRequest(tile.grid, tile.extent, PERIODS))
    label_hw = np.full((18, 18), UNLABELLED, np.uint8)
    label_hw[:, 17] = BACKGROUND

    def places(
        truth_hw: np.ndarray | None = None, labels: LabelsConfig = LAND_COVER
    ) -> list[tuple[int, int]]:
        known_hw = known_pixels(label_hw, truth_hw, labels)
        patches = cut_patches(tile, composite, label_hw, known_hw, truth_hw)
        return [(patch.row, patch.col) for patch in patches]

    assert places() == [(0, 0)]  # background of a land-cover map: never scored
    assert places(labels=CLASS_MAP) == [(0, 0), (0, 2), (2, 2)]  # of a class map: none of the classes
    label_hw[3, 17] = 1
    assert places() == [(0, 0), (0, 2)]
    unknown_hw = np.full((18, 18), UNLABELLED, np.uint8)
    assert places(unknown_hw) == [(0, 0), (0, 2)]  # a label counts where the truth is silent
    label_hw[17, 17] = 0
    assert places() == [(0, 0), (0, 2), (2, 2)]
    assert places(np.zeros((18, 18), np.uint8)) == [(0, 0), (0, 2), (2, 0), (2, 2)]


def test_every_pixel_is_stored_as_it_was_seen(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    export_here(make_config(), [make_roi()], PlainSource(), folder)
    batch = all_samples(folder)
    x, y = EXTENT.centres()
    covered = np.zeros(EXTENT.shape, bool)
    for i, (row, col) in enumerate(zip(batch.rows["row"], batch.rows["col"], strict=True)):
        rows, cols = slice(row, row + 16), slice(col, col + 16)
        covered[rows, cols] = True
        clear = np.broadcast_to(x[cols] < 500_200, (16, 16))
        for month in range(2):
            reflectance = np.broadcast_to((x[cols] - 500_000) / 1000 + 0.1 * month, (16, 16))
            wanted = np.where(clear, np.rint(reflectance * 1e4), NODATA)
            assert (np.abs(batch.s2_bcthw[i, :, month] - wanted) <= 1).all()
            assert ((batch.s2_bcthw[i, :, month] == NODATA) == ~clear).all()
        assert (batch.s1_bcthw[i, :, 0] == NODATA).all()  # no scene: invalid, not zero
        backscatter = np.broadcast_to(((y[rows] - 4_000_000) / 100 - 19)[:, None], (16, 16))
        np.testing.assert_allclose(batch.s1_bcthw[i, 0, 1] * 0.01, backscatter, atol=0.0051)
    assert covered.all()


def test_no_labelled_pixel_is_lost_at_the_edges(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    # Patches of 16 without overlap leave 8 of the 40 columns over, where the pea is.
    export_here(make_config(**{"patch.max_overlap": 0}), [make_roi()], PlainSource(), folder)
    batch = all_samples(folder)
    label_hw = np.full(EXTENT.shape, 255, np.uint8)
    for i, (row, col) in enumerate(zip(batch.rows["row"], batch.rows["col"], strict=True)):
        label_hw[row : row + 16, col : col + 16] = batch.label_bhw[i]
    wanted = np.full(EXTENT.shape, 255, np.uint8)
    wanted[:5, :5] = 0
    wanted[-2:, -2:] = 1
    np.testing.assert_array_equal(label_hw, wanted)


def test_the_tile_size_changes_no_sample(tmp_path: Path) -> None:
    samples = []
    for side in (1, 8):
        folder = Folder(str(tmp_path / str(side)))
        export_here(make_config(**{"patch.tile_patches": side}), [make_roi()], PlainSource(), folder)
        batch = all_samples(folder)
        samples.append(dict(zip(batch.rows["sample_id"], batch.rows["xxh3"], strict=True)))
    assert samples[0] == samples[1]


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    parts = []
    for name in ("a", "b"):
        export_here(make_config(), [make_roi()], PlainSource(), Folder(str(tmp_path / name)))
        parts.append({path.name: path.read_bytes() for path in (tmp_path / name / "parts").iterdir()})
    assert parts[0] == parts[1]
    assert len(parts[0]) == 2


def test_the_ledger_says_what_each_tile_holds(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    rows = export_here(make_config(), [make_roi()], PlainSource(), folder)
    assert read_ledger(folder) == rows
    recipe = shard_metadata(make_config(), PlainSource()).recipe
    assert read_rows(folder, [row.tile_id for row in rows], recipe) == rows
    first = rows[0]
    assert (first.tile_id, first.row, first.col, first.height, first.width) == (
        "maize-1-000-000",
        0,
        0,
        32,
        28,
    )
    assert first.patches == 4
    assert first.nbytes == 4 * (12 * 2 * 16 * 16 * 2 + 16 * 16)
    assert first.valid_s2 == [20 / 28, 20 / 28]
    assert first.valid_s1 == [0.0, 1.0]
    assert first.scenes_s1 == [0, 5]


def test_a_tile_without_any_view_says_why_it_is_empty(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    rows = export_here(make_config(), [make_roi()], PlainSource(blind=True), folder)
    reason = "no valid pixel in any month of either sensor"
    assert [(row.patches, row.reason) for row in rows] == [(0, reason), (0, reason)]
    assert read_ledger(folder) == rows


def test_parts_of_another_recipe_are_refused(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    rows = export_here(make_config(), [make_roi()], PlainSource(), folder)
    recipe = shard_metadata(make_config(), PlainSource(clouded_from=0.0)).recipe
    with pytest.raises(
        InputError, match=r"000\.parquet was exported with other settings .* another --run folder"
    ):
        read_rows(folder, [rows[0].tile_id], recipe)


def test_a_tile_rests_on_its_roi_and_on_the_parcels_near_it() -> None:
    config, parcels = make_config(), make_parcels()

    def inputs(roi: Roi, among: gpd.GeoDataFrame) -> list[str]:
        return [inputs_of(tile, among) for tile in plan_tiles(roi, config.grid, config.patch)]

    west, east = inputs(make_roi(), parcels)
    assert inputs(make_roi(), parcels.iloc[::-1]) == [west, east]
    later = replace(make_roi(), harvest_start=date(2022, 9, 1))
    assert not {west, east} & set(inputs(later, parcels))
    without_pea = parcels[parcels["crop"] != "pea"]  # which lies in the eastern tile
    assert inputs(make_roi(), without_pea)[0] == west
    assert inputs(make_roi(), without_pea)[1] != east


def test_the_recipe_hangs_on_settings_and_source_and_on_nothing_else() -> None:
    def recipe(source: PlainSource, **changes: object) -> str:
        return shard_metadata(make_config(**changes), source).recipe

    base = recipe(PlainSource())
    assert (
        recipe(PlainSource(), **{"shards.codec": "none", "ray.concurrency": 9, "pretrain.epochs": 3}) == base
    )
    assert recipe(PlainSource(clouded_from=1.0)) != base
    assert recipe(PlainSource(), **{"window.lead_months": 2}) != base
    assert recipe(PlainSource(), **{"labels.parcels": False}) != base


def test_an_as_of_window_asks_for_no_later_scene(tmp_path: Path) -> None:
    asked = []

    class Asking(PlainSource):
        def composite(self, request):
            asked.append(request)
            return super().composite(request)

    config = make_config(**{"window.anchor": "as_of", "window.as_of": "2022-05-31"})
    export_here(config, [make_roi()], Asking(), Folder(str(tmp_path)))
    assert {request.not_after for request in asked} == {date(2022, 5, 31)}
    assert {request.periods[-1].end for request in asked} == {date(2022, 6, 1)}
    assert {request.extent for request in asked} == {EXTENT}


def test_a_tile_that_fails_publishes_nothing(tmp_path: Path) -> None:
    config, folder = make_config(), Folder(str(tmp_path))
    roi = replace(make_roi(), harvest_start=None)
    tile = plan_tiles(roi, config.grid, config.patch)[0]
    source = PlainSource()
    with pytest.raises(InputError, match="the harvest of this ROI is unknown"):
        export_tile(tile, config, shard_metadata(config, source), make_parcels(), source, folder)
    assert folder.names() == []
