"""A crew in the process of the test: stages that fan out, without Ray."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from cropray.pipeline import compact, predict
from cropray.pipeline.crew import Worker


class CrewHere:
    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def results(self, jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """One after the other; jobs and results are pickled, as between processes."""
        for job in jobs:
            yield job, _sent(self._worker.do(_sent(job)))


@contextmanager
def crew_of_one(
    _stage: str, worker: type[Worker], arguments: Sequence[Any], **_options: Any
) -> Iterator[CrewHere]:
    yield CrewHere(worker(*_sent(arguments)))


def use_crew_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compaction and prediction by one worker, in this process."""
    for stage in (compact, predict):
        monkeypatch.setattr(stage, "ray_session", nullcontext)
        monkeypatch.setattr(stage, "crew", crew_of_one)
    monkeypatch.setattr(predict, "_asks", lambda _workers: {"CPU": 1.0})


def _sent(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))
