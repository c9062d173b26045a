"""What the threads of one process hold of pixels, and what it gives back."""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE = 4 << 20


class Seats:
    """How many threads work at the same time: each on a seat, given up while it waits for an answer.

    So many requests can be on their way, and the memory is that of the few tiles in work and of the
    answers that wait for a seat.
    """

    def __init__(self, count: int) -> None:
        self._free = threading.Semaphore(count)

    @contextmanager
    def taken(self) -> Iterator[None]:
        with self._free:
            yield

    @contextmanager
    def given_up(self) -> Iterator[None]:
        """Only within `taken`."""
        self._free.release()
        try:
            yield
        finally:
            self._free.acquire()


def return_large_blocks() -> None:
    """Have the C library give arrays of more than 4 MB back to the system when they are freed.

    glibc raises that limit to the size of what is freed, up to 32 MB (mallopt(3)), and then keeps what
    each of many threads has freed: half of what an export of tiles of 480 px took.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
