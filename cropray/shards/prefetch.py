"""A generator run ahead of its consumer in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
_POLL_S = 0.1


@dataclass(frozen=True)
class _Item(Generic[T]):
    values: list[T]  # one; none at the end
    error: BaseException | None = None


def prefetched(source: Iterator[T], depth: int) -> Iterator[T]:
    """The items of `source`, up to `depth` of them made ahead of time.

    An exception in `source` is raised where its item was due. A consumer that stops early ends the
    thread with it.
    """
    items: queue.Queue[_Item[T]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: _Item[T]) -> bool:
        while not stopped.is_set():
            try:
                items.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for value in source:
                if not put(_Item([value])):
                    return
            put(_Item([]))
        except BaseException as error:  # handed to the consumer, who raises it
            put(_Item([], error))

    thread = threading.Thread(target=produce, name="shard-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item = items.get()
            if item.error is not None:
                raise item.error
            if not item.values:
                return
            yield from item.values
    finally:
        stopped.set()
        thread.join()
