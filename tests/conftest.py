"""Settings that must stand before heavy packages are imported, and where real data lies."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A shared machine's pauses say nothing about the code, so examples have no time limit each.
settings.register_profile("cropray", deadline=None)
settings.load_profile("cropray")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _modules_found_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered model puts its own copy of modules in front, and spawned processes would take that."""
    monkeypatch.setattr(sys, "path", sys.path.copy())


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export, compaction and prediction work in this process."""
    from tests.without_ray import work_without_ray

    work_without_ray(monkeypatch)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes with one thread, so that sums do not depend on their number; its state is put back."""
    import torch

    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(generator)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; tests that need it are skipped, with the reason, where it is absent."""
    folder = Path(os.environ.get("CROPRAY_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (CROPRAY_SHARED_DATA names its folder)")
    return folder.resolve()
