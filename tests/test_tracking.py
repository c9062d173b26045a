"""Runs, the registry and the registered model."""

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import unquote

import mlflow
import numpy as np
import pytest
import torch
import yaml

from cropray.config import Config, RayConfig, TrackingConfig
from cropray.config.load import updated
from cropray.errors import InputError
from cropray.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cropray.models.dual_unet3d import NetworkSpec
from cropray.models.inference import Predictor
from cropray.models.normalisation import FixedNormalisation
from cropray.run import Run
from cropray.storage import Folder
from cropray.tracking.connection import open_client, tracking_uri
from cropray.tracking.packaging import save_model_folder
from cropray.tracking.registry import register, register_checkpoint, relocate, resolve_model
from cropray.tracking.runs import tracked
from cropray.tracking.versions import list_versions
from tests.lands import beside_others

CLASSES = ("maize", "pea", "onion")


def small_checkpoint(seed: int = 0) -> Checkpoint:
    torch.manual_seed(seed)
    network = NetworkSpec(n_classes=len(CLASSES), width=2, months=6)
    return Checkpoint(
        classes=CLASSES,
        network=network,
        normalisation=FixedNormalisation(),
        window={"anchor": "harvest", "months": 6, "lead_months": 1, "as_of": None},
        s1_quantity="gamma0",
        weights=network.build().state_dict(),
        thresholds=(0.3, 0.4, 0.5),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = Folder(str(tmp_path_factory.mktemp("run")))
    return Run(folder, Config(classes=CLASSES))


@pytest.fixture(scope="module")
def registered(run: Run) -> str:
    """The version under which a small finetuned model of the run is registered."""
    folder = run.folder.child("models/finetune")
    save_checkpoint(small_checkpoint(), folder)
    with tracked(run, "finetune") as tracker:
        return register(run, "finetune", folder, tracker)


def stored_patches(seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "s1": rng.integers(-2500, 0, (2, 2, 6, 32, 48)).astype(np.int16),
        "s2": rng.integers(0, 6000, (2, 10, 6, 32, 48)).astype(np.int16),
    }


def test_a_stage_that_resumes_continues_its_run(run: Run) -> None:
    def first_attempt() -> None:
        with tracked(run, "pretrain") as tracker:
            tracker.metrics({"train/loss": 0.9, "val/loss": 1.1}, step=0)
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        first_attempt()
    client = open_client(tracking_uri(run))
    first = json.loads(run.folder.read_text("mlflow/pretrain.json"))["run_id"]
    assert client.get_run(first).info.status == "FAILED"
    with tracked(run, "pretrain") as tracker:
        assert tracker.run_id == first
        assert client.get_run(first).info.status == "RUNNING"
        tracker.metrics({"train/loss": 0.5}, step=1)
    assert client.get_run(first).info.status == "FINISHED"
    history = client.get_metric_history(first, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.9), (1, 0.5)]


def test_an_interrupted_run_is_killed_not_failed(run: Run) -> None:
    with pytest.raises(KeyboardInterrupt), tracked(run, "evaluate") as tracker:
        raise KeyboardInterrupt
    assert open_client(tracking_uri(run)).get_run(tracker.run_id).info.status == "KILLED"


def test_a_server_that_fails_during_a_stage_is_named(run: Run) -> None:
    def stage() -> None:
        with tracked(run, "compact") as tracker:
            tracker.client.delete_run(tracker.run_id)
            tracker.metrics({"loss": 1.0}, step=1)

    with pytest.raises(InputError, match=r"MLflow at .*mlflow\.db .*failed: .*same command again"):
        stage()


