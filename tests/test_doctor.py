"""What `cropray doctor` says of machines, clusters, storage and accounts, well and not well."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from cropray.cli import main
from cropray.config import Config
from cropray.config.imagery import EarthEngineConfig
from cropray.config.load import updated
from cropray.config.training import TrainConfig
from cropray.doctor.account import Account, account_of, ask_earth_engine, judge_earth_engine
from cropray.doctor.cluster import (
    NodeFacts,
    judge_alone,
    judge_nodes,
    judge_resources,
    look,
)
from cropray.doctor.examine import examine
from cropray.doctor.finding import Finding, bad, exit_code, ok, shown, warning
from cropray.doctor.machine import (
    judge_disk,
    judge_memory,
    judge_packages,
    judge_python,
    judge_torch,
    judge_working_dir,
    working_dir,
)
from cropray.doctor.services import (
    Probe,
    clock_ahead,
    judge_clock,
    judge_storage,
    storage_failed,
    storage_probe,
    tracking,
)
from cropray.errors import InputError
from cropray.storage import Folder

TRAININGS = {"pretrain": TrainConfig(workers=4), "finetune": TrainConfig()}
VERSIONS = {"Python": "3.11.9", "ray": "2.60.0", "cropray": "0.1.0"}


def test_a_table_has_the_remedy_below_what_is_bad_and_fails() -> None:
    findings = [ok("python", "3.11"), warning("disk", "8 GB", "make room"), bad("storage", "no", "mend it")]
    text = shown(findings, as_json=False)
    assert text.splitlines()[2:5] == [
        "               -> make room",
        "BAD   storage  no",
        "               -> mend it",
    ]
    assert text.endswith("3 checks: 1 bad, 1 warnings\n")
    assert [exit_code(findings), exit_code(findings[:2])] == [1, 0]
    assert json.loads(shown(findings, as_json=True))[2] == {
        "check": "storage",
        "verdict": "bad",
        "found": "no",
        "remedy": "mend it",
    }


@pytest.mark.parametrize(("version", "verdict"), [((3, 10), "bad"), ((3, 11), "ok"), ((3, 13), "ok")])
def test_python(version: tuple[int, int], verdict: str) -> None:
    assert judge_python(version).verdict == verdict


def test_packages_that_are_missing_or_of_another_version_are_named() -> None:
    required = {"ray": ">=2.60", "torch": ">=2.6", "xxhash": ""}
    well = judge_packages(required, {"ray": "2.60.0", "torch": "2.13.0+cpu", "xxhash": "4"})
    assert well == ok("packages", "3 requirements are met (ray 2.60.0, torch 2.13.0+cpu)")
    wrong = judge_packages(required, {"ray": "2.9.3", "torch": "2.13.0"})
    assert wrong.verdict == "bad"
    assert wrong.found == "missing: xxhash; of another version: ray 2.9.3 (wanted >=2.60)"


@pytest.mark.parametrize(
    ("build", "gpus", "device", "verdict", "words"),
    [
        ("12.8", 2, True, "ok", "for CUDA 12.8, 2 GPUs"),
        (None, 0, False, "ok", "training runs on CPUs"),
        (None, 0, True, "bad", "install the CUDA build"),
        ("12.8", 0, True, "bad", "driver may be too old"),
    ],
)
def test_torch_and_its_gpus(build: str | None, gpus: int, device: bool, verdict: str, words: str) -> None:
    finding = judge_torch("2.13.0", build, gpus, device)
    assert finding.verdict == verdict
    assert words in finding.found + finding.remedy


@pytest.mark.parametrize(
    ("available", "shared", "verdict"),
    [(16e9, 8e9, "ok"), (5e9, 2e9, "warning"), (1e9, 1e9, "bad"), (16e9, 64e6, "warning")],
)
def test_memory(available: float, shared: float, verdict: str) -> None:
    finding = judge_memory(available, shared)
    assert finding.verdict == verdict
    assert ("--shm-size" in finding.remedy) == (shared < 1e9)


@pytest.mark.parametrize(
    ("free", "total", "verdict"),
    [(100e9, 200e9, "ok"), (8e9, 50e9, "warning"), (0.5e9, 5e9, "bad"), (40e9, 1000e9, "bad")],
)
def test_a_disk_that_is_small_or_nearly_full(free: float, total: float, verdict: str) -> None:
    assert judge_disk(free, total, "/runs").verdict == verdict


def test_a_working_directory_over_the_limit_names_its_largest_files() -> None:
    limit = 100 * 2**20
    assert judge_working_dir({"cropray/run.py": 9_000, "jobs/rois.py": 200}, limit).verdict == "ok"
    assert judge_working_dir({"cropray/run.py": 9_000, "a.nc": 90_000_000}, limit).verdict == "warning"
    over = judge_working_dir({"jobs/rois.py": 200, "big.bin": 600_000_000, "mid.bin": 7_000_000}, limit)
    assert over.verdict == "bad"
    assert over.found == "a job from here sends 3 files, 607.0 MB; `ray job submit` takes 100 MiB"
    assert over.remedy.endswith(
        ".rayignore, or keep them elsewhere; the largest: big.bin (600 MB), mid.bin (7 MB)"
    )


def test_the_working_directory_is_read_as_ray_packs_it(tmp_path: Path) -> None:
    for name in ("jobs/rois.py", "runs/mine/part", ".git/objects", "data.tif", "kept.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * 1_000_000)
    (tmp_path / ".rayignore").write_text("/runs/\n.?*\n")
    (tmp_path / ".gitignore").write_text("*.tif\n")
    assert working_dir(tmp_path) == ok("working directory", "a job from here sends 2 files, 2.0 MB")
    (tmp_path / ".rayignore").write_text(".*\n")
    assert "excludes everything" in working_dir(tmp_path).remedy
    assert "no checkout" in working_dir(tmp_path / "runs").found


@pytest.mark.parametrize(
    ("have", "more", "verdict", "words"),
    [
        ({"CPU": 8.0}, {}, "ok", "8 CPUs, 0 GPUs; the settings ask for pretrain.workers 4"),
        ({"CPU": 8.0, "GPU": 4.0}, {}, "ok", "8 CPUs, 4 GPUs"),
        ({"CPU": 2.0}, {}, "bad", "pretrain.workers = 4 × 1 CPUs each are 4 CPUs, but Ray has 2"),
        ({"CPU": 8.0, "GPU": 2.0}, {}, "bad", "not every worker gets a GPU"),
        ({"CPU": 2.0}, {"CPU": 50.0, "GPU": 4.0}, "warning", "up to 50 CPUs, 4 GPUs when asked for"),
        ({"CPU": 50.0, "GPU": 4.0}, {"CPU": 50.0, "GPU": 4.0}, "ok", "50 CPUs, 4 GPUs; the settings"),
        ({"CPU": 8.0}, {"CPU": 48.0, "GPU": 3.0}, "bad", "give the cluster 4 GPUs"),
    ],
)
def test_the_resources_against_the_workers(
    have: Mapping[str, float], more: Mapping[str, float], verdict: str, words: str
) -> None:
    finding = judge_resources(have, {**have, **more}, TRAININGS, {})
    assert finding.verdict == verdict
    assert words in f"{finding.found} {finding.remedy}"


def test_gpus_that_trainings_ask_for_are_there_or_can_be_added() -> None:
    asked = {"pretrain": TrainConfig(workers=2, gpus=1)}
    assert judge_resources({"CPU": 8.0}, {"CPU": 48.0, "GPU": 2.0}, asked, {}).verdict == "ok"
    finding = judge_resources({"CPU": 8.0}, {"CPU": 8.0}, asked, {})
    assert finding.verdict == "bad"
    assert "pretrain.workers = 2 × 1 GPUs each are 2 GPUs, but Ray has 0" in finding.found
    none = {"pretrain": TrainConfig(workers=4, gpus=0)}
    later = {"pretrain": TrainConfig(), "finetune": TrainConfig(workers=4, gpus=1)}
    assert judge_resources({"CPU": 8.0}, {"CPU": 8.0, "GPU": 1.0}, later, {}).verdict == "bad"
    there = {"CPU": 8.0, "GPU": 2.0}
    assert judge_resources(there, there, none, {}).verdict == "ok"


def test_a_cluster_that_grows_nobody_knows_how_far_is_not_called_too_small() -> None:
    asked = {"pretrain": TrainConfig(workers=2, gpus=1)}
    finding = judge_resources({"CPU": 2.0}, None, asked, {"ee": 1.0})
    assert finding.verdict == "ok"
    assert "only the cluster knows how many" in finding.found


def test_a_resource_of_exports_that_no_node_offers_is_bad() -> None:
    finding = judge_resources({"CPU": 8.0}, {"CPU": 8.0}, TRAININGS, {"ee": 1.0})
    assert finding.verdict == "bad"
    assert "asks for ee 1, and no node offers it" in finding.found
    offered = {"CPU": 8.0, "ee": 4.0}
    assert judge_resources(offered, offered, TRAININGS, {"ee": 1.0}).verdict == "ok"
    assert judge_resources({"CPU": 8.0}, {"CPU": 8.0, "ee": 4.0}, TRAININGS, {"ee": 1.0}).verdict == "ok"


def test_without_an_address_it_is_what_this_machine_has() -> None:
    assert judge_alone(4, 0, TRAININGS).found.endswith("each stage starts its own Ray here")
    assert judge_alone(2, 0, TRAININGS).verdict == "bad"


def test_nodes_of_another_kind_are_named() -> None:
    same = NodeFacts("10.0.0.1", VERSIONS)
    assert judge_nodes([same], VERSIONS).verdict == "ok"
    older = NodeFacts("10.0.0.2", VERSIONS | {"ray": "2.59.0"})
    assert judge_nodes([same, older], VERSIONS).found == "10.0.0.2 has ray 2.59.0, here is 2.60.0"
    bare = NodeFacts("10.0.0.3", {}, problem="No module named 'cropray'")
    finding = judge_nodes([same, bare], VERSIONS)
    assert finding.verdict == "bad"
    assert "10.0.0.3: No module named 'cropray'" in finding.found


def test_a_cluster_that_does_not_answer_is_told_at_once() -> None:
    config = updated(Config(), {"ray.address": "127.0.0.1:1"}).ray
    start = time.monotonic()
    finding = look(config, None)
    assert time.monotonic() - start < 15
    assert isinstance(finding, Finding)
    assert finding.verdict == "bad"
    assert "cannot join the Ray at 127.0.0.1:1 (nothing answers there" in finding.found


@pytest.mark.parametrize(
    ("told", "resolution", "ahead"), [(100.5, 0, 0), (160, 0, 59), (40, 0, -60), (99.2, 1, 0), (40, 1, -59)]
)
def test_a_clock_is_off_by_what_no_delay_explains(told: float, resolution: float, ahead: float) -> None:
    assert clock_ahead(told, 100, 101, resolution_s=resolution) == pytest.approx(ahead)


@pytest.mark.parametrize(
    ("ahead", "verdict", "found"),
    [
        ({}, "ok", "compared with no other"),
        ({"a": 0.2, "b": -1.0}, "ok", "within 1.0 s of a, b"),
        ({"a": 0.2, "b": -9.0}, "warning", "9.0 s ahead of b"),
        ({"the storage": 400.0}, "bad", "400.0 s behind the storage"),
    ],
)
def test_the_clock(ahead: Mapping[str, float], verdict: str, found: str) -> None:
    finding = judge_clock(ahead)
    assert finding.verdict == verdict
    assert found in finding.found


def test_a_storage_is_written_read_and_left_as_it_was(tmp_path: Path) -> None:
    with storage_probe(Folder(str(tmp_path / "not" / "yet"))) as probe:
        assert probe.folder == Folder(str(tmp_path))
        assert judge_storage(probe, probe.folder.read_bytes(probe.name), []).verdict == "ok"
        assert probe.clock_ahead_s == 0
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_a_node_does_not_share_is_bad(tmp_path: Path) -> None:
    probe = Probe(Folder(str(tmp_path)), "name", b"data", 0.0)
    assert "gave other bytes" in judge_storage(probe, b"dat", []).found
    finding = judge_storage(probe, b"data", ["10.0.0.2"])
    assert finding.verdict == "bad"
    assert finding.found.endswith("here, but not on 10.0.0.2")
    failed = storage_failed(probe.folder, PermissionError(13, "Permission denied", str(tmp_path)))
    assert (failed.verdict, "Permission denied" in failed.found) == ("bad", True)


def test_the_tracking_server(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "run"))
    assert tracking(Config(), None).verdict == "ok"
    assert tracking(Config(), folder).found == f"SQLite, to be made at {tmp_path}/run/mlflow/mlflow.db"
    assert not (tmp_path / "run").exists()
    assert "set tracking.uri" in tracking(Config(), Folder("gs://bucket/run")).found


def test_a_tracking_server_that_is_down_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    finding = tracking(updated(Config(), {"tracking.uri": "http://127.0.0.1:1"}), None)
    assert finding.verdict == "bad"
    assert finding.found == "MLflow at http://127.0.0.1:1 (tracking.uri) cannot be reached"
    assert finding.remedy.startswith("is it up, and may this machine reach it?")


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without credentials, on no machine of Google's."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("EE_PROJECT", "GOOGLE_CLOUD_PROJECT", "EE_SERVICE_ACCOUNT_KEY", "CLOUDSDK_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setattr("cropray.doctor.account._on_google", lambda: False)
    return tmp_path


def test_earth_engine_without_an_account_is_bad_where_it_is_the_source(nobody: Path) -> None:
    found = account_of(EarthEngineConfig())
    assert found == Account("", "")
    assert judge_earth_engine(found, wanted=False).verdict == "ok"
    finding = judge_earth_engine(found, wanted=True)
    assert finding.verdict == "bad"
    assert "earthengine authenticate" in finding.remedy


def test_earth_engine_by_stored_credentials(nobody: Path) -> None:
    stored = nobody / ".config" / "earthengine" / "credentials"
    stored.parent.mkdir(parents=True)
    stored.write_text(json.dumps({"refresh_token": "secret-1", "project": "fields"}))
    finding = judge_earth_engine(account_of(EarthEngineConfig()), wanted=True)
    assert finding.verdict == "ok"
    assert finding.found == f"credentials by earthengine authenticate ({stored}), project fields"
    stored.write_text(json.dumps({"refresh_token": "secret-1"}))
    nameless = judge_earth_engine(account_of(EarthEngineConfig()), wanted=True)
    assert (nameless.verdict, "EE_PROJECT" in nameless.remedy) == ("bad", True)
    assert "secret" not in f"{finding}{nameless}"


def test_earth_engine_by_the_machine_of_the_cloud(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cropray.doctor.account._on_google", lambda: True)
    found = account_of(EarthEngineConfig(project="fields"))
    assert judge_earth_engine(found, wanted=True).found.startswith("the service account of this machine")


def test_earth_engine_by_a_key_that_is_not_there(nobody: Path) -> None:
    found = account_of(EarthEngineConfig(service_account_key=str(nobody / "key.json")))
    assert isinstance(found, InputError)
    assert judge_earth_engine(found, wanted=True).verdict == "bad"


def test_earth_engine_is_asked_and_does_not_answer() -> None:
    config = updated(Config(), {"source.earthengine.url": "http://127.0.0.1:1"})
    assert account_of(config.source.earthengine).project == "loopback"  # type: ignore[union-attr]
    finding = ask_earth_engine(config)
    assert finding.verdict == "bad"


def test_a_store_that_cannot_be_opened_is_a_finding_and_the_other_checks_go_on() -> None:
    findings = {finding.check: finding for finding in examine(Config(), "nowhere://bucket/run")}
    assert findings["storage"].verdict == "bad"
    assert "nowhere://bucket/run" in findings["storage"].found
    assert {"resources", "clock", "tracking", "earth engine"} < set(findings)


def test_the_command_ends_with_1_where_something_is_bad(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SystemExit) as exit_:
        main(["doctor", "--run", str(tmp_path), "--set", "finetune.workers=9999", "--json"])
    assert exit_.value.code == 1
    findings = {row["check"]: row for row in json.loads(capsys.readouterr().out)}
    assert findings["resources"]["verdict"] == "bad"
    assert {findings[name]["verdict"] for name in ("python", "packages", "storage", "clock")} == {"ok"}
    assert list(tmp_path.iterdir()) == []
