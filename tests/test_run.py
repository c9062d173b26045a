"""A run folder belongs to one configuration and records its stages."""

import json
import re
from pathlib import Path

import pytest

from cropray.config import Config
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
    run.folder.delete("stages/rois.json")
    run.begin("rois")


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


# What each stage reads, as far as no input's fingerprint covers it: a setting of each section.
SETTINGS = {
    "seed": "seed=5",
    "classes": "classes=[pea]",
    "rois": "rois.eps_m=5",
    "source": "source.kind=earthengine",
    "window": "window.months=3",
    "grid": "grid.resolution=20",
    "composite": "composite.scl_invalid=[0]",
    "labels": "labels.parcels=false",
    "patch": "patch.tile_patches=4",
    "shards": "shards.codec=none",
    "model": "model.width=8",
    "pretrain": "pretrain.lr=0.5",
    "finetune": "finetune.lr=0.5",
    "tune": "tune.reduction=5",
    "evaluate": "evaluate.bootstrap=5",
    "predict": "predict.overlap=4",
    "report": "report.language=fa",
    "tracking": "tracking.experiment=other",
    "ray": "ray.concurrency=7",
    "demo": "demo.pretraining={seed: 3}",
    "series": "series.block_m=77",  # by its hash among the inputs
}
DATA = {"seed", "rois", "source", "classes", "window", "grid", "composite", "labels", "patch", "shards"}
READS = {
    "rois": {"seed", "rois"},
    "export": DATA - {"shards"},
    "compact": DATA,
    "pretrain": DATA | {"model", "pretrain"},
    "finetune": DATA | {"model", "finetune"},
    "tune": DATA | {"model", "finetune", "tune"},
    "evaluate": DATA | {"evaluate"},
    "predict": {"predict"},
}


@pytest.mark.parametrize("stage", READS)
def test_a_stage_depends_on_what_it_reads_and_on_nothing_else(tmp_path: Path, stage: str) -> None:
    assert SETTINGS.keys() == Config.model_fields.keys()
    for name in ("rois", "export", "compact", stage):
        open_run(tmp_path).finish(name, {})
    refused = set()
    for section, setting in SETTINGS.items():
        run = open_run(tmp_path, setting)
        try:
            run.begin(stage)
        except InputError as error:
            refused |= {section} & set(re.findall(r"(?:^|\n)  (\w+)", str(error)))
    assert refused == READS[stage]


def test_a_table_of_rois_depends_on_the_classes_that_its_rows_name(tmp_path: Path) -> None:
    open_run(tmp_path, "rois.kind=table", "classes=[a]").finish("rois", {})
    with pytest.raises(InputError, match="classes"):
        open_run(tmp_path, "rois.kind=table", "classes=[b]").begin("rois")


def test_only_the_kind_of_source_that_is_used_counts(tmp_path: Path) -> None:
    items = "source.stac.s2.items=a.json"
    open_run(tmp_path, items).finish("rois", {})
    open_run(tmp_path, items).claim("export")
    access = ["source.stac.s2.sign=planetary-computer", "source.stac.s1.s3.profile=mine"]
    open_run(tmp_path, items, "source.simulated.seed=3", "source.ingestion_days=9", *access).begin("export")
    with pytest.raises(InputError, match=r"source\.stac\.s2\.items"):
        open_run(tmp_path).begin("export")
    simulated = tmp_path / "simulated"
    open_run(simulated, "source.kind=simulated").finish("rois", {})
    with pytest.raises(InputError, match=r"source\.simulated\.year"):
        open_run(simulated, "source.kind=simulated", "source.simulated.year=2020").begin("rois")
    open_run(simulated, "source.kind=simulated", items).begin("rois")


def test_a_record_of_an_earlier_version_counts_by_the_sections_that_both_know(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.finish("rois", {})
    record = json.loads(run.folder.read_text("stages/rois.json"))
    record["settings"] |= {"classes": ["old"], "source": {"kind": "stac", "stac": {}, "gone": 1}}
    del record["settings"]["rois"]["min_size_m"]  # as if it did not exist then
    run.folder.write_text("stages/rois.json", json.dumps(record))
    run.begin("export")
    with pytest.raises(InputError, match=r"rois\.min_size_m: None there, 700"):
        open_run(tmp_path, "rois.min_size_m=700").begin("export")


def test_another_recipe_is_named_and_not_all_that_it_sets(tmp_path: Path) -> None:
    for stage in ("rois", "export", "compact", "finetune"):
        open_run(tmp_path).finish(stage, {})
    with pytest.raises(InputError) as refused:
        open_run(tmp_path, "finetune.recipe=seed", "finetune.epochs=3").begin("finetune")
    named = [line.strip().partition(":")[0] for line in str(refused.value).splitlines()[1:-1]]
    assert named == ["finetune.epochs", "finetune.recipe"]
    with pytest.raises(InputError) as refused:
        open_run(tmp_path, "source.kind=simulated").begin("export")
    assert re.findall(r"source\.[\w.]+", str(refused.value)) == ["source.kind"]


def test_a_finished_stage_whose_files_are_gone_runs_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(tmp_path)
    run.finish("rois", {"rois": 3})
    assert run.finished("rois", files=["config.yaml"]) == {"rois": 3}
    assert run.finished("rois", files=["config.yaml", "rois/rois.parquet"]) is None
    assert "rois/rois.parquet is missing" in capsys.readouterr().err


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
