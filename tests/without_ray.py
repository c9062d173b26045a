"""Stages that fan out, in the process of the test: one batch after the other, without Ray Data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pytest

from cropray.pipeline import compact, export, fan_out, monitor, predict


def work_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only Ray is replaced: jobs, outcomes and faults go through the same functions and are pickled."""
    for stage in (compact, export, predict):
        monkeypatch.setattr(stage, "ray_session", nullcontext)
    monkeypatch.setattr(predict, "resources_per_process", lambda _processes: {"CPU": 1.0})
    monkeypatch.setattr(monitor, "missing_resources", lambda *_: "")
    monkeypatch.setattr(fan_out, "on_ray_data", _one_after_the_other)


def _one_after_the_other(
    rows: Sequence[fan_out.Row], work: Callable[[fan_out.Row], Iterator[fan_out.Row]], *_: Any
) -> Iterator[fan_out.Row]:
    for row in rows:
        yield from work(row)