def test_the_resolved_configuration_is_recorded(run: Run, tmp_path: Path) -> None:
    with tracked(run, "pretrain") as tracker:
        tracker.params({"parameters": 12345})
    client = open_client(tracking_uri(run))
    params = client.get_run(tracker.run_id).data.params
    assert params["finetune.batch_size"] == str(run.config.finetune.batch_size)
    assert params["window.lead_months"] == "1"
    assert params["parameters"] == "12345"
    copy = client.download_artifacts(tracker.run_id, "config.yaml", str(tmp_path))
    assert Path(copy).read_text() == run.config.to_yaml()
    assert Path(client.get_run(tracker.run_id).info.artifact_uri.removeprefix("file://")).is_relative_to(
        run.folder.local("mlflow")
    )


def test_names_of_users_become_names_that_mlflow_accepts(tmp_path: Path) -> None:
    named = {"rois.split.named": {"Hauts-de-France (60)": "val"}}
    odd = Run(Folder(str(tmp_path)), updated(Config(), named))
    with tracked(odd, "pretrain") as tracker:
        tracker.metrics({"val_f1/dry pulses, vegetables and flowers": 0.5}, step=1)
    data = open_client(tracking_uri(odd)).get_run(tracker.run_id).data
    assert data.metrics == {"val_f1/dry pulses_ vegetables and flowers": 0.5}
    assert data.params["rois.split.named.Hauts-de-France _60_"] == "val"


def test_a_parameter_keeps_the_value_with_which_the_run_began(run: Run) -> None:
    with tracked(run, "pretrain"):
        pass
    changed = Run(run.folder, run.config.model_copy(update={"ray": RayConfig(concurrency=7)}))
    with tracked(changed, "pretrain") as tracker:
        pass
    params = open_client(tracking_uri(run)).get_run(tracker.run_id).data.params
    assert params["ray.concurrency"] == str(run.config.ray.concurrency)


def test_artifacts_are_beside_the_database_of_tracking_uri(tmp_path: Path) -> None:
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path / 'shared' / 'all.db'}")
    other = Run(Folder(str(tmp_path / "run")), Config(classes=CLASSES, tracking=tracking))
    with tracked(other, "finetune"):
        pass
    assert list((tmp_path / "shared" / "artifacts").rglob("config.yaml"))


def test_a_remote_run_folder_needs_a_server() -> None:
    remote = Run(Folder("memory://bucket/run"), Config())
    with pytest.raises(InputError, match=r"tracking\.uri"), tracked(remote, "finetune"):
        pass


def test_an_absent_server_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = Config(tracking=TrackingConfig(uri="http://127.0.0.1:9"))
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9.*tracking\.uri.*check that it runs"):
        resolve_model("models:/cropray@candidate", Run(Folder(str(tmp_path)), config))


def test_a_server_that_never_answers_is_reported_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match=rf"{uri} .*no answer in 0\.3 s"):
            open_client(uri, answer_s=0.3)


def test_an_empty_reference_is_the_runs_own_last_model(tmp_path: Path) -> None:
    run = Run(Folder(str(tmp_path)), Config())
    with pytest.raises(InputError, match="no trained model yet"):
        resolve_model("", run)
    save_checkpoint(small_checkpoint(), run.folder.child("models/pretrain"))
    assert resolve_model("", run).uri.endswith("models/pretrain")
    save_checkpoint(small_checkpoint(), run.folder.child("models/finetune"))
    assert resolve_model("", run).uri.endswith("models/finetune")


