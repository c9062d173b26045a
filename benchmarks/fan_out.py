"""Throughput of `pipeline.fan_out` beside plain Ray tasks, with jobs that only sleep.

    python benchmarks/fan_out.py [--jobs 400] [--repeats 3] [--json]

400 jobs sleep 0.2 s each, 20 at the same time: in one process with 20 threads, and in two with 10 each. The
ideal is 0.2 s for every 20 jobs. The peer is a streaming task of Ray for each process, which gets its share
of the jobs at once, runs it with as many threads and yields each result: no dataset, no batches, no retries.
It bounds what Ray allows. Both run on one Ray with two CPUs, after a run of each to warm it up. CPU seconds
are those of this process and all of Ray's, medians like all figures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import ray

from cropray.cluster import ray_session
from cropray.config import RayConfig
from cropray.pipeline.fan_out import fan_out

SLEEP_S, IN_FLIGHT = 0.2, 20
TARGETS = {1: 0.80, 2: 0.65}
"""Share of the ideal throughput, by processes."""
TICKS = os.sysconf("SC_CLK_TCK")

Run = Callable[[int, int, int], int]
"""Jobs, processes and threads to the number of results."""


class Sleeper:
    def __call__(self, number: int) -> int:
        time.sleep(SLEEP_S)
        return number


def on_ray_data(jobs: int, processes: int, threads: int) -> int:
    outcomes = fan_out(
        "benchmark",
        Sleeper,
        (),
        range(jobs),
        config=RayConfig(),
        processes=processes,
        threads=threads,
        resources={"CPU": 1.0},
    )
    return len({outcome.result for outcome in outcomes})


@ray.remote(num_returns="streaming")
def share(numbers: range, threads: int) -> Iterator[int]:
    sleeper = Sleeper()
    with ThreadPoolExecutor(threads) as pool:
        for future in as_completed([pool.submit(sleeper, number) for number in numbers]):
            yield future.result()


def on_plain_tasks(jobs: int, processes: int, threads: int) -> int:
    running = [share.remote(range(first, jobs, processes), threads) for first in range(processes)]
    results = set()
    while running:
        (ready,), running = ray.wait(running)
        for result in ready:
            results.add(ray.get(result))
            break
        else:
            continue
        running.append(ready)
    return len(results)


def cpu_seconds() -> float:
    """Of this process and its descendants, those that have ended included."""
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(path.parent.name)] = int(fields[1])
        ticks[int(path.parent.name)] = sum(map(int, fields[11:15]))
    family = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(ticks[process] for process in family) / TICKS


def measured(run: Run, jobs: int, processes: int, repeats: int) -> dict[str, float]:
    """Medians; the first run, which is not counted, warms up."""
    walls, cpus = [], []
    for _ in range(1 + repeats):
        cpu, start = cpu_seconds(), time.perf_counter()
        assert run(jobs, processes, IN_FLIGHT // processes) == jobs
        walls.append(time.perf_counter() - start)
        cpus.append(cpu_seconds() - cpu)
    wall = statistics.median(walls[1:])
    return {
        "wall_s": wall,
        "of_ideal": jobs / IN_FLIGHT * SLEEP_S / wall,
        "cpu_ms_a_job": 1000 * statistics.median(cpus[1:]) / jobs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    engines: dict[str, Run] = {"fan_out on Ray Data": on_ray_data, "plain Ray tasks": on_plain_tasks}
    with ray_session(RayConfig(num_cpus=2)):
        results = {
            f"{engine}, {processes} x {IN_FLIGHT // processes}": measured(
                run, args.jobs, processes, args.repeats
            )
            for processes in TARGETS
            for engine, run in engines.items()
        }
    if args.json:
        print(json.dumps({"jobs": args.jobs, "runs": results, "targets": TARGETS}))
        return
    print(f"{args.jobs} jobs of {SLEEP_S:g} s, {IN_FLIGHT} at the same time, medians of {args.repeats}\n")
    print(" " * 28 + "".join(f"{title:>14}" for title in ("wall s", "of the ideal", "CPU ms a job")))
    for name, result in results.items():
        print(f"{name:28}{result['wall_s']:14.2f}{result['of_ideal']:14.0%}{result['cpu_ms_a_job']:14.1f}")
    wanted = ", ".join(f"{target:.0%} by {processes}" for processes, target in TARGETS.items())
    print(f"\ntargets of fan_out: at least {wanted} processes")


if __name__ == "__main__":
    main()
