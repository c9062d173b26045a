"""What an export would do and take, said before anything is asked for or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cropray.config import Config
from cropray.errors import InputError
from cropray.pipeline.export import dry_run, plan_export
from cropray.pipeline.tiles import plan_tiles
from cropray.rois.build import build_rois
from cropray.rois.store import read_rois
from cropray.run import Run
from cropray.storage import Folder
from tests.export_inputs import PlainSource, export_here

TABLE = """country,harvest_date,min_lon,min_lat,max_lon,max_lat
near,2022-08-01,4.30,50.55,4.44,50.64
far,2022-08-01,4.70,50.65,4.718,50.661
"""


def new_run(folder: Path, **settings: Any) -> Run:
    (folder / "table.csv").write_text(TABLE)
    config = Config.model_validate(
        {
            "classes": ["wheat"],
            "rois": {
                "kind": "table",
                "data_root": str(folder),
                "table": "table.csv",
                "split": {"allow_empty": True},
            },
            "labels": {"parcels": False, "class_map": {"path": "source:eucropmap", "codes": [211]}},
            "source": {"kind": "earthengine", "earthengine": {"url": "http://127.0.0.1:9"}},
        }
        | settings
    )
    run = Run(Folder(str(folder / "run")), config)
    build_rois(run)
    return run


def files(run: Run) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.folder.local("").rglob("*") if path.is_file()}


def test_a_plan_asks_for_nothing_and_writes_nothing(tmp_path: Path) -> None:
    run = new_run(tmp_path)  # nobody listens at its address
    before = files(run)
    got = dry_run(run)
    assert files(run) == before
    tiles = [
        tile for roi in read_rois(run.folder) for tile in plan_tiles(roi, run.config.grid, run.config.patch)
    ]
    assert (got["rois"], got["tiles"], got["tiles_done"]) == (2, len(tiles), 0)
    assert len(tiles) > 4
    patches = sum(len(tile.patches) for tile in tiles)
    assert got["patches_left_at_most"] == patches
    assert got["bytes_left_at_most"] == patches * (64 * 64 * (12 * 6 * 2 + 1))
    pixels = sum(tile.grid.height * tile.grid.width for tile in tiles)
    assert got["requests_left"]["requests"] >= len(tiles)
    assert got["requests_left"]["response_bytes"] == pixels * (72 * 3 + 2)
    assert got["requests_left"]["eecu_hours"] == pytest.approx(pixels * 6 / 1e6 * 20 / 3600, abs=1e-3)


def test_what_is_done_is_not_counted_again(tmp_path: Path) -> None:
    simulated = {"source": {"kind": "simulated"}, "labels": {"parcels": False}}
    run = new_run(tmp_path, **simulated)
    source = PlainSource()
    first = read_rois(run.folder)[:1]
    export_here(run.config, first, source, run.folder)
    plan = plan_export(run, source)
    done = {tile.tile_id for tile in plan_tiles(first[0], run.config.grid, run.config.patch)}
    assert plan.done == done
    assert {tile.tile_id for tile in plan.left} == {tile.tile_id for tile in plan.tiles} - done


def test_regions_come_first(tmp_path: Path) -> None:
    run = Run(Folder(str(tmp_path)), Config())
    with pytest.raises(InputError, match="needs rois first"):
        dry_run(run)
