"""Stages as jobs of a real `ray start --head`: what reaches the workers, exit codes, logs, stop."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cropray.config.load import updated
from cropray.storage import Folder
from tests.conftest import ROOT
from tests.integration.test_training import prepared
from tests.integration.test_tune import TRIALS, records
from tests.integration.test_tune import prepared as sweep_in
from tests.ray_head import RayHead, ray_head

SETTINGS = (
    *("--config", "configs/demo.yaml"),
    *("--set", "source.simulated.sites_per_crop=3", "--set", "source.simulated.site_size_m=640"),
    *("--set", "ray.concurrency=1"),
)
# Where the package is, in the driver and in a task of its.
WHERE = """
import cropray, ray
ray.init(log_to_driver=False, logging_level="ERROR")
print("in the driver:", cropray.__file__)
print("in a task:", ray.get(ray.remote(lambda: __import__("cropray").__file__).remote()))
"""


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head(adds={"CPU": 1, "GPU": 1}) as running:
        yield running


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(str(tmp_path_factory.mktemp("jobs") / "run"))


@pytest.fixture(scope="module")
def package(head: RayHead, run: Folder) -> str:
    """The working directory as Ray keeps it, sent with the first job, which finds the regions."""
    submitted = head.submit(ROOT, "python", "jobs/rois.py", *SETTINGS, "--run", str(run))
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert '"rois": ' in submitted.stdout
    return str(head.jobs()[-1]["runtime_env"]["working_dir"])


def wait_for(what: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.1)


def test_the_package_of_the_working_directory_reaches_driver_and_tasks(head: RayHead, package: str) -> None:
    name = package.removeprefix("gcs://").removesuffix(".zip")
    job = head.start(package, "python", "-c", f"'{WHERE}'")
    assert head.finished(job)["status"] == "SUCCEEDED", head.logs(job)
    places = re.findall(r"^in .*: (.*)$", head.logs(job), re.MULTILINE)
    assert len(places) == 2
    assert all(f"/{name}/cropray/__init__.py" in place for place in places), places


def test_a_stage_refused_fails_the_job_with_one_message(head: RayHead) -> None:
    submitted = head.submit(
        ROOT, "python", "jobs/export.py", *SETTINGS, "--set", "rois.epsm=1", "--run", "/r"
    )
    assert submitted.returncode == 1
    assert "Did you mean rois.eps_m?" in submitted.stdout
    assert "Traceback" not in submitted.stdout
    last = head.jobs()[-1]
    assert (last["status"], last["driver_exit_code"]) == ("FAILED", 2)


def test_a_run_folder_that_would_go_with_the_job_is_refused(head: RayHead, package: str) -> None:
    job = head.start(package, "python", "jobs/rois.py", *SETTINGS, "--run", "runs/mine")
    assert head.finished(job)["driver_exit_code"] == 2
    assert "give an absolute path that every node sees, or a URI" in head.logs(job)


def test_the_doctor_sees_the_nodes_and_a_cluster_without_the_cpus_asked_for(
    head: RayHead, run: Folder, package: str, tmp_path: Path
) -> None:
    options = ("--config", "configs/demo.yaml", "--run", str(run), "--set", "finetune.workers=4", "--json")
    types = {
        "head": {"resources": {"CPU": 2}},
        "added": {"resources": {"CPU": 1, "GPU": 1}, "max_workers": 1},
    }
    (tmp_path / "ray_bootstrap_config.yaml").write_text(  # as `ray up` leaves it in the home of a head
        json.dumps({"head_node_type": "head", "max_workers": 1, "available_node_types": types})
    )
    job = head.start(package, "python", "jobs/doctor.py", *options, HOME=str(tmp_path))
    ended, said = head.finished(job), head.logs(job)
    assert ended["driver_exit_code"] == 1, said
    lines = said.splitlines()
    findings = {row["check"]: row for row in json.loads("\n".join(lines[lines.index("[") :]))}
    wrong = findings.pop("resources")
    assert wrong["verdict"] == "bad"
    assert wrong["found"].startswith("2 CPUs, 0 GPUs; at most 3 CPUs, 1 GPUs; finetune.workers = 4")
    assert findings["nodes"]["found"].startswith("1 with Python 3.")
    assert {findings[name]["verdict"] for name in ("ray", "nodes", "storage")} == {"ok"}
    assert not [name for name in run.local().iterdir() if name.name.startswith(".cropray")]


def test_a_stopped_export_goes_on_where_it_was_and_says_so(head: RayHead, run: Folder, package: str) -> None:
    command = ("python", "jobs/export.py", *SETTINGS, "--run", str(run))
    job = head.start(package, *command)
    wait_for(lambda: len(run.child("parts").names()) >= 2)
    head.stop(job)
    assert head.finished(job)["status"] == "STOPPED"
    assert "Interrupted. Run the same command again" in head.logs(job)

    finished = run.child("parts").names()
    stamps = {name: run.local(f"parts/{name}").stat().st_mtime_ns for name in finished}
    tiles = json.loads(run.read_text("stages/rois.json"))["summary"]["rois"]  # a site of 640 m is a tile
    assert 2 <= len(finished) < tiles
    assert [path.name for path in run.local("parts").iterdir() if path.name not in finished] == []

    job = head.start(package, *command)
    assert head.finished(job)["status"] == "SUCCEEDED", head.logs(job)
    said = head.logs(job)
    assert f"export: {len(finished)} of {tiles} tiles were finished before" in said
    assert len(run.child("parts").names()) == tiles
    assert {name: run.local(f"parts/{name}").stat().st_mtime_ns for name in finished} == stamps

    # Lines for a person: no bar, no cursor, nothing of Ray's own between them.
    lines = said.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("Running entrypoint")) + 1
    assert lines[first].startswith("export: ")
    assert f"export: {tiles - len(finished)}/{tiles - len(finished)}" in said
    assert not set("\r\x1b") & set(said)
    assert json.loads("\n".join(lines[lines.index("{") :]))["tiles"] == tiles
    assert all(line.startswith("export: ") for line in lines[first : lines.index("{")]), said


def test_a_stopped_sweep_keeps_its_trials_and_the_same_submission_goes_on_from_them(
    head: RayHead, tmp_path: Path, package: str
) -> None:
    run, _ = sweep_in(tmp_path)
    config = updated(run.config, {"ray.num_cpus": None})  # those of the cluster
    (tmp_path / "given.yaml").write_text(config.to_yaml())
    command = ("python", "jobs/tune.py", "--config", str(tmp_path / "given.yaml"), "--run", str(run.folder))
    job = head.start(package, *command)
    wait_for(lambda: bool(records(run)), 200)
    head.stop(job)
    assert head.finished(job)["status"] == "STOPPED"
    assert "Interrupted. Run the same command again" in head.logs(job)
    left = records(run)
    assert left
    assert len(left) < TRIALS or any(trial["end"] != "finished" for trial in left.values())
    record = run.folder.read_text("mlflow/tune/sweep.json")  # which of MLflow's runs it is

    job = head.start(package, *command)
    assert head.finished(job)["status"] == "SUCCEEDED", head.logs(job)
    said = head.logs(job)
    assert not set("\r\x1b") & set(said)
    trials = records(run)
    assert len(trials) == TRIALS
    assert {trial["end"] for trial in trials.values()} == {"finished"}
    assert {name: trials[name] for name, trial in left.items() if trial["end"] == "finished"} == {
        name: trial for name, trial in left.items() if trial["end"] == "finished"
    }
    assert run.folder.read_text("mlflow/tune/sweep.json") == record


def test_a_training_waits_for_the_gpus_that_it_asks_for_and_says_so(head: RayHead, tmp_path: Path) -> None:
    given = prepared(tmp_path / "run", gpus=1, workers=2)
    (tmp_path / "given.yaml").write_text(given.config.to_yaml())
    command = (
        *("python", str(ROOT / "jobs/pretrain.py")),
        *("--config", str(tmp_path / "given.yaml"), "--run", str(tmp_path / "run")),
    )
    asked = head.start("", *command)  # the cluster adds one node only
    wait_for(lambda: "pretrain: waits for" in head.logs(asked))
    head.stop(asked)
    ended, said = head.finished(asked), head.logs(asked)
    assert ended["status"] == "STOPPED", said
    assert "pretrain: waits for 2 workers with 1 CPU and 1 GPU each" in said
    assert "the cluster adds nodes" in said

    asked = head.start("", *command, "--set", "pretrain.workers=1")
    ended, said = head.finished(asked), head.logs(asked)
    # The added node says that it has a GPU, which PyTorch does not find.
    assert ended["driver_exit_code"] == 2, said
    assert "PyTorch there cannot use them" in said