def test_a_reference_by_path_must_be_a_checkpoint(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(InputError, match=r"checkpoint\.json.*notes\.txt"):
        resolve_model(str(tmp_path), run)


def test_a_registered_model_is_the_checkpoint_by_alias_and_by_version(run: Run, registered: str) -> None:
    wanted = small_checkpoint()
    for reference in ("models:/cropray@candidate", f"models:/cropray/{registered}"):
        found = load_checkpoint(resolve_model(reference, run))
        assert found.describe() == wanted.describe()
        assert all(torch.equal(found.weights[name], wanted.weights[name]) for name in wanted.weights)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("models:/cropray@champion", r"versions \[1.*@candidate"),
        ("models:/cropray/99", r"versions \[1"),
        ("models:/wheat@champion", r"no model 'wheat'.*it has: cropray"),
        ("models:/cropray", "form models:/NAME@ALIAS"),
    ],
)
def test_a_missing_model_is_reported_with_the_known_ones(
    run: Run, registered: str, reference: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        resolve_model(reference, run)


def test_a_model_is_found_among_many_and_by_any_name(tmp_path: Path) -> None:
    tracking = TrackingConfig(model_name="farmer's crops")
    crowded = Run(Folder(str(tmp_path)), Config(classes=CLASSES, tracking=tracking))
    client = open_client(tracking_uri(crowded))
    for number in range(101):  # a page of a list holds a hundred
        client.create_registered_model(f"another {number:03d}")
    folder = crowded.folder.child("models/finetune")
    save_checkpoint(small_checkpoint(), folder)
    with tracked(crowded, "finetune") as tracker:
        assert register(crowded, "finetune", folder, tracker) == "1"
    assert load_checkpoint(resolve_model("models:/farmer's crops@candidate", crowded)).classes == CLASSES


def test_a_registered_model_names_every_package_that_it_imports(run: Run, registered: str) -> None:
    location = open_client(tracking_uri(run)).get_model_version_download_uri("cropray", registered)
    model = Path(location.removeprefix("file://"))
    sources = [*(model / "code").rglob("*.py"), *model.glob("*.py")]
    trees = [ast.parse(path.read_text()) for path in sources]
    # What is imported at the head of a file; the rest is for what a registered model does not do.
    heads = [node for tree in trees for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name for node in heads]
    imported = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"cropray"}
    required = {line.split("==")[0] for line in (model / "requirements.txt").read_text().splitlines()}
    assert {"torch", "mlflow"} <= imported <= required


def test_the_registered_model_predicts_what_the_checkpoint_does(run: Run, registered: str) -> None:
    before = mlflow.get_tracking_uri()
    client = open_client(tracking_uri(run))
    location = client.get_model_version_download_uri("cropray", registered)
    model = mlflow.pyfunc.load_model(location)
    batch = stored_patches()
    expected = Predictor(small_checkpoint()).probabilities(batch["s1"], batch["s2"])
    np.testing.assert_array_equal(model.predict(batch), expected)
    assert [spec.name for spec in model.metadata.signature.inputs.inputs] == ["s1", "s2"]
    with pytest.raises(mlflow.exceptions.MlflowException, match="s2"):
        model.predict({"s1": batch["s1"]})
    assert mlflow.get_tracking_uri() == before


def test_a_registered_model_lists_the_class_lists_of_all_its_heads(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "checkpoint"))
    save_checkpoint(beside_others(small_checkpoint(), "crops"), folder)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    save_model_folder(tmp_path / "model", load_checkpoint(folder), folder, scratch, {}, {})
    metadata = yaml.safe_load((tmp_path / "model/MLmodel").read_text())["metadata"]
    assert metadata["classes"] == ["forest"]
    assert metadata["thresholds"] == [0.5]
    assert metadata["heads"] == {"crops": list(CLASSES)}
    assert (metadata["none"], metadata["s1"]) == (254, ["VV", "VH"])


