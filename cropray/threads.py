"""Work beside the thread that asks for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")


def in_thread(work: Callable[[], T]) -> Future[T]:
    """Run `work` in a thread of its own, which does not keep the process alive.

    The main thread stays free for the user's interrupt, whose handling others (Ray Train) would take
    over there, and keep.
    """
    future: Future[T] = Future()

    def target() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # handed over to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=target, name="beside", daemon=True).start()
    return future


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` gives. Raises TimeoutError where it takes longer; then it is left to itself."""
    answer = in_thread(work)
    if not wait([answer], timeout=seconds).done:
        raise TimeoutError(f"no answer in {seconds:g} s")
    return answer.result()
