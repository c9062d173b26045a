"""`cropray shards`: what it says of sound shards, and that it tells everything that is wrong."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from cropray.cli import main
from cropray.errors import InputError
from cropray.pipeline.compact import compact
from cropray.run import Run
from cropray.shards.inspection import info, show, verify
from cropray.shards.ledger import read_ledger, write_ledger
from cropray.shards.schema import to_table
from cropray.shards.writer import write_shard
from cropray.storage import Folder
from tests.export_inputs import exported_run, make_roi
from tests.samples import METADATA, make_patch, make_rows, write_samples


@pytest.fixture
def run(tmp_path: Path, without_ray: None) -> Run:
    far = replace(make_roi("b", "val"), bounds=(600_000.0, 4_000_000.0, 600_400.0, 4_000_320.0))
    run = exported_run(tmp_path, [make_roi("a"), far], **{"shards.shard_samples": 4})
    compact(run)
    return run


def flip(path: Path, tensor: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(tensor) + 5] ^= 4
    path.write_bytes(data)


def test_a_sound_run_is_found_sound(run: Run) -> None:
    assert verify(str(run.folder)) == {
        "shards": 4,
        "samples": {"train": 6, "val": 6},
        "checksums": "all match",
        "splits": "no pixel in two of them (12 of 12 samples have a place)",
        "ledger": "agrees",
    }


def test_one_shard_and_a_folder_without_a_ledger_are_verified_too(tmp_path: Path) -> None:
    (uri,) = write_samples(Folder(str(tmp_path)), range(5), codec="compact")
    for target in (uri, str(tmp_path)):
        found = verify(target)
        assert (found["shards"], found["samples"], found["ledger"]) == (1, {"train": 5}, "there is none")


def test_every_damaged_sample_is_told_by_file_and_row(tmp_path: Path) -> None:
    one, two = write_samples(Folder(str(tmp_path)), range(16), codec="none")
    flip(Path(one), make_patch(2).s2_cthw.tobytes())
    flip(Path(one), make_patch(5).label_hw.tobytes())
    flip(Path(two), make_patch(9).s1_cthw.tobytes())
    with pytest.raises(InputError) as caught:
        verify(str(tmp_path))
    text = str(caught.value)
    assert "3 problems" in text
    for uri, row, number in ((one, 2, 2), (one, 5, 5), (two, 1, 9)):
        assert f"{uri}, row {row}: sample maize-1-{number:05d} is damaged" in text


def test_a_cut_shard_does_not_hide_what_else_is_wrong(tmp_path: Path) -> None:
    one, two = write_samples(Folder(str(tmp_path)), range(16), codec="none")
    Path(one).write_bytes(Path(one).read_bytes()[:-300])
    flip(Path(two), make_patch(9).s1_cthw.tobytes())
    with pytest.raises(
        InputError, match=r"(?s)2 problems.*00000\.parquet is truncated.*00001\.parquet, row 1:"
    ):
        verify(str(tmp_path))


def test_another_data_set_and_a_sample_that_occurs_twice(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    write_samples(folder, [0, 1])
    other = replace(METADATA, classes=("pea", "maize"))
    write_shard(folder, "z.parquet", other, [to_table(make_rows([1]), other)], codec="none")
    with pytest.raises(
        InputError, match=r"(?s)z.parquet are of different data sets .classes.*sample maize-1-00001 occurs 2"
    ):
        verify(str(tmp_path))


def test_a_missing_shard_and_counts_beside_the_ledger(run: Run) -> None:
    run.folder.delete("shards/train/00001.parquet")
    with pytest.raises(
        InputError,
        match=r"(?s)has 1 shards, but compact wrote 2.*3 samples of ROI a in train, the ledger says 6",
    ):
        verify(str(run.folder))


def test_a_ledger_of_other_counts(run: Run) -> None:
    ledger = read_ledger(run.folder)
    write_ledger(run.folder, [replace(ledger[0], patches=ledger[0].patches + 1), *ledger[1:]])
    with pytest.raises(InputError, match="6 samples of ROI a in train, the ledger says 7"):
        verify(str(run.folder))


def test_a_shard_in_the_folder_of_another_split(run: Run) -> None:
    source, target = (run.folder.local(f"shards/{split}/00000.parquet") for split in ("val", "train"))
    target.write_bytes(source.read_bytes())
    with pytest.raises(InputError, match=r"train/00000.parquet holds samples of val"):
        verify(str(run.folder))


def test_splits_that_share_a_pixel(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    moved = [row | {"sample_id": "other", "row": row["row"] + 15} for row in make_rows([0], "test")]
    for name, rows in (("a", make_rows([0])), ("b", moved)):
        write_shard(folder, f"{name}.parquet", METADATA, [to_table(rows, METADATA)], codec="none")
    with pytest.raises(InputError, match=r"maize-1-00000 \(train\) and other \(test\)"):
        verify(str(tmp_path))
    beside = [row | {"row": row["row"] + 1} for row in moved]
    write_shard(folder, "b.parquet", METADATA, [to_table(beside, METADATA)], codec="none")
    assert verify(str(tmp_path))["samples"] == {"test": 1, "train": 1}


def test_a_run_whose_ledger_is_gone_or_damaged(run: Run) -> None:
    run.folder.write_text("ledger.parquet", "PAR1 and no more PAR1")
    with pytest.raises(InputError, match=r"1 problem\n.*ledger\.parquet is damaged; run export again"):
        verify(str(run.folder))
    run.folder.delete("ledger.parquet")
    with pytest.raises(InputError, match=r"there is no ledger\.parquet in .*run export again"):
        verify(str(run.folder))


def test_reading_the_ledger_leaves_no_thread_that_could_abort_the_process_at_its_end(run: Run) -> None:
    code = "import sys; from cropray.shards.ledger import read_ledger; from cropray.storage import Folder;"
    code += "print(len(read_ledger(Folder(sys.argv[1]))), 'pyarrow.dataset' in sys.modules)"
    command = [sys.executable, "-c", code, str(run.folder)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "4 False\n"


def test_info_comes_from_the_footers(run: Run) -> None:
    about = info(str(run.folder))
    assert about["samples"] == {"train": 6, "val": 6}
    assert about["rois"] == 2
    assert about["codec"] == ["LZ4"]
    assert about["tensors"]["s2"] == [10, 2, 16, 16, "<i2"]
    assert about["months"] == ["2022-05-01", "2022-07-01"]
    assert about["valid_s1"] == 0.5  # its first month has no scene
    stored = sum(path.stat().st_size for path in run.folder.local("shards").rglob("*.parquet"))
    assert 0 < about["bytes"] < stored


def test_a_picture_shows_every_month_and_the_label(tmp_path: Path) -> None:
    write_samples(Folder(str(tmp_path)), range(6))
    picture = imread(io.BytesIO(show(str(tmp_path), "maize-1-00004")))
    assert picture.shape[1] > picture.shape[0] > 200
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 200


def test_a_damaged_shard_is_named_and_the_others_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = write_samples(Folder(str(tmp_path)), range(16), codec="none")
    Path(one).write_bytes(Path(one).read_bytes()[:-300])
    picture = show(str(tmp_path), "maize-1-00012")
    assert picture == show(two, "maize-1-00012")
    assert f"{one} is truncated or damaged" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"(?s)no sample 'maize-1-00001'.*00000\.parquet is truncated"):
        show(str(tmp_path), "maize-1-00001")


def test_a_sample_that_is_not_there(tmp_path: Path) -> None:
    write_samples(Folder(str(tmp_path)), range(6))
    with pytest.raises(InputError, match=r"no sample 'gone' in .* the first is 'maize-1-00000'"):
        show(str(tmp_path), "gone")


def test_nothing_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there are no shards in .*; run compact"):
        info(str(tmp_path))
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(InputError, match=r"notes\.txt is not a \.parquet file; give a run"):
        info(str(tmp_path / "notes.txt"))


def test_parts_are_looked_at_where_they_are_named_and_not_taken_for_shards(tmp_path: Path) -> None:
    run = exported_run(tmp_path, [make_roi("a")])
    with pytest.raises(InputError, match=r"has no shards yet: run compact.*give .*/parts"):
        verify(str(run.folder))
    assert verify(f"{run.folder}/parts")["samples"] == {"train": 6}


def test_shards_of_several_data_sets_are_not_described_as_one(tmp_path: Path) -> None:
    write_samples(Folder(str(tmp_path / "a")), [0, 1])
    write_samples(Folder(str(tmp_path / "b")), [2], metadata=replace(METADATA, classes=("pea", "maize")))
    with pytest.raises(InputError, match=r"a/0.* and .*b/0.* are of different data sets \(classes"):
        info(str(tmp_path))


def test_the_command_line_calls_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (uri,) = write_samples(Folder(str(tmp_path)), range(3))

    def run_line(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["shards", *arguments])
        assert not end.value.code
        return capsys.readouterr().out

    assert json.loads(run_line("verify", uri))["shards"] == 1
    assert json.loads(run_line("info", str(tmp_path)))["samples"] == {"train": 3}
    target = tmp_path / "one.png"
    assert run_line("show", "maize-1-00001", "--run", uri, "--out", str(target)).strip() == str(target)
    assert target.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit) as refused:
        main(["shards", "show", "maize-1-00001", "--run", uri, "--out", str(tmp_path / "one.jpg")])
    assert refused.value.code == 2
    assert "the picture is a PNG" in capsys.readouterr().err
    assert not (tmp_path / "one.jpg").exists()