def test_the_registered_model_loads_in_a_bare_process(run: Run, registered: str, tmp_path: Path) -> None:
    batch = stored_patches()
    np.savez(tmp_path / "batch.npz", **batch)
    script = """
import json, sys
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/cropray@candidate")
batch = np.load(sys.argv[2])
np.save(sys.argv[3], model.predict({"s1": batch["s1"], "s2": batch["s2"]}))
import cropray
print(json.dumps({"package": cropray.__file__, "ray": "ray" in sys.modules}))
"""
    out = tmp_path / "out.npy"
    done = subprocess.run(
        [sys.executable, "-c", script, tracking_uri(run), str(tmp_path / "batch.npz"), str(out)],
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    process = json.loads(done.stdout)
    # The copy that travelled with the model, not the package under test.
    assert Path(process["package"]).is_relative_to(run.folder.local("mlflow/artifacts"))
    assert not process["ray"]
    expected = Predictor(small_checkpoint()).probabilities(batch["s1"], batch["s2"])
    np.testing.assert_allclose(np.load(out), expected, atol=1e-6)


def test_loading_names_packages_of_another_version(run: Run, registered: str, tmp_path: Path) -> None:
    source = open_client(tracking_uri(run)).get_model_version_download_uri("cropray", registered)
    model = Path(mlflow.artifacts.download_artifacts(source, dst_path=str(tmp_path)))
    wanted = (model / "requirements.txt").read_text()
    (model / "requirements.txt").write_text(re.sub(r"torch==\S+", "torch==1.0.0", wanted))
    script = "import sys, mlflow; mlflow.pyfunc.load_model(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", script, str(model)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert re.search(r"torch \(current: \S+, required: torch==1\.0\.0\)", done.stderr), done.stderr
    assert "numpy (" not in done.stderr


@pytest.fixture
def copy(run: Run, registered: str, tmp_path: Path) -> Iterator[Run]:
    """A copy of the run folder, from the moment at which the original's files are no longer there."""
    with tracked(run, "compact") as tracker:
        tracker.artifact_bytes("notes/a.txt", b"a")
        tracker.metrics({"loss": 0.5}, step=1)
    folder = Folder(str(tmp_path / "a copy"))
    shutil.copytree(run.folder.local(), folder.local())
    hidden = run.folder.local("mlflow").rename(tmp_path / "hidden")
    yield Run(folder, run.config)
    assert not run.folder.local("mlflow").exists()
    hidden.rename(run.folder.local("mlflow"))


def test_a_run_folder_that_was_moved_keeps_its_registry(run: Run, registered: str, copy: Run) -> None:
    folder = resolve_model(f"models:/cropray/{registered}", copy)
    assert load_checkpoint(folder).describe() == small_checkpoint().describe()
    with tracked(copy, "compact") as again:
        again.artifact_bytes("b.txt", b"b")
    assert list(copy.folder.local("mlflow/artifacts").rglob("b.txt"))
    with tracked(copy, "compact") as resumed:
        assert resumed.run_id == again.run_id
    save_checkpoint(small_checkpoint(seed=3), copy.folder.child("models/third"))
    new = register_checkpoint(copy, "run:models/third")["registered"]
    assert load_checkpoint(resolve_model(new, copy)).classes == CLASSES


def test_a_copy_does_not_touch_the_original(run: Run, registered: str, tmp_path: Path) -> None:
    def files() -> dict[str, bytes]:
        return {name: run.folder.read_bytes(name) for name in run.folder.names()}

    before = files()
    copy = Run(Folder(str(tmp_path / "copy")), run.config)
    shutil.copytree(run.folder.local(), copy.folder.local())
    with tracked(copy, "finetune") as tracker:
        tracker.artifact_bytes("b.txt", b"b")
        register(copy, "finetune", copy.folder.child("models/finetune"), tracker)
    relocate(copy)
    resolve_model(f"models:/cropray/{registered}", copy)
    assert files() == before


def test_plain_mlflow_loads_a_model_of_a_moved_run_folder_once_it_is_relocated(
    run: Run, copy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = open_client(tracking_uri(copy))
    client.create_model_version("cropray", "file:///nowhere")
    client.delete_model_version("cropray", "2")
    save_checkpoint(small_checkpoint(seed=4), copy.folder.child("models/fourth"))
    assert register_checkpoint(copy, "run:models/fourth")["registered"] == "models:/cropray/3"
    client.set_registered_model_alias("cropray", "champion", "1")
    client.set_registered_model_tag("cropray", "team", "south")
    before = [version.to_json() for version in list_versions(copy)]

    with monkeypatch.context() as patched:  # a first attempt is interrupted between the two models
        patched.setattr(mlflow.MlflowClient, "rename_registered_model", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            relocate(copy)
    assert relocate(copy)["versions"] == 0  # what was left to do was the last name
    assert relocate(copy)["versions"] == 0

    assert [version.to_json() for version in list_versions(copy)] == before
    assert client.get_registered_model("cropray").tags == {"team": "south"}
    for number, seed in (("1", 0), ("3", 4)):
        location = client.get_model_version_download_uri("cropray", number)
        assert Path(unquote(location.removeprefix("file://"))).is_relative_to(copy.folder.local())
        model = mlflow.pyfunc.load_model(location, suppress_warnings=True)
        batch = stored_patches()
        expected = Predictor(small_checkpoint(seed)).probabilities(batch["s1"], batch["s2"])
        np.testing.assert_array_equal(model.predict(batch), expected)


def test_only_the_registry_of_a_run_folder_is_relocated(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no registry at sqlite"):
        relocate(Run(Folder(str(tmp_path)), Config()))
    server = updated(Config(), {"tracking.uri": "http://127.0.0.1:9"})
    with pytest.raises(InputError, match=r"tracking\.uri is http://127\.0\.0\.1:9: only"):
        relocate(Run(run.folder, server))


DRIVER = """
import os, signal, sys
from cropray.config import Config
from cropray.run import Run
from cropray.storage import Folder
from cropray.tracking.runs import tracked
with tracked(Run(Folder(sys.argv[1]), Config()), sys.argv[2]) as parent:
    with tracked(Run(Folder(sys.argv[1]), Config()), sys.argv[2] + "/0", parent=parent.run_id):
        print("up", flush=True)
        if sys.argv[3] == "stays":
            sys.stdin.read()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_runs_of_a_killed_driver_end_with_the_next_start(tmp_path: Path) -> None:
    other = Run(Folder(str(tmp_path)), Config())
    client = open_client(tracking_uri(other))

    def driver(stage: str, what: str) -> subprocess.Popen:
        command = [sys.executable, "-c", DRIVER, str(tmp_path), stage, what]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return process

    def statuses(stage: str) -> list[str]:
        names = [f"mlflow/{stage}.json", f"mlflow/{stage}/0.json"]
        ids = [json.loads(other.folder.read_text(name))["run_id"] for name in names]
        return [client.get_run(run_id).info.status for run_id in ids]

    with driver("tune/a", "dies") as killed, driver("tune/b", "stays") as busy:
        killed.wait(timeout=60)
        assert statuses("tune/a") == ["RUNNING", "RUNNING"]
        with tracked(other, "evaluate") as tracker:
            assert client.get_run(tracker.run_id).info.status == "RUNNING"
        assert statuses("tune/a") == ["KILLED", "KILLED"]
        assert statuses("tune/b") == ["RUNNING", "RUNNING"]
        busy.kill()
        busy.wait(timeout=60)
        with tracked(other, "tune/b"):
            assert statuses("tune/b") == ["RUNNING", "KILLED"]


def test_a_run_that_another_replaced_ends_too(tmp_path: Path) -> None:
    other = Run(Folder(str(tmp_path)), Config())
    with tracked(other, "pretrain") as forgotten:
        other.folder.delete("mlflow/pretrain.json")
        with tracked(other, "pretrain") as new:
            statuses = [new.client.get_run(one.run_id).info.status for one in (forgotten, new)]
            assert statuses == ["KILLED", "RUNNING"]


def test_a_stage_can_say_how_its_run_and_nested_ones_end(tmp_path: Path) -> None:
    other = Run(Folder(str(tmp_path)), Config())
    with tracked(other, "tune/x") as parent:
        with suppress(KeyboardInterrupt), tracked(other, "tune/x/0", parent=parent.run_id) as pruned:
            pruned.end("FINISHED", {"cropray.end": "pruned"})
            raise KeyboardInterrupt
        with tracked(other, "tune/x/1", parent=parent.run_id) as running:
            assert [(stage, child.run_id) for stage, child in parent.running_children()] == [
                ("tune/x/1", running.run_id)
            ]
        assert parent.running_children() == []
    found = parent.client.get_run(pruned.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.tags["cropray.end"] == "pruned"
    assert found.data.tags["mlflow.parentRunId"] == parent.run_id


def test_missing_files_of_a_version_are_named(run: Run, registered: str) -> None:
    location = open_client(tracking_uri(run)).get_model_version_download_uri("cropray", registered)
    hidden = Path(location.removeprefix("file://"))
    hidden.rename(hidden.with_name("elsewhere"))
    try:
        with pytest.raises(InputError, match=r"files of models:/cropray/1 are not in file:.*moved"):
            resolve_model(f"models:/cropray/{registered}", run)
    finally:
        hidden.with_name("elsewhere").rename(hidden)


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    damaged = Run(Folder(str(tmp_path)), Config())
    damaged.folder.write_text("mlflow/mlflow.db", "nothing of the kind" * 100)
    with (
        pytest.raises(InputError, match=r"mlflow\.db.* not a database; .*cropray models register"),
        tracked(damaged, "x"),
    ):
        pass


def test_a_database_is_created_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Run(Folder(str(tmp_path)), Config())
    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "search_experiments", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt), tracked(fresh, "compact"):
            pass
    assert fresh.folder.names() == []
    with tracked(fresh, "compact"):
        assert fresh.folder.exists("mlflow/mlflow.db")


def test_a_read_only_registry_is_read_but_not_written(
    run: Run, registered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow makes a folder of the name `file:`
    database = run.folder.local("mlflow/mlflow.db")
    tracking = TrackingConfig(uri=f"sqlite:///file:{database}?mode=ro&uri=true")
    reader = Run(Folder(str(tmp_path / "run")), Config(classes=CLASSES, tracking=tracking))
    assert load_checkpoint(resolve_model(f"models:/cropray/{registered}", reader)).classes == CLASSES
    save_checkpoint(small_checkpoint(seed=9), reader.folder.child("models/finetune"))
    with pytest.raises(InputError, match="read but not write; get permission"):
        register_checkpoint(reader)


def test_requirements_need_not_be_installed_to_read_a_checkpoint(run: Run, registered: str) -> None:
    location = open_client(tracking_uri(run)).get_model_version_download_uri("cropray", registered)
    listed = Path(location.removeprefix("file://"), "requirements.txt")
    before = listed.read_text()
    listed.write_text(before.replace("torch==", "torch==99."))
    try:
        found = load_checkpoint(resolve_model(f"models:/cropray/{registered}", run))
    finally:
        listed.write_text(before)
    assert found.describe() == small_checkpoint().describe()


def test_a_pretrained_model_has_a_name_of_its_own(run: Run, registered: str) -> None:
    folder = run.folder.child("models/pretrain")
    save_checkpoint(small_checkpoint(seed=7), folder)
    with tracked(run, "pretrain") as tracker:
        assert register(run, "pretrain", folder, tracker) == "1"
    kept = resolve_model("models:/cropray@candidate", run)
    assert torch.equal(
        load_checkpoint(kept).weights["final_conv.bias"], small_checkpoint().weights["final_conv.bias"]
    )


def test_registering_again_moves_the_alias_and_prints_nothing(
    run: Run, registered: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = run.folder.child("models/again")
    save_checkpoint(small_checkpoint(seed=5), folder)
    with warnings.catch_warnings(), tracked(run, "finetune") as tracker:
        warnings.simplefilter("error")
        version = register(run, "finetune", folder, tracker)
    assert int(version) == int(registered) + 1
    client = open_client(tracking_uri(run))
    assert str(client.get_model_version_by_alias("cropray", "candidate").version) == version
    assert capfd.readouterr() == ("", "")
