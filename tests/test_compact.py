import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropray.errors import InputError
from cropray.pipeline.compact import Sample, compact, plan_shards
from cropray.run import Run
from cropray.shards.file import shard_uris
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from tests.export_inputs import PlainSource, export_here, exported_run, make_roi
from tests.samples import make_patch, write_samples

pytestmark = pytest.mark.usefixtures("without_ray")

ROIS = [make_roi("a"), make_roi("b"), make_roi("c", "val")]  # six patches each


def shard_bytes(run: Run) -> dict[str, bytes]:
    return {name: run.folder.read_bytes(f"shards/{name}") for name in run.folder.child("shards").names()}


def again(run: Run) -> None:
    """Forget that compaction was finished, as if the process had been killed before its end."""
    run.folder.delete("stages/compact.json")


@given(
    st.dictionaries(st.text(min_size=1), st.sampled_from(["train", "val"]), min_size=1, max_size=60),
    st.integers(1, 20),
    st.randoms(),
)
def test_shards_are_even_and_do_not_depend_on_the_order_of_the_parts(splits, most, random) -> None:
    samples = [Sample(sample_id, split, 0, "part", 0) for sample_id, split in splits.items()]
    plan = plan_shards(samples, 7, most)
    random.shuffle(samples)
    assert plan_shards(samples, 7, most) == plan
    assert sorted(s.sample_id for shard in plan.values() for s in shard) == sorted(splits)
    for split in set(splits.values()):
        sizes = [len(shard) for name, shard in plan.items() if name.startswith(f"shards/{split}/")]
        assert max(sizes) <= most
        assert max(sizes) - min(sizes) <= 1
        assert len(sizes) == -(-sum(sizes) // most)


def test_the_seed_gives_the_order() -> None:
    samples = [Sample(str(number), "train", 0, "part", 0) for number in range(20)]
    (one,), (two,) = plan_shards(samples, 1, 99).values(), plan_shards(samples, 2, 99).values()
    assert one != two
    assert one != samples


def test_every_sample_of_every_part_is_in_a_shard_of_its_split(tmp_path: Path) -> None:
    run = exported_run(tmp_path, ROIS, **{"shards.shard_samples": 5, "shards.row_group_samples": 2})
    summary = compact(run)
    assert summary == {"samples": {"train": 12, "val": 6}, "shards": {"train": 3, "val": 2}}
    parts = [f"{run.folder.uri}/parts/{name}" for name in run.folder.child("parts").names(".parquet")]
    exported = ShardReader(parts, batch_size=1).table.to_pylist()
    compacted = []
    for split in ("train", "val"):
        table = ShardReader(shard_uris(run.folder, split), batch_size=1).table
        assert set(table["split"].to_pylist()) == {split}
        compacted += table.to_pylist()
    assert sorted(exported, key=str) == sorted(compacted, key=str)


def test_compaction_gives_the_same_bytes_every_time(tmp_path: Path) -> None:
    runs = [exported_run(tmp_path / name, ROIS, **{"shards.shard_samples": 5}) for name in "ab"]
    for run in runs:
        compact(run)
    assert shard_bytes(runs[0]) == shard_bytes(runs[1])


def test_a_stopped_compaction_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    run = exported_run(tmp_path, ROIS, **{"shards.shard_samples": 5})
    compact(run)
    finished = shard_bytes(run)
    again(run)
    run.folder.delete("shards/train/00001.parquet")
    kept = run.folder.local("shards/train/00000.parquet").stat().st_mtime_ns
    compact(run)
    assert shard_bytes(run) == finished
    assert run.folder.local("shards/train/00000.parquet").stat().st_mtime_ns == kept


def test_a_finished_compaction_is_reused(tmp_path: Path) -> None:
    run = exported_run(tmp_path, ROIS)
    summary = compact(run)
    run.folder.delete_folder("parts")  # would be missed if anything were done
    assert compact(run) == summary


def test_shards_of_an_export_that_changed_are_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = exported_run(tmp_path, ROIS, **{"shards.shard_samples": 5})
    compact(run)
    export_here(run.config, ROIS[1:], PlainSource(), run.folder)  # an ROI less: fewer shards
    assert compact(run) == {"samples": {"train": 6, "val": 6}, "shards": {"train": 2, "val": 2}}
    assert "compact: runs again: the ledger of the export changed" in capsys.readouterr().err
    fresh = exported_run(tmp_path / "fresh", ROIS[1:], **{"shards.shard_samples": 5})
    compact(fresh)
    assert shard_bytes(run) == shard_bytes(fresh)


def test_a_sample_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    run = exported_run(tmp_path, [make_roi("a"), make_roi("a", "val")])
    with pytest.raises(InputError, match=r"6 samples occur more than once, such as a-00000-00000 in "):
        compact(run)
    assert not run.folder.exists("shards")


def test_a_part_that_the_ledger_does_not_know_is_refused(tmp_path: Path) -> None:
    run = exported_run(tmp_path, ROIS)
    parts = run.folder.local("parts")
    shutil.copy(parts / "a-000-000.parquet", parts / "a-000-001.parquet")
    with pytest.raises(InputError, match=r"a-000-001\.parquet has 4 samples .* the ledger says 2"):
        compact(run)


def test_what_is_gone_of_an_export_is_missed_with_what_to_do(tmp_path: Path) -> None:
    run = exported_run(tmp_path, ROIS)
    run.folder.delete("parts/b-000-000.parquet")
    with pytest.raises(InputError, match=r"1 of 6 parts .* as .*/b-000-000\.parquet; run export again"):
        compact(run)
    run.folder.delete("ledger.parquet")
    with pytest.raises(InputError, match=r"no ledger\.parquet .*; run export again"):
        compact(run)


def test_a_damaged_part_is_refused(tmp_path: Path) -> None:
    run = exported_run(tmp_path, ROIS)
    part = run.folder.local("parts/b-000-000.parquet")
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"b-000-000\.parquet is truncated or damaged"):
        compact(run)


