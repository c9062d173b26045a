"""What goes with a job to the cluster, and what a job may not do."""

from pathlib import Path
from zipfile import ZipFile

import pytest

from cropray.cluster import check_run_folder
from cropray.errors import InputError
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What `--working-dir .` sends, as Ray packs it."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    target = tmp_path_factory.mktemp("package") / "package.zip"
    create_package(str(ROOT), target, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    assert target.stat().st_size < 5e6
    with ZipFile(target) as package:
        return [name for name in package.namelist() if not name.endswith("/")]


def test_the_package_jobs_and_configurations_go_to_the_cluster(sent: list[str]) -> None:
    for folder, pattern in (("cropray", "**/*.py"), ("jobs", "*.py"), ("configs", "*.yaml")):
        wanted = {str(path.relative_to(ROOT)) for path in (ROOT / folder).glob(pattern)}
        assert wanted
        assert wanted <= set(sent)
    assert "cropray/report/page/map.html.j2" in sent


def test_data_runs_tests_and_environments_stay(sent: list[str]) -> None:
    tops = {Path(name).parts[0] for name in sent}
    assert tops <= {"cropray", "jobs", "configs", *(path.name for path in ROOT.iterdir() if path.is_file())}
    assert not any(part.startswith(".") for name in sent for part in Path(name).parts)
    assert not any(name.endswith((".parquet", ".tif", ".safetensors", ".pyc")) for name in sent)


@pytest.mark.parametrize("reference", ["/runs/mine", "~/runs/mine", "gs://bucket/runs/mine", "s3://b/r"])
def test_a_run_folder_that_outlives_the_job_is_kept(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert check_run_folder(reference) == reference


def test_a_relative_run_folder_is_refused_in_a_job_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert check_run_folder("runs/mine") == "runs/mine"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(InputError, match="--run runs/mine is relative to the job's working directory"):
        check_run_folder("runs/mine")
