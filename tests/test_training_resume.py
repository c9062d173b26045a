"""A training is taken up only where it was begun: on the same data, with the same settings."""

from pathlib import Path
from typing import Any

import pytest

from cropray.errors import InputError
from cropray.storage import Folder
from cropray.training.plan import TrainingPlan, make_plan
from cropray.training.state import Snapshot, StateWriter
from cropray.training.worker import resumable
from tests.training_data import make_run, write_split


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder(str(tmp_path_factory.mktemp("run")))
    write_split(folder, "train", 8)
    return folder


def planned(folder: Folder, **settings: Any) -> TrainingPlan:
    return make_plan(make_run(folder, **settings), "finetune")


def leave_state(plan: TrainingPlan) -> None:
    writer = StateWriter(plan.states)
    writer.put(Snapshot("epoch-0001-step-0000001", dict(plan.identity), {}), None, None)
    writer.wait()


def test_a_training_of_other_data_or_settings_is_refused(folder: Folder, tmp_path: Path) -> None:
    leave_state(planned(folder))
    snapshot, damaged = resumable(planned(folder, workers=2, threads=2), 0)
    assert snapshot is not None
    assert (snapshot.name, damaged) == ("epoch-0001-step-0000001", [])
    with pytest.raises(InputError, match=r"checkpoints/finetune .* other data or"):
        resumable(planned(folder, lr=0.5), 0)
    other = Folder(str(tmp_path))
    write_split(other, "train", 8, seed=1)
    (tmp_path / "checkpoints").symlink_to(folder.local("checkpoints"))
    with pytest.raises(InputError, match=r"checkpoints/finetune .* other data or"):
        resumable(planned(other), 0)


def test_a_training_without_a_state_begins(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    write_split(folder, "train", 8)
    assert resumable(planned(folder), 0) == (None, [])
