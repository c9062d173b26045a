"""Cells of a lattice for parcels that cover the land, and their splits."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cropray.config import Config
from cropray.errors import InputError
from cropray.rois.build import build_rois
from cropray.rois.near import near_pairs
from cropray.rois.store import DROPPED, read_parcels, read_rois
from cropray.run import Run
from cropray.storage import Folder
from tests.rois_inputs import EAST, NORTH, UTM, field, write_calendar, write_fields


def write_cadastre(folder: Path, side: int) -> None:
    """side x side fields of 200 m that touch, wheat and beet in turn."""
    places = [(x, y) for x in range(side) for y in range(side)]
    fields = [field(200 * x, 200 * y, size=200) for x, y in places]
    write_fields(folder / "fields.gpkg", fields, crop=["wbs"[(x + y) % 3] for x, y in places])


def config(folder: Path, **rois: object) -> Config:
    crops = {"column": "crop", "map": {"w": "wheat", "b": "beet"}}
    settings = {"kind": "grid", "data_root": str(folder), "crs": UTM, "split": {"buffer_m": 500.0}}
    settings["parcels"] = [{"path": "fields.gpkg", "crops": crops}]
    return Config(classes=("wheat", "beet"), rois=settings | rois)


def run_in(folder: Path, chosen: Config) -> Run:
    return Run(Folder(str(folder)), chosen)


def test_cells_are_labelled_by_all_crops_and_split_by_blocks(tmp_path: Path) -> None:
    write_cadastre(tmp_path, 64)
    run = run_in(tmp_path / "run", config(tmp_path))
    summary = build_rois(run)
    rois = read_rois(run.folder)
    assert {roi.crop for roi in rois} == {""}
    assert min(summary["by_split"].values()) >= 3
    assert summary["missing"] == {}
    assert summary["by_crop"] == {"beet": len(rois), "wheat": len(rois)}
    sides = {(roi.bounds[2] - roi.bounds[0], roi.bounds[3] - roi.bounds[1]) for roi in rois}
    assert sides == {(1280, 1280)}
    assert all(bound % 1280 == 0 for roi in rois for bound in roi.bounds)
    one, other = near_pairs(rois, 490.0)
    assert all(rois[i].split == rois[j].split for i, j in zip(one, other, strict=True))
    # Each cell is there, or recorded: 64 fields of 200 m touch 11 or 12 cells a side.
    dropped = pd.read_csv(run.folder.local(DROPPED), keep_default_na=False)
    cells = dropped["item"].str.startswith("cell").sum()
    low, high = np.array([EAST, NORTH]) // 1280, (np.array([EAST, NORTH]) + 12_700) // 1280
    assert len(rois) + cells == np.prod(high - low + 1)
    assert len(read_parcels(run.folder)) + (dropped["item"].str.startswith("feature")).sum() == 64**2


def test_a_left_out_country_of_cells_is_the_test_split(tmp_path: Path) -> None:
    write_cadastre(tmp_path, 32)
    split = {"buffer_m": 500.0, "left_out": ["Iran"], "allow_empty": True}
    run = run_in(tmp_path / "run", config(tmp_path, country="Iran", split=split))
    with pytest.raises(InputError, match="train"):
        build_rois(run)


def test_clusters_of_a_cadastre_name_the_grid_as_the_remedy(tmp_path: Path) -> None:
    write_cadastre(tmp_path, 12)
    run = run_in(tmp_path / "run", config(tmp_path, kind="parcels"))
    with pytest.raises(InputError, match=r"no ROI is left for val.*2 ROIs.*1 components.*rois\.kind=grid"):
        build_rois(run)
    assert not (tmp_path / "run").exists()
    allowed = config(tmp_path, kind="parcels", split={"allow_empty": True})
    assert build_rois(run_in(tmp_path / "run", allowed))["by_split"] == {"train": 2, "val": 0, "test": 0}


def test_too_few_blocks_name_the_setting(tmp_path: Path) -> None:
    write_cadastre(tmp_path, 12)
    with pytest.raises(InputError, match=r"no ROI is left for .*blocks of 16 x 16 cells.*rois\.cells\.block"):
        build_rois(run_in(tmp_path / "run", config(tmp_path, cells={"block": 16})))


def test_cells_keep_their_names_when_parcels_change(tmp_path: Path) -> None:
    names = []
    for side in (40, 41):
        write_cadastre(tmp_path, side)
        run = run_in(tmp_path / f"run{side}", config(tmp_path, split={"allow_empty": True, "buffer_m": 0}))
        build_rois(run)
        names.append({roi.bounds: roi.roi_id for roi in read_rois(run.folder)})
    assert names[0].items() <= names[1].items()


def test_sparse_cells_and_parcels_in_them_are_recorded(tmp_path: Path) -> None:
    write_cadastre(tmp_path, 64)
    run = run_in(tmp_path / "run", config(tmp_path, min_samples=25))
    build_rois(run)
    dropped = pd.read_csv(run.folder.local(DROPPED), keep_default_na=False)
    assert (dropped["reason"] == "fewer than 25 parcels in its cell").any()
    with pytest.raises(InputError, match=r"rois\.min_samples"):
        build_rois(run_in(tmp_path / "none", config(tmp_path, min_samples=500)))


def test_a_calendar_is_refused(tmp_path: Path) -> None:
    write_cadastre(tmp_path, 2)
    write_calendar(tmp_path / "calendar.xlsx", Wheat=[])
    chosen = config(tmp_path, calendar={"path": "calendar.xlsx"})
    with pytest.raises(InputError, match=r"rois\.calendar.*window\.anchor=as_of"):
        build_rois(run_in(tmp_path / "run", chosen))