def test_a_shard_deleted_for_its_damage_is_made_again(tmp_path: Path) -> None:
    run = exported_run(tmp_path, ROIS, **{"shards.shard_samples": 5})
    compact(run)
    finished = shard_bytes(run)
    run.folder.delete("shards/train/00001.parquet")
    compact(run)
    assert shard_bytes(run) == finished


def test_shards_of_another_compaction_are_refused(tmp_path: Path) -> None:
    run = exported_run(tmp_path, ROIS, **{"shards.shard_samples": 5})
    compact(run)
    again(run)
    fewer = Run(
        run.folder,
        run.config.model_copy(update={"shards": run.config.shards.model_copy(update={"shard_samples": 50})}),
    )
    with pytest.raises(InputError, match=r"are not from this compaction; delete .*/shards"):
        compact(fewer)
    run.folder.delete("shards/train/00001.parquet")
    run.folder.delete("shards/train/00002.parquet")
    run.folder.delete("shards/val/00001.parquet")
    with pytest.raises(InputError, match=r"00000\.parquet holds other samples; delete"):
        compact(fewer)


def test_an_export_without_a_single_sample_is_said(tmp_path: Path) -> None:
    run = exported_run(tmp_path, ROIS)
    from cropray.shards.ledger import write_ledger

    write_ledger(Folder(str(tmp_path)), [])
    with pytest.raises(InputError, match="has no samples to compact: every tile is empty"):
        compact(run)


def test_two_compactions_at_the_same_time_make_one_sound_set(tmp_path: Path) -> None:
    run = exported_run(tmp_path, ROIS, **{"shards.shard_samples": 2})
    alone = exported_run(tmp_path / "alone", ROIS, **{"shards.shard_samples": 2})
    compact(alone)
    start = threading.Barrier(2)

    def at_once(_: int) -> dict[str, Any]:
        start.wait()
        return compact(run)

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(at_once, range(2))
    assert one == two
    assert shard_bytes(run) == shard_bytes(alone)
    assert not list(tmp_path.rglob(".tmp-*"))


def test_two_writers_of_one_shard_leave_one_of_the_two_whole(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))

    def write(numbers: range) -> None:
        for _ in range(20):
            write_samples(folder, numbers)

    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write, range(first, first + 4)) for first in (0, 4)]
        while not all(writer.done() for writer in writers):
            if folder.exists("00000.parquet"):
                # Replaced between the reading of footer and tensors, it is refused, but never mixed.
                with suppress(InputError):
                    batch = ShardReader([f"{folder}/00000.parquet"], batch_size=4).take(range(4))
                    first = batch.rows["row"][0] // 16
                    assert first in (0, 4)
                    for i in range(4):
                        np.testing.assert_array_equal(batch.s2_bcthw[i], make_patch(first + i).s2_cthw)
        for writer in writers:
            writer.result()
    assert folder.names() == ["00000.parquet"]
