"""Jobs handed to processes on Ray: none is lost, and whatever cannot go on says so."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from cropray.errors import InputError
from cropray.pipeline import crew as crew_module
from cropray.pipeline.crew import RETRIES, Crew, Died, crew

CPU = {"CPU": 1.0}


class Squares:
    """Squares of numbers, with the process that took them."""

    def __init__(self, deadly: int = 1000) -> None:
        self._deadly = deadly

    def do(self, number: int) -> tuple[int, int]:
        time.sleep(0.05)
        if number == self._deadly:
            os._exit(1)
        if number < 0:
            raise ArithmeticError(f"{number} is below 0")
        return number * number, os.getpid()


class Unfit:
    def __init__(self) -> None:
        raise FileNotFoundError("there is no rois/parcels.parquet")

    def do(self, job: Any) -> None:
        raise NotImplementedError


def test_every_job_is_done_once_by_the_processes_that_have_room(ray_local: None) -> None:
    # Of three processes only two fit on two CPUs: the third must not keep any job waiting.
    with crew("export", Squares, (), size=3, threads=2, asks=CPU) as squares:
        done = list(squares.results(range(40)))
    assert Counter(number for number, _ in done) == Counter(range(40))
    assert all(square == number * number for number, (square, _) in done)
    by_process = Counter(process for _, (_, process) in done)
    assert len(by_process) == 2
    assert min(by_process.values()) > 5


def test_a_job_that_kills_its_process_is_given_up_and_the_others_are_done(ray_local: None) -> None:
    with crew("export", Squares, (7,), size=1, threads=1, asks=CPU) as squares:
        done = dict(squares.results(range(10)))
    assert done.keys() == set(range(10))
    assert isinstance(done.pop(7), Died)
    assert [square for square, _ in done.values()] == [number * number for number in done]
    assert len({process for _, process in done.values()}) > 1  # it was started anew
    assert RETRIES > 0


def test_jobs_are_taken_as_there_is_room_and_none_when_no_more_are_given(ray_local: None) -> None:
    taken: list[int] = []
    finished: list[int] = []

    def jobs() -> Iterator[int]:
        for number in range(100):
            if 7 in finished:
                return
            taken.append(number)
            yield number

    with crew("export", Squares, (), size=2, threads=2, asks=CPU) as squares:
        for number, _ in squares.results(jobs()):
            finished.append(number)
            assert len(taken) - len(finished) < 4
    assert sorted(finished) == taken
    assert 8 <= len(taken) < 20


def test_what_a_worker_raises_ends_the_crew(ray_local: None) -> None:
    with (
        pytest.raises(ArithmeticError, match="-1 is below 0"),
        crew("export", Squares, (), size=1, threads=1, asks=CPU) as squares,
    ):
        list(squares.results([1, -1]))


def test_a_process_that_cannot_start_says_what_it_lacks(ray_local: None) -> None:
    with (
        pytest.raises(InputError, match=r"there is no rois/parcels.parquet; every node must have cropray"),
        crew("export", Unfit, (), size=1, threads=1, asks=CPU) as unfit,
    ):
        list(unfit.results([1]))


def test_a_crew_says_for_which_resources_it_waits(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class SaidError(Exception):
        pass

    def raise_what_is_said(text: str) -> None:
        raise SaidError(text)

    monkeypatch.setattr(crew_module, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(crew_module, "say", raise_what_is_said)
    asks = {"CPU": 0.25, "ee": 1.0}
    waits: Crew[int, Any]
    with (
        pytest.raises(SaidError, match=r"process of CPU 0\.25, ee 1; all nodes have CPU 2, ee 0"),
        crew("export", Squares, (), size=1, threads=1, asks=asks) as waits,
    ):
        list(waits.results([1]))
