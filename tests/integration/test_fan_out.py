"""Jobs on Ray Data: none is lost or doubled, and one that kills its process is given up alone."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cropray.config import RayConfig
from cropray.errors import InputError
from cropray.pipeline.fan_out import RETRIES, Outcome, fan_out

ROOT = Path(__file__).parents[2]


class Squares:
    """Squares of numbers, with the process that took them; notes every attempt as a line of a file."""

    def __init__(self, folder: Path, deadly: int = -1) -> None:
        self._folder, self._deadly = folder, deadly
        self._note("made", os.getpid())

    def _note(self, name: str, value: int) -> None:
        with (self._folder / name).open("a") as file:
            file.write(f"{value}\n")

    def __call__(self, number: int) -> tuple[int, int]:
        self._note("tried", number)
        time.sleep(0.05)
        if number == self._deadly:
            os._exit(1)
        if number == 13:
            raise ValueError("13 brings bad luck")
        return number * number, os.getpid()


def noted(folder: Path, name: str) -> Counter[int]:
    return Counter(map(int, (folder / name).read_text().split()))


def squares(
    folder: Path, jobs: range, *, processes: int, threads: int, deadly: int = -1, **resources: float
) -> Generator[Outcome[int, tuple[int, int]], None, None]:
    return fan_out(
        "export",
        Squares,
        (folder, deadly),
        jobs,
        config=RayConfig(),
        processes=processes,
        threads=threads,
        resources={"CPU": 1.0} | resources,
    )


def test_every_job_is_done_once_by_workers_that_are_made_once(ray_local: None, tmp_path: Path) -> None:
    # Of three processes only two have room on two CPUs: the third must not keep any job waiting.
    done = list(squares(tmp_path, range(40), processes=3, threads=2))
    assert Counter(outcome.job for outcome in done) == noted(tmp_path, "tried") == Counter(range(40))
    results = {outcome.job: outcome.result for outcome in done if outcome.result}
    assert {number: square for number, (square, _) in results.items()} == {
        number: number * number for number in range(40) if number != 13
    }
    assert [outcome.error for outcome in done if outcome.job == 13] == ["ValueError('13 brings bad luck')"]
    by_process = Counter(process for _, process in results.values())
    assert len(by_process) == 2
    assert min(by_process.values()) > 5
    assert noted(tmp_path, "made") == Counter(by_process.keys())


@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_that_kills_its_process_is_given_up_alone(
    ray_local: None, tmp_path: Path, processes: int
) -> None:
    done = list(squares(tmp_path, range(100, 164), processes=processes, threads=8, deadly=107))
    assert Counter(outcome.job for outcome in done) == Counter(range(100, 164))
    (given_up,) = [outcome for outcome in done if outcome.error]
    assert given_up.job == 107
    assert f"process died, {1 + RETRIES} times" in given_up.error
    assert noted(tmp_path, "tried")[107] == 1 + RETRIES
    assert all(outcome.result[0] == outcome.job**2 for outcome in done if outcome.result)


def made_by(worker: type[Any]) -> Generator[Outcome[int, Any], None, None]:
    resources, config = {"CPU": 1.0}, RayConfig()
    return fan_out(
        "export", worker, (), range(1000), config=config, processes=1, threads=1, resources=resources
    )


def test_a_worker_that_nodes_cannot_import_is_named(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ghost = ModuleType("ghost")
    exec("class Worker:\n    def __call__(self, job):\n        return job\n", ghost.__dict__)
    monkeypatch.setitem(sys.modules, "ghost", ghost)
    with pytest.raises(InputError, match=r"No module named 'ghost'.*Every node must have cropray"):
        list(made_by(ghost.Worker))


class Lamplighter:
    """Its job 1 ends when somebody has lit a lamp, after the outcome of job 0 has come."""

    def __init__(self, lamp: Path) -> None:
        self._lamp = lamp

    def __call__(self, number: int) -> str:
        while number and not self._lamp.exists():
            time.sleep(0.01)
        if number == 3:
            raise ArithmeticError("3 is a crowd")
        return "lit" if self._lamp.exists() else "dark"


def lamps(lamp: Path, jobs: range, **options: Any) -> Generator[Outcome[int, str], None, None]:
    resources, config = {"CPU": 1.0}, RayConfig()
    return fan_out(
        "export",
        Lamplighter,
        (lamp,),
        jobs,
        config=config,
        processes=1,
        threads=2,
        resources=resources,
        **options,
    )


def test_an_outcome_comes_while_others_of_its_batch_are_at_work(ray_local: None, tmp_path: Path) -> None:
    with closing(lamps(tmp_path / "lamp", range(2))) as outcomes:
        assert next(outcomes).result == "dark"
        (tmp_path / "lamp").touch()
        assert [outcome.result for outcome in outcomes] == ["lit"]


def test_what_is_closed_begins_no_more_jobs(ray_local: None, tmp_path: Path) -> None:
    outcomes = squares(tmp_path, range(100), processes=2, threads=2)
    next(outcomes)
    outcomes.close()
    again = list(lamps(tmp_path / "tried", range(1)))  # takes the CPU that a cancelled batch gives back
    assert [outcome.error for outcome in again] == [""]
    assert noted(tmp_path, "tried").total() < 50


def test_a_fault_of_the_program_ends_the_stage_with_its_traceback(ray_local: None, tmp_path: Path) -> None:
    (tmp_path / "lamp").touch()
    with pytest.raises(ArithmeticError, match="3 is a crowd") as fault:
        list(lamps(tmp_path / "lamp", range(4), failures=(OSError,)))
    assert 'raise ArithmeticError("3 is a crowd")' in "".join(fault.value.__notes__)


class Unfit:
    def __init__(self) -> None:
        raise FileNotFoundError("there is no rois/parcels.parquet")

    def __call__(self, job: int) -> None:
        raise NotImplementedError


class Suicidal:
    def __init__(self) -> None:
        os._exit(1)

    def __call__(self, job: int) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("worker", "reason"), [(Unfit, "there is no rois/parcels.parquet"), (Suicidal, "worker died")]
)
def test_processes_that_cannot_start_say_what_they_lack(
    ray_local: None, worker: type[Any], reason: str
) -> None:
    with pytest.raises(InputError, match=rf"{reason}.*Every node must have cropray") as refused:
        list(made_by(worker))
    assert str(refused.value).count("cannot start") == 1


SCRIPT = """
import json, os, resource, sys, time
from datetime import date
from pathlib import Path
from cropray.cluster import ray_session
from cropray.config import RayConfig
from cropray.config.imagery import PatchConfig
from cropray.config.rois import GridConfig
from cropray.pipeline.fan_out import fan_out
from tests.integration.test_fan_out import *
folder = Path(sys.argv[1])
"""


def environment() -> dict[str, str]:
    """The environment of a script, without a log level that Ray would print and another test may have set."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_BACKEND_LOG_LEVEL"}
    return {**kept, "PYTHONPATH": str(ROOT)}


