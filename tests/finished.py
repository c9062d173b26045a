"""A run folder with the records of every stage, for tests of the report."""

import json

import numpy as np

from cropray.evaluation.evaluate import evaluate
from cropray.figures.pictures import comparison_picture
from cropray.run import Run
from cropray.shards.ledger import LedgerRow, write_ledger
from tests.lands import CLASSES, LANDS, ready_run

ROIS = {
    "rois": 7,
    "crs": "EPSG:32632",
    "by_crop": {"maize": 4, "pea": 3},
    "by_split": {"test": 2, "train": 3, "val": 2},
    "missing": {"val": ["pea"]},
    "components": 7,
    "parcels": 61,
    "mended": 2,
    "repeated": 0,
    "dropped": {"no harvest date": 5},
}
HECTARES = {"maize": 12.5, "pea": 30.25, "none of the classes": 7.25}


def finished_run(folder: str, *, with_truth: bool = True) -> Run:
    """A run whose evaluation is real, and whose other records are invented."""
    run = ready_run(folder, with_truth=with_truth)
    run.finish("rois", ROIS)
    run.finish("compact", {"samples": {"train": 9, "val": 6, "test": 8}, "shards": {}})
    write_ledger(run.folder, [ledger_row(land.roi.roi_id) for land in LANDS["test"]])
    history = [{"epoch": e, "train_loss": 1 / e, "val_loss": 1.2 / e, "val_mean_f1": None} for e in (1, 2, 3)]
    run.folder.write_text("models/finetune/history.json", json.dumps(history))
    run.finish("finetune", {"epochs": 3, "seconds": 4.5, "model": "models/finetune"})
    evaluate(run)
    maps = [{"name": name, "folder": "", "hectares": HECTARES} for name in ("north", "south")]
    summary = {"as_of": "2022-06-30", "model": "models/finetune", "tiles": 2, "warning": None, "maps": maps}
    run.folder.write_text("maps/map/summary.json", json.dumps({"key": "k", "summary": summary}))
    nothing = np.zeros((8, 8), np.uint8)
    picture = comparison_picture(nothing, nothing, CLASSES, np.zeros((10, 1, 8, 8), np.int16), "map")
    run.folder.write_bytes("maps/map/north/thumbnail.png", picture)
    run.folder.write_bytes("maps/map/south/thumbnail.png", picture)
    return run


def ledger_row(roi_id: str) -> LedgerRow:
    return LedgerRow(
        tile_id=roi_id,
        roi_id=roi_id,
        crop="maize",
        season="2022",
        split="test",
        recipe="r",
        inputs="i",
        patches=4,
        reason="",
        nbytes=1000,
        checksum="",
        row=0,
        col=0,
        height=64,
        width=64,
        valid_s2=[0.25, 1.0],
        valid_s1=[1.0, 1.0],
        scenes_s2=[3, 4],
        scenes_s1=[2, 2],
    )
