"""What an evaluation leaves out of the training, and warnings of inputs like none of the training's."""

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cropray.evaluation.evaluate import evaluate
from cropray.evaluation.mosaics import plan_tiles, read_tile
from cropray.evaluation.protocol import InputShift, protocol
from cropray.models.checkpoint import load_checkpoint, save_checkpoint
from cropray.models.shift import input_range
from cropray.shards.reader import ShardReader
from tests.lands import LANDS, ready_run, small_checkpoint


@pytest.fixture(scope="module")
def uris(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    run = ready_run(str(tmp_path_factory.mktemp("run")))
    return {split: run.folder.child(f"shards/{split}/00000.parquet").uri for split in LANDS}


def reader_of(uri: str, monkeypatch: pytest.MonkeyPatch, **columns: Any) -> ShardReader:
    reader = ShardReader([uri], batch_size=4, shuffle=False)
    for name, value in columns.items():
        place = reader.table.column_names.index(name)
        column = pa.array([value] * len(reader.table), reader.table.schema.field(name).type)
        monkeypatch.setattr(reader, "table", reader.table.set_column(place, name, column))
    return reader


def test_a_year_that_the_training_did_not_see_is_left_out(
    uris: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    test = reader_of(uris["test"], monkeypatch)
    checkpoint = small_checkpoint(None)
    assert protocol(test, [uris["train"]], checkpoint)["left_out"] == "blocks"
    later = reader_of(uris["test"], monkeypatch, period_end=[date(2023, 5, 1), date(2023, 6, 1)])
    found = protocol(later, [uris["train"]], checkpoint)
    assert (found["left_out"], found["years"]) == ("year", {"train": [2022], "test": [2023]})
    # Without a train split, the checkpoint tells a year of the training.
    assert protocol(test, [], checkpoint)["left_out"] == "unknown"
    of_2021 = replace(checkpoint, periods=(("2021-04-01", "2021-05-01"), ("2021-05-01", "2021-06-01")))
    assert protocol(test, [], of_2021)["left_out"] == "year"


def test_a_province_without_training_regions_is_left_out(
    uris: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    test = reader_of(uris["test"], monkeypatch, province="Fars")
    # The land has no provinces of its own: nobody can say whether one is left out.
    assert protocol(test, [uris["train"]], small_checkpoint(None))["left_out"] == "blocks"
    found = protocol(test, [uris["train"]], small_checkpoint(None))["regions"]
    assert found == {"train": [], "test": ["Fars"]}


def test_the_share_outside_the_training_is_that_of_the_tiles(uris: dict[str, str]) -> None:
    land = LANDS["train"][1]
    known = input_range(land.s1_cthw[None], land.s2_cthw[None])
    reader = ShardReader([uris["test"]], batch_size=4, shuffle=False)
    tiles = [read_tile(reader, plan) for plan in plan_tiles(reader, 16)]
    alike, brighter = (
        InputShift(replace(small_checkpoint(None), input_range=each))
        for each in (known, {name: (np.array(value) - 900).tolist() for name, value in known.items()})
    )
    for tile in tiles:
        alike.add(tile)
        brighter.add(tile)
    assert alike.share is not None
    assert alike.share < 0.1 < 0.5 < (brighter.share or 0)
    assert InputShift(small_checkpoint(None)).share is None


def test_an_evaluation_warns_of_inputs_like_none_of_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ready_run(str(tmp_path))
    folder = run.folder.child("models/finetune")
    dark = {"s1": [[[-3000, -2900]] * 2] * 2, "s2": [[[0, 100]] * 2] * 10}
    save_checkpoint(replace(load_checkpoint(folder), input_range=dark), folder)
    evaluate(run)
    assert "100% of the values of the test split lie outside" in capsys.readouterr().err