def run_script(folder: Path, code: str) -> Any:
    """What a script of its own, with its own Ray, prints; anything else on the terminal is an error."""
    script = folder / "script.py"
    script.write_text(SCRIPT + code)
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_nothing_of_rays_is_on_the_terminal_even_if_a_process_dies(tmp_path: Path) -> None:
    code = """
with ray_session(RayConfig(num_cpus=2)):
    done = list(squares(folder, range(100, 120), processes=1, threads=4, deadly=107))
    time.sleep(2)  # until Ray has told of the death
print(json.dumps([outcome.job for outcome in done if outcome.error]))
"""
    assert run_script(tmp_path, code) == [107]


def test_a_process_keeps_its_worker_on_its_share_of_a_gpu(tmp_path: Path) -> None:
    code = """
import ray
ray.init(
    address="local", num_cpus=2, num_gpus=1,
    include_dashboard=False, log_to_driver=False, logging_level="ERROR")
done = list(squares(folder, range(100, 140), processes=2, threads=1, GPU=0.5))
print(json.dumps([len(done), len(noted(folder, "made"))]))
"""
    assert run_script(tmp_path, code) == [40, 2]


class Counting:
    """Counts the patches of tiles."""

    def __call__(self, tile: Any) -> int:
        return len(tile.patches)


def test_ten_thousand_tiles_cost_the_driver_little_memory(tmp_path: Path) -> None:
    code = """
from cropray.pipeline.tiles import plan_tiles
from cropray.types import Roi
def rss():
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024
def run(jobs, size):
    made = fan_out(
        "export", Counting, (), jobs, config=RayConfig(), processes=size, threads=8, resources={"CPU": 0.25})
    return [(outcome.error, rss()) for outcome in made]
with ray_session(RayConfig(num_cpus=2)):
    bounds = (500_000.0, 4_000_000.0, 564_000.0, 4_064_000.0)
    roi = Roi("roi", "maize", "", "", "", "train", bounds, "EPSG:32639", harvest_start=date(2022, 8, 1))
    run(range(0), 2)
    run(plan_tiles(roi, GridConfig(), PatchConfig(max_overlap=0, tile_patches=50)), 2)
    before = rss()
    tiles = plan_tiles(roi, GridConfig(), PatchConfig(max_overlap=0, tile_patches=1))
    done = run(tiles, 2)
print(json.dumps([len(tiles), len(done), sum(bool(e) for e, _ in done), max(r for _, r in done) - before]))
"""
    tiles, done, failed, more = run_script(tmp_path, code)
    assert tiles == done >= 10_000
    assert failed == 0
    assert more < 150


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_stage_whose_jobs_take_for_ever(tmp_path: Path, sent: signal.Signals) -> None:
    code = """
with ray_session(RayConfig(num_cpus=2)):
    for outcome in lamps(folder / "never", range(2)):
        (folder / "begun").touch()
"""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + code)
    command = [sys.executable, str(script), str(tmp_path)]
    stage = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        while not (tmp_path / "begun").exists():
            assert stage.poll() is None
            time.sleep(0.02)
        stage.send_signal(sent)
        _, said = stage.communicate(timeout=60)
    finally:
        stage.kill()
    assert stage.returncode != 0
    assert said.strip().splitlines()[-1] == "KeyboardInterrupt"
