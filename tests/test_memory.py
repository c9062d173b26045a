"""Threads that hold pixels: few at a time, while many wait for answers."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cropray.imagery.earthengine.quota import released


def test_many_wait_at_once_and_few_work_at_once() -> None:
    slots, lock = threading.Semaphore(2), threading.Lock()
    most = {"waiting": 0, "working": 0}
    now = dict.fromkeys(most, 0)
    everyone = threading.Barrier(8, timeout=20)

    def during(what: str) -> None:
        with lock:
            now[what] += 1
            most[what] = max(most[what], now[what])
        if what == "waiting":
            everyone.wait()  # passes only if all wait at the same time
        time.sleep(0.005)
        with lock:
            now[what] -= 1

    def tile(_: int) -> None:
        with slots:
            during("working")
            with released(slots):
                during("waiting")
            during("working")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(tile, range(8)))
    assert most == {"waiting": 8, "working": 2}


def test_a_wait_that_fails_takes_its_slot_again() -> None:
    slots = threading.Semaphore(1)
    for _ in range(3):
        with pytest.raises(OSError, match="no answer"), slots, released(slots):
            raise OSError("no answer")
    assert slots.acquire(blocking=False)


def test_without_slots_there_is_nothing_to_release() -> None:
    with released(None):
        pass
