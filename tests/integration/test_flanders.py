"""The whole path on real Sentinel-1 and Sentinel-2 scenes and parcels: 640 m of Flanders, 2019.

One place tells nothing about accuracy: numbers are compared with the plain arrays of the series, and
figures only have to be plausible. Scenes after the as-of date are removed from the disk beforehand.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import rasterio

from cropray.bands import NODATA, S2_NAMES
from cropray.config.load import load_config
from cropray.errors import InputError
from cropray.evaluation.evaluate import evaluate
from cropray.pipeline.compact import compact
from cropray.pipeline.export import export
from cropray.pipeline.predict import predict
from cropray.rois.build import build_rois
from cropray.run import Run, Summary
from cropray.shards.file import shard_uris
from cropray.shards.ledger import read_ledger
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from cropray.training.driver import pretrain
from cropray.types import BACKGROUND, UNLABELLED, Batch
from tests.flanders import BLOCKS, CROPS, X0, Y0, build, open_series

AS_OF = date(2019, 6, 30)
MONTHS = [f"2019-{month:02d}" for month in range(1, 7)]
BLOCK_NAMES = sorted(BLOCKS)

# Relative to the kit's folder, which is the driver's directory and not the workers'.
RELATIVE = (
    "rois.data_root=.",
    "labels.class_map.path=labels.tif",
    "source.stac.s2.items=s2.json",
    "source.stac.s1.items=s1.json",
    "predict.area=area.gpkg",
)
SMALL = ("model.width=4", "model.stem=16", "evaluate.forest_trees=20", "evaluate.bootstrap=50")


@dataclass(frozen=True)
class Finished:
    run: Run
    summaries: dict[str, Summary]


@dataclass(frozen=True)
class Plain:
    """What the composites and labels of the patch must be, by plain numpy of the NetCDF files.

    s2_tchw and s1_tchw are masked arrays (T, 10 or 2, 64, 64) of reflectance and dB, crop_hw class
    indices or UNLABELLED, scenes_* the scenes by month.
    """

    s2_tchw: np.ma.MaskedArray
    s1_tchw: np.ma.MaskedArray
    crop_hw: np.ndarray
    scenes_s2: list[int]
    scenes_s1: list[int]


@pytest.fixture(scope="module")
def kit(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths = build(tmp_path_factory.mktemp("flanders"), shared_data)
    for scene in paths["s2"].parent.glob("S?_*"):
        if scene.name[3:11] > f"{AS_OF:%Y%m%d}":
            shutil.rmtree(scene)
    return paths


@pytest.fixture(scope="module")
def driver_directory(kit: dict[str, Path], ray_local: None) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(kit["config"].parent)
        yield kit["config"].parent


@pytest.fixture(scope="module")
def finished(driver_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    from cropray.report.pages import report

    config = load_config(driver_directory / "flanders.yaml", (*RELATIVE, *SMALL))
    run = Run(Folder(str(tmp_path_factory.mktemp("run"))), config)
    stages = (build_rois, export, compact, pretrain, evaluate, predict, report)
    return Finished(run, {stage.__name__: stage(run) for stage in stages})


@pytest.fixture(scope="module")
def plain(shared_data: Path) -> Plain:
    fine, coarse = open_series(shared_data, "S2_L2A_10m"), open_series(shared_data, "S2_L2A_20m")
    radar = open_series(shared_data, "S1_GRD-ASCENDING_20m")
    s2, s1 = [], []
    for month in MONTHS:
        scl = twice(coarse.SCL.sel(timestamp=month).values)
        cloudy = np.isin(scl, (0, 1, 3, 8, 9, 10, 11))
        bands = [(fine if band in fine else coarse)[band].sel(timestamp=month).values for band in S2_NAMES]
        s2.append(
            [
                np.ma.median(
                    np.ma.array(v / 1e4 if v.shape[-1] == 64 else twice(v) / 1e4, mask=cloudy), axis=0
                )
                for v in bands
            ]
        )
        power = 10 ** (np.stack([radar[band].sel(timestamp=month).values for band in ("VV", "VH")]) / 1e5)
        s1.append(twice(10 * np.log10(power.mean(axis=1))))
    codes = open_series(shared_data, "OUTPUT_POLY-110_10m")["CT"].values
    crop_hw = np.full(codes.shape, UNLABELLED, np.uint8)
    for index, own in enumerate(CROPS.values()):
        crop_hw[np.isin(codes, own)] = index
    return Plain(
        np.ma.stack([np.ma.stack(bands) for bands in s2]),
        np.ma.array(s1),
        crop_hw,
        [fine.sel(timestamp=month).sizes["timestamp"] for month in MONTHS],
        [radar.sel(timestamp=month).sizes["timestamp"] for month in MONTHS],
    )


def twice(values: np.ndarray) -> np.ndarray:
    """20 m pixels as 10 m pixels."""
    return values.repeat(2, axis=-2).repeat(2, axis=-1)


def samples(run: Run, split: str) -> Batch:
    reader = ShardReader(shard_uris(run.folder, split), batch_size=1, shuffle=False)
    return reader.take(list(range(len(reader.table))))


def places(batch: Batch) -> Iterator[tuple[int, slice, slice]]:
    """Number of a sample, and its rows and columns in the whole patch."""
    size = batch.label_bhw.shape[-1]
    for number in range(len(batch)):
        x0, y0 = batch.rows["x0"][number], batch.rows["y0"][number]
        row = int((Y0 - y0) / 10) + batch.rows["row"][number]
        col = int((x0 - X0) / 10) + batch.rows["col"][number]
        yield number, slice(row, row + size), slice(col, col + size)


@pytest.mark.parametrize("split", BLOCK_NAMES)
def test_shards_hold_the_composites_of_the_plain_arrays(finished: Finished, plain: Plain, split: str) -> None:
    batch = samples(finished.run, split)
    seen = np.zeros((64, 64), int)
    for number, rows, cols in places(batch):
        seen[rows, cols] += 1
        for stored_cthw, wanted_tchw, scale in (
            (batch.s2_bcthw[number], plain.s2_tchw[..., rows, cols], 1e-4),
            (batch.s1_bcthw[number], plain.s1_tchw[..., rows, cols], 1e-2),
        ):
            stored_tchw = np.ma.masked_equal(stored_cthw.swapaxes(0, 1), NODATA) * scale
            np.testing.assert_array_equal(np.ma.getmaskarray(stored_tchw), np.ma.getmaskarray(wanted_tchw))
            assert np.abs(stored_tchw - wanted_tchw).max() <= 0.51 * scale  # rounded, no more
            by_month = (2, 3)
            np.testing.assert_allclose(
                stored_tchw.mean(axis=by_month), wanted_tchw.mean(axis=by_month), atol=scale / 4
            )
    row, col, height, width = BLOCKS[split]
    block = np.zeros((64, 64), bool)
    block[row : row + height, col : col + width] = True
    assert np.array_equal(seen > 0, block)


@pytest.mark.parametrize("split", BLOCK_NAMES)
def test_labels_are_the_pixels_of_the_raster(finished: Finished, plain: Plain, split: str) -> None:
    batch = samples(finished.run, split)
    for number, rows, cols in places(batch):
        wanted_hw = plain.crop_hw[rows, cols]
        np.testing.assert_array_equal(batch.label_bhw[number], wanted_hw)
        assert batch.rows["labelled_fraction"][number] == pytest.approx((wanted_hw != UNLABELLED).mean())
    assert finished.summaries["compact"]["samples"][split] == len(batch)


def test_composites_look_like_farmland(plain: Plain) -> None:
    """Ranges of farmland: Sentinel-2 red and near infrared, C-band backscatter."""
    red, nir = (plain.s2_tchw[:, S2_NAMES.index(band)].mean(axis=(1, 2)) for band in ("B04", "B08"))
    vv, vh = plain.s1_tchw.mean(axis=(2, 3)).T
    assert (red > 0.02).all()
    assert (red < 0.15).all()
    assert (nir > 0.15).all()
    assert (nir < 0.6).all()
    assert (vv > -16).all()
    assert (vv < -6).all()
    assert (vv - vh > 4).all()
    assert (vv - vh < 12).all()


def test_wheat_is_green_in_may_when_maize_is_sown_and_ripens_in_june(plain: Plain) -> None:
    red, nir = (plain.s2_tchw[:, S2_NAMES.index(band)] for band in ("B04", "B08"))
    ndvi_thw = (nir - red) / (nir + red)
    wheat, maize = (
        ndvi_thw[:, plain.crop_hw == list(CROPS).index(crop)].mean(axis=1)
        for crop in ("winter wheat", "maize")
    )
    may, june = MONTHS.index("2019-05"), MONTHS.index("2019-06")
    assert wheat[may] > 0.8
    assert wheat[may] - maize[may] > 0.3
    assert wheat[june] < wheat[may]
    assert maize[june] > maize[may]


def test_no_scene_after_the_as_of_date_went_in(finished: Finished, plain: Plain) -> None:
    """All scenes of each month up to the date did; later ones are gone, and none was missed."""
    for row in read_ledger(finished.run.folder):
        assert (row.scenes_s2, row.scenes_s1) == (plain.scenes_s2, plain.scenes_s1)
    for split in BLOCKS:
        for ends in samples(finished.run, split).rows["period_end"]:
            assert max(ends) == date(2019, 7, 1)  # exclusive
    assert finished.summaries["predict"]["as_of"] == AS_OF.isoformat()


def test_records_keep_relative_paths_as_they_were_written(finished: Finished) -> None:
    record = json.loads(finished.run.folder.read_text("stages/export.json"))
    assert record["settings"]["labels"]["class_map"]["path"] == "labels.tif"


def test_the_evaluation_counts_each_labelled_pixel_of_the_test_block_once(
    finished: Finished, plain: Plain
) -> None:
    row, col, height, width = BLOCKS["test"]
    truth_hw = plain.crop_hw[row : row + height, col : col + width]
    result = json.loads(finished.run.folder.read_text("evaluation/evaluation.json"))
    assert (result["scope"], result["blocks"]) == ("class_map", 1)
    assert result["pixels"] == (truth_hw != UNLABELLED).sum()
    assert result["thresholds_chosen_on"] == "val"
    assert set(result["methods"]) == {"network", "forest", "logistic", "boosting", "majority"}
    for method in result["methods"].values():
        supports = {entry["class"]: entry["support"] for entry in method["per_class"]}
        counted = {crop: int((truth_hw == index).sum()) for index, crop in enumerate(CROPS)}
        assert {crop: supports[crop] for crop in CROPS} == counted


def test_the_map_lies_on_the_grid_and_is_what_its_probabilities_decide(
    finished: Finished, plain: Plain
) -> None:
    folder = finished.run.folder.child("maps/map")
    with rasterio.open(folder.local("map.tif")) as raster:
        assert (raster.crs.to_epsg(), raster.shape, raster.nodata) == (32631, (64, 64), UNLABELLED)
        assert raster.transform[:6] == (10, 0, X0, 0, -10, Y0)
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert raster.tags()["AS_OF"] == AS_OF.isoformat()
        map_hw = raster.read(1)
    assert set(np.unique(map_hw)) <= {*range(len(CROPS)), BACKGROUND}
    hectares = finished.summaries["predict"]["maps"][0]["hectares"]
    assert sum(hectares.values()) == pytest.approx(64 * 64 * 0.01, rel=2e-3)
    row, col, height, width = BLOCKS["train"]
    learnt = (slice(row, row + height), slice(col, col + width))
    known_hw = plain.crop_hw[learnt] != UNLABELLED
    labels, mapped = plain.crop_hw[learnt][known_hw], map_hw[learnt][known_hw]
    assert (mapped == labels).mean() > np.bincount(labels).max() / len(labels) + 0.05


def test_the_report_shows_the_stages_and_the_map(finished: Finished) -> None:
    assert finished.summaries["report"]["stages"] == ["rois", "export", "compact", "pretrain", "evaluate"]
    page = finished.run.folder.read_text("report.html")
    hectares = finished.summaries["predict"]["maps"][0]["hectares"]
    assert all(crop in page for crop in CROPS)
    assert f"as of {AS_OF}" in page
    assert f"{round(hectares['winter wheat'], 2):.1f}" in page  # as areas.csv has it


def test_parcels_of_one_place_make_one_split_and_the_labels_of_their_outlines(
    finished: Finished, driver_directory: Path, plain: Plain, tmp_path: Path
) -> None:
    """Every ROI has the fields of all crops; what lies in one place cannot be held out of itself."""
    model = finished.summaries["pretrain"]["model"]
    config = load_config(driver_directory / "parcels.yaml", [f"evaluate.model={model}"])
    run = Run(Folder(str(tmp_path)), config)
    rois = build_rois(run)
    assert (rois["rois"], rois["components"], rois["by_split"]["train"]) == (len(CROPS), 1, len(CROPS))
    assert set(rois["missing"]) == {"val", "test"}
    export(run)
    compact(run)
    for number, rows, cols in places(batch := samples(run, "train")):
        inside = (slice(max(0, rows.start), rows.stop), slice(max(0, cols.start), cols.stop))
        wanted_hw = np.full((64, 64), UNLABELLED, np.uint8)
        part = plain.crop_hw[inside]
        top, left = inside[0].start - rows.start, inside[1].start - cols.start
        wanted_hw[top : top + part.shape[0], left : left + part.shape[1]] = part
        np.testing.assert_array_equal(batch.label_bhw[number], wanted_hw)
    assert set(batch.rows["crop"]) == set(CROPS)
    with pytest.raises(InputError, match="no shards of the split test"):
        evaluate(run)
