"""Jobs in batches, and what becomes of each job in the process that runs its batch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropray.config import RayConfig
from cropray.errors import InputError
from cropray.pipeline.fan_out import Outcome, batches, fan_out


@given(st.integers(0, 3000), st.integers(1, 8), st.integers(1, 20), st.integers(1, 16))
def test_every_job_is_in_one_batch_and_batches_shrink(
    jobs: int, processes: int, threads: int, rounds: int
) -> None:
    made = list(batches(dict(enumerate(range(jobs))), processes, threads, rounds))
    assert [number for batch in made for number, _ in batch] == list(range(jobs))
    sizes = [len(batch) for batch in made]
    assert all(one >= other for one, other in pairwise(sizes))
    assert max(sizes, default=0) <= threads * rounds
    assert all(size % threads == 0 for size in sizes[:-1])
    if jobs > threads * processes:
        assert len(made) > processes // 2  # there is work for all


def outcomes(worker: Callable[[], Callable[[int], object]], jobs: int = 4) -> list[Outcome[int, object]]:
    return list(
        fan_out(
            "export",
            worker,
            (),
            range(jobs),
            config=RayConfig(),
            processes=1,
            threads=2,
            resources={"CPU": 1.0},
        )
    )


@pytest.mark.usefixtures("without_ray")
class TestABatch:
    def test_has_an_outcome_for_each_job(self) -> None:
        def worker() -> Callable[[int], object]:
            def work(number: int) -> object:
                if number == 2:
                    raise InputError("there is no 2")
                return number * 10

            return work

        found = {outcome.job: (outcome.result, outcome.error) for outcome in outcomes(worker)}
        assert found == {0: (0, ""), 1: (10, ""), 2: (None, "there is no 2"), 3: (30, "")}

    def test_runs_as_many_jobs_at_once_as_it_has_threads(self) -> None:
        assert [outcome.error for outcome in outcomes(Waiting)] == [""] * 4

    def test_that_cannot_be_pickled_is_a_fault_and_says_where(self) -> None:
        with pytest.raises(TypeError) as fault:
            outcomes(lambda: lambda _: threading.Lock())
        assert "In a process of Ray" in fault.value.__notes__[0]

    def test_that_raises_what_cannot_be_pickled_is_a_fault_too(self) -> None:
        with pytest.raises(RuntimeError, match=r"(?s)raise StubbornError.*1 and 2"):
            outcomes(Stubborn)


BOTH = threading.Barrier(2, timeout=20)


class Waiting:
    """Its jobs end only if two wait at the same time."""

    def __call__(self, _: int) -> int:
        return BOTH.wait()


class StubbornError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class Stubborn:
    def __call__(self, _: int) -> int:
        raise StubbornError(1, 2)
