"""A run folder belongs to one configuration and records its stages."""

from pathlib import Path

import pytest

from cropray.config.load import load_config
from cropray.errors import InputError
from cropray.run import Run
from cropray.storage import Folder


def open_run(path: Path, *settings: str) -> Run:
    return Run(Folder(str(path)), load_config(None, settings))


def test_a_finished_stage_is_reused(tmp_path: Path) -> None:
    assert open_run(tmp_path).finished("rois") is None
    open_run(tmp_path).claim("rois")
    assert open_run(tmp_path).finished("rois") is None  # claimed, not finished
    open_run(tmp_path).finish("rois", {"rois": 3})
    assert open_run(tmp_path).finished("rois") == {"rois": 3}
    assert open_run(tmp_path).summary("rois") == {"rois": 3}
    assert load_config(tmp_path / "config.yaml") == load_config(None)


def test_a_stage_with_other_inputs_runs_again_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(tmp_path)
    run.finish("evaluate", {"pixels": 3}, {"model": "a", "shards": "b"})
    assert run.finished("evaluate", {"shards": "b", "model": "a"}) == {"pixels": 3}
    assert capsys.readouterr().err == ""
    assert run.finished("evaluate", {"model": "other", "shards": "b"}) is None
    assert capsys.readouterr().err == "evaluate: runs again: model changed since it was finished\n"
    assert run.finished("evaluate", {"model": "other", "shards": "too"}) is None
    assert "model, shards changed" in capsys.readouterr().err


def test_an_attempt_that_did_not_end_remembers_its_inputs(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    assert run.changed("finetune", {"shards": "a"}) == []
    run.claim("finetune", {"shards": "a"})
    assert run.changed("finetune", {"shards": "a"}) == []
    assert run.changed("finetune", {"shards": "b"}) == ["shards"]


@pytest.mark.parametrize(
    ("folder", "reference", "place"),
    [
        ("/runs/b", "run:../a/models/pretrain", "/runs/a/models/pretrain"),
        ("/runs/b", "run:models/pretrain", "/runs/b/models/pretrain"),
        ("s3://bucket/runs/b", "run:../a/models/pretrain", "s3://bucket/runs/a/models/pretrain"),
        ("s3://bucket/b", "gs://other/model", "gs://other/model"),
        ("s3://bucket/b", "/models/a", "/models/a"),
    ],
)
def test_a_reference_from_the_run_folder_moves_with_it(folder: str, reference: str, place: str) -> None:
    assert Run(Folder(folder), load_config(None, ())).place(reference).uri == place


def test_a_damaged_record_is_named_with_what_to_do(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.finish("rois", {})
    run.folder.write_text("stages/rois.json", run.folder.read_text("stages/rois.json")[:-5])
    with pytest.raises(InputError, match=r"stages/rois\.json is damaged .*Delete it and run rois again"):
        run.begin("export")


def test_the_recorded_settings_of_a_stage_do_not_depend_on_the_current_ones(tmp_path: Path) -> None:
    open_run(tmp_path, "rois.eps_m=123").finish("rois", {})
    assert open_run(tmp_path).recorded("finetune") is None
    open_run(tmp_path, "finetune.lr=0.5").claim("finetune")
    found = open_run(tmp_path).recorded("finetune")
    assert found is not None
    assert (found["rois"]["eps_m"], found["finetune"]["lr"]) == (123, 0.5)
    assert "tracking" not in found


def test_every_map_has_a_record_of_its_own(tmp_path: Path) -> None:
    for name in ("june", "july"):
        open_run(tmp_path, f"predict.name={name}").finish("predict", {"map": name})
    assert open_run(tmp_path, "predict.name=june").finished("predict") == {"map": "june"}
    other = open_run(tmp_path, "predict.name=june", "predict.overlap=4")
    with pytest.raises(InputError, match=r"(?s)overlap: 16 there, 4 now.*--set predict\.name"):
        other.begin("predict")
    open_run(tmp_path, "predict.name=june", "predict.batch_size=1").begin("predict")


def test_another_configuration_is_refused_by_key(tmp_path: Path) -> None:
    open_run(tmp_path).claim("rois")
    with pytest.raises(InputError, match=r"rois\.eps_m: 2000\.0 there, 5\.0 now") as caught:
        open_run(tmp_path, "rois.eps_m=5").begin("rois")
    assert "--run folder" in str(caught.value)


def test_a_setting_of_an_earlier_stage_is_checked_too(tmp_path: Path) -> None:
    open_run(tmp_path).finish("rois", {})
    with pytest.raises(InputError, match=r"rois\.eps_m"):
        open_run(tmp_path, "rois.eps_m=5").begin("export")


def test_a_setting_of_a_later_stage_may_change(tmp_path: Path) -> None:
    open_run(tmp_path).finish("rois", {"rois": 1})
    later = open_run(tmp_path, "finetune.lr=0.5")
    later.begin("rois")
    assert later.finished("rois") == {"rois": 1}


def test_a_stage_names_the_earlier_stage_that_it_needs(tmp_path: Path) -> None:
    open_run(tmp_path).claim("rois")
    with pytest.raises(InputError, match="export needs rois first"):
        open_run(tmp_path).begin("export")


def test_a_stage_with_unusable_inputs_does_not_claim_the_folder(tmp_path: Path) -> None:
    open_run(tmp_path, "rois.table=absent.csv").begin("rois")
    assert not list(tmp_path.iterdir())
    open_run(tmp_path, "rois.table=right.csv").begin("rois")


def test_the_configuration_in_the_folder_has_each_stage_as_it_ran(tmp_path: Path) -> None:
    for stage in ("rois", "export", "compact"):
        open_run(tmp_path).finish(stage, {})
    open_run(tmp_path, "finetune.epochs=5").finish("finetune", {})
    open_run(tmp_path, "evaluate.bootstrap=7").finish("evaluate", {})
    kept = load_config(tmp_path / "config.yaml")
    assert (kept.finetune.epochs, kept.evaluate.bootstrap) == (5, 7)
