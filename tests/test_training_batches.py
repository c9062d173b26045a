"""Batches on their way to the device: in order, one ahead; on a GPU that only notes what is asked of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cropray.training.batches import one_ahead, prefetched
from cropray.types import Batch, calendar_months

CPU = torch.device("cpu")


def until(what: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not what() and time.monotonic() < deadline:
        time.sleep(0.005)
    return what()


def test_one_item_is_prepared_ahead_and_no_more() -> None:
    prepared: list[int] = []

    def prepare(number: int) -> int:
        prepared.append(number)
        return 10 * number

    items = one_ahead(map(prepare, range(5)))
    assert prepared == []
    for number in range(5):
        assert next(items) == 10 * number
        assert until(lambda upto=number: prepared == list(range(min(upto + 2, 5))))
        time.sleep(0.02)
        assert len(prepared) == min(number + 2, 5)
    assert list(items) == []


def test_what_goes_wrong_ahead_is_raised_when_its_turn_has_come() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise OSError("gone")

    taken = one_ahead(items())
    assert [next(taken), next(taken)] == [1, 2]
    with pytest.raises(OSError, match="gone"):
        next(taken)


def test_an_epoch_that_is_left_leaves_no_thread_behind() -> None:
    import threading

    taken: Any = one_ahead(iter(range(1, 100)))
    assert next(taken) == 1
    taken.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_on_a_cpu_nothing_is_copied_and_nothing_is_read_ahead() -> None:
    read: list[int] = []

    def batches() -> Iterator[np.ndarray]:
        for i in range(3):
            read.append(i)
            yield np.full(4, i)

    for number, (batch, (tensor,)) in enumerate(prefetched(batches(), lambda x: [x], CPU)):
        assert read == list(range(number + 1))
        assert tensor.data_ptr() == batch.ctypes.data


class Gpu:
    """Stands in for `torch.cuda` and for tensors: notes what is asked for, in order."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._on = "steps"
        self.steps = self.stream_of("steps")

    def stream_of(self, name: str) -> Any:
        return SimpleNamespace(
            name=name,
            record_event=lambda: self.notes.append(f"{name}: event") or "event",
            wait_event=lambda event: self.notes.append(f"{name}: waits for {event}"),
        )

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self._on = self._on, stream.name
        yield
        self._on = before

    def tensor(self, array: str) -> Any:
        def copied(_device: object, *, non_blocking: bool) -> Any:
            self.notes.append(f"{self._on}: copies {array}, {'' if non_blocking else 'not '}by itself")
            return SimpleNamespace(
                record_stream=lambda stream: self.notes.append(f"{array} belongs to {stream.name}"),
                is_cuda=True,
            )

        def pinned() -> Any:
            self.notes.append(f"pins {array}")
            return SimpleNamespace(to=copied)

        return SimpleNamespace(is_cuda=False, pin_memory=pinned)


def test_a_gpu_copies_beside_its_steps_which_wait_for_their_own_batch_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = Gpu()
    monkeypatch.setattr(torch, "as_tensor", gpu.tensor)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: gpu.stream_of("beside"))
    monkeypatch.setattr(torch.cuda, "stream", gpu.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: gpu.steps)
    batches = prefetched(["a", "b"], lambda name: [f"{name}1", f"{name}2"], torch.device("cuda"))
    assert next(batches)[0] == "a"
    assert until(lambda: gpu.notes.count("beside: event") == 2)  # the next one is on its way already
    first = [note for note in gpu.notes if "b1" not in note and "b2" not in note]
    assert first[:5] == [
        *("pins a1", "beside: copies a1, by itself", "pins a2", "beside: copies a2, by itself"),
        "beside: event",
    ]
    assert {"steps: waits for event", "a1 belongs to steps", "a2 belongs to steps"} <= set(first)
    assert "b1 belongs to steps" not in gpu.notes
    assert [batch for batch, _ in batches] == ["b"]
    assert gpu.notes[-3:] == ["steps: waits for event", "b1 belongs to steps", "b2 belongs to steps"]


def test_the_month_of_a_period_is_that_of_its_middle_as_for_a_checkpoint() -> None:
    starts = [
        [date(2016, 12, 31), date(2017, 1, 31), date(2017, 3, 1)],
        [date(2020, 2, 15), date(2020, 2, 16), date(2020, 12, 17)],
    ]
    nothing = np.zeros((2, 1, 3, 1, 1), np.int16)
    batch = Batch(
        nothing,
        nothing,
        nothing[:, 0, 0].astype(np.uint8),
        None,
        np.zeros(2, np.int64),
        {"period_start": starts},
    )
    assert batch.month_bt.tolist() == [[1, 2, 3], [2, 3, 12]]
    assert batch.month_bt.tolist() == [calendar_months(each) for each in starts]
