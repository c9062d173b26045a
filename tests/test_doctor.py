"""What `cropray doctor` finds on machines, clusters, storage and accounts."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from cropray import doctor
from cropray.cli import main
from cropray.config import Config
from cropray.config.imagery import EarthEngineConfig
from cropray.config.load import load_config
from cropray.doctor import (
    Finding,
    earth_engine_account,
    examine,
    examine_cluster,
    examine_earth_engine,
    examine_tracking,
    format_findings,
    judge_disk,
    judge_memory,
    judge_nodes,
    judge_resources,
    judge_torch,
    storage_probe,
)
from cropray.errors import InputError
from cropray.run import Run
from cropray.storage import Folder

WORKERS_4 = ["pretrain.workers=4"]
GPUS = ["pretrain.gpus=1", "finetune.gpus=1"]


def configured(*settings: str) -> Config:
    return load_config(None, settings)


def test_a_remedy_is_shown_below_what_is_wrong() -> None:
    findings = [Finding("memory", "ok", "8 GB"), Finding("disk", "bad", "full", "Free some space.")]
    lines = format_findings(findings).splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["ok", "bad", "->"]
    assert lines[2].endswith("Free some space.")
    assert lines[-1] == "2 checks: 1 bad, 0 warnings"


@pytest.mark.parametrize(
    ("cuda", "gpus", "device", "verdict", "words"),
    [
        ("12.8", 2, True, "ok", "CUDA 12.8, 2 GPUs"),
        (None, 0, False, "ok", "CPUs"),
        (None, 0, True, "bad", "CUDA build"),
        ("12.8", 0, True, "bad", "driver"),
    ],
)
def test_torch_and_its_gpus(cuda: str | None, gpus: int, device: bool, verdict: str, words: str) -> None:
    finding = judge_torch("2.13.0", cuda, gpus, device)
    assert finding.verdict == verdict
    assert words in finding.found + finding.remedy


@pytest.mark.parametrize(("available", "verdict"), [(16e9, "ok"), (5e9, "warning"), (1e9, "bad")])
def test_memory(available: float, verdict: str) -> None:
    finding = judge_memory(available)
    assert finding.verdict == verdict
    assert ("8 GB" in finding.remedy) == (verdict != "ok")


@pytest.mark.parametrize(
    ("free", "total", "verdict"),
    [(100e9, 200e9, "ok"), (8e9, 50e9, "warning"), (0.5e9, 5e9, "bad"), (40e9, 1000e9, "bad")],
)
def test_a_disk_that_is_small_or_nearly_full(free: float, total: float, verdict: str) -> None:
    assert judge_disk(free, total, Path("/runs")).verdict == verdict


def test_the_disk_of_the_run_folder_is_examined(tmp_path: Path) -> None:
    findings = [finding for finding in examine(Config(), str(tmp_path / "new")) if finding.check == "disk"]
    assert any(finding.found.endswith(f"GB free at {tmp_path}") for finding in findings)
    total = shutil.disk_usage(tmp_path).total
    assert any(f"of {total / 1e9:.0f} GB" in finding.found for finding in findings)


@pytest.mark.parametrize(
    ("have", "added", "settings", "verdict", "words"),
    [
        ({"CPU": 8}, {}, WORKERS_4, "ok", "8 CPUs, 0 GPUs"),
        ({"CPU": 8, "GPU": 4}, {}, WORKERS_4, "ok", "8 CPUs, 4 GPUs"),
        ({"CPU": 2}, {}, WORKERS_4, "bad", "pretrain.workers"),
        ({"CPU": 8, "GPU": 2}, {}, WORKERS_4, "bad", "Set pretrain.workers to 2"),
        ({"CPU": 2}, {"CPU": 50, "GPU": 4}, WORKERS_4, "warning", "Set pretrain.gpus to 1"),
        ({"CPU": 2}, {"CPU": 50, "GPU": 4}, [*WORKERS_4, *GPUS], "ok", "at most 50 CPUs, 4 GPUs"),
        ({"CPU": 8}, {"CPU": 48, "GPU": 3}, [*WORKERS_4, "pretrain.gpus=1"], "bad", "3"),
        ({"CPU": 8}, {}, ["finetune.gpus=1"], "bad", "finetune.gpus"),
        ({"CPU": 8, "GPU": 1}, {}, [*WORKERS_4, "pretrain.gpus=0"], "ok", "8 CPUs"),
        ({"CPU": 2}, {"CPU": 50, "GPU": 4}, [*WORKERS_4, "finetune.workers=99"], "bad", "finetune.workers"),
        ({"CPU": 8}, {}, ["ray.export_resources={ee: 1}"], "bad", "--resources"),
        ({"CPU": 8}, {"ee": 4}, ["ray.export_resources={ee: 1}"], "ok", "8 CPUs"),
    ],
)
def test_resources_against_what_the_settings_request(
    have: Mapping[str, float], added: Mapping[str, float], settings: list[str], verdict: str, words: str
) -> None:
    finding = judge_resources(have, {**have, **added}, configured(*settings))
    assert finding.verdict == verdict
    assert words in f"{finding.found} {finding.remedy}"


def test_a_cluster_that_may_grow_by_an_unknown_amount_is_not_too_small() -> None:
    assert (
        judge_resources({"CPU": 2.0}, None, configured("pretrain.workers=2", "pretrain.gpus=1")).verdict
        == "ok"
    )


def test_nodes_that_differ_are_named() -> None:
    here = doctor.versions()
    assert judge_nodes(here, {"10.0.0.1": here}).verdict == "ok"
    nodes = {"10.0.0.1": here, "10.0.0.2": "Python 3.11.9", "10.0.0.3": "No module named 'cropray'"}
    finding = judge_nodes(here, nodes)
    assert finding.verdict == "bad"
    assert "10.0.0.2: Python 3.11.9; 10.0.0.3: No module" in finding.found
    assert "10.0.0.1" not in finding.found


def test_a_cluster_that_does_not_answer_is_reported_at_once() -> None:
    start = time.monotonic()
    (finding,) = examine_cluster(configured("ray.address=127.0.0.1:1"), lambda: True)
    assert time.monotonic() - start < 60
    assert (finding.check, finding.verdict) == ("ray", "bad")
    assert "127.0.0.1:1" in finding.found


def test_a_storage_is_written_read_and_left_as_it_was(tmp_path: Path) -> None:
    with storage_probe(Folder(str(tmp_path / "not" / "yet"))) as (finding, is_readable):
        assert finding.verdict == "ok"
        (probe,) = tmp_path.iterdir()
        assert is_readable()
        probe.write_bytes(b"of another machine")
        assert not is_readable()
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_cannot_be_written_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(Folder, "write_bytes", refuse)
    with storage_probe(Folder(str(tmp_path))) as (finding, _):
        assert finding.verdict == "bad"
        assert "Permission denied" in finding.found


def test_a_store_that_cannot_be_opened_is_a_finding_and_the_other_checks_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    findings = {finding.check: finding for finding in examine(Config(), "nowhere://bucket/run")}
    assert findings["storage"].verdict == "bad"
    assert "nowhere://bucket/run" in findings["storage"].found
    assert {"torch", "memory", "disk", "resources", "tracking", "earth engine"} < set(findings)


def test_the_tracking_database_is_not_created(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "run"))
    assert examine_tracking(Config(), None).verdict == "ok"
    finding = examine_tracking(Config(), folder)
    assert (finding.verdict, f"{tmp_path}/run/mlflow/mlflow.db" in finding.found) == ("ok", True)
    assert not (tmp_path / "run").exists()
    assert "tracking.uri" in examine_tracking(Config(), Folder("gs://bucket/run")).found


def test_a_tracking_server_that_is_down_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    finding = examine_tracking(configured("tracking.uri=http://127.0.0.1:1"), None)
    assert finding.verdict == "bad"
    assert "http://127.0.0.1:1" in finding.found


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without credentials."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (
        *("EE_PROJECT", "GOOGLE_CLOUD_PROJECT", "EE_SERVICE_ACCOUNT_KEY", "CLOUDSDK_CONFIG"),
        "GOOGLE_APPLICATION_CREDENTIALS",
    ):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_earth_engine_without_an_account_is_bad_where_it_is_the_source(home: Path) -> None:
    assert examine_earth_engine(Config(), online=False).verdict == "ok"
    finding = examine_earth_engine(configured("source.kind=earthengine"), online=False)
    assert finding.verdict == "bad"
    assert "earthengine authenticate" in finding.found


@pytest.mark.parametrize(
    ("place", "key"),
    [
        (".config/earthengine/credentials", "project"),
        (".config/gcloud/application_default_credentials.json", "quota_project_id"),
    ],
)
def test_earth_engine_by_stored_credentials(home: Path, place: str, key: str) -> None:
    stored = home / place
    stored.parent.mkdir(parents=True)
    stored.write_text(json.dumps({"refresh_token": "secret-1", key: "fields"}))
    found = earth_engine_account(EarthEngineConfig())
    assert place in found
    assert found.endswith("project: fields")
    stored.write_text(json.dumps({"refresh_token": "secret-1"}))
    with pytest.raises(InputError, match="EE_PROJECT") as refused:
        earth_engine_account(EarthEngineConfig())
    assert "secret" not in found + str(refused.value)


def test_earth_engine_by_a_key_that_is_missing(home: Path) -> None:
    key = str(home / "key.json")
    config = configured("source.kind=earthengine", f"source.earthengine.service_account_key={key}")
    finding = examine_earth_engine(config, online=False)
    assert (finding.verdict, key in finding.found) == ("bad", True)


def test_earth_engine_is_asked_and_does_not_answer(home: Path) -> None:
    config = configured("source.earthengine.url=http://127.0.0.1:1")
    assert "project: loopback" in earth_engine_account(config.source.earthengine)
    assert examine_earth_engine(config, online=True).verdict == "bad"


def test_the_command_ends_with_1_where_something_is_bad(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SystemExit) as exit_:
        main(["doctor", "--run", str(tmp_path), "--set", "finetune.workers=9999", "--json"])
    assert exit_.value.code == 1
    findings = {row["check"]: row for row in json.loads(capsys.readouterr().out)}
    assert findings["resources"].keys() == {"check", "verdict", "found", "remedy"}
    assert findings["resources"]["verdict"] == "bad"
    assert findings["storage"]["verdict"] == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_opened_is_a_finding_and_the_settings_of_a_run_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--run", "nosuch://bucket/run", "--json"])
    findings = {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["storage"]["verdict"] == "bad"
    assert "nosuch" in findings["storage"]["found"]
    Run(Folder(str(tmp_path)), configured("finetune.workers=9999")).claim("finetune")
    with pytest.raises(SystemExit):
        main(["doctor", "--run", str(tmp_path), "--json"])
    findings = {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert "9999" in findings["resources"]["found"]
