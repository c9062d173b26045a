"""What every source of imagery offers: composites, and its identity for the record."""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from cropray.config import Config
from cropray.imagery.earthengine.quota import RequestQuota
from cropray.types import Composite, ImageRequest

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


@runtime_checkable
class ImagerySource(Protocol):
    """A source of Sentinel-1 and Sentinel-2 composites. Instances pickle and hold no open files."""

    def identity(self) -> dict[str, Any]:
        """JSON that names what the pixels depend on: it enters the recipe hash of every part.

        Holds at least `kind` and `s1_quantity` ("gamma0" or "sigma0").
        """
        ...

    def composite(self, request: ImageRequest) -> Composite:
        """The composites of a request; a period without any scene is all invalid, not an error.

        Raises InputError where the scenes cannot be used (units unknown, offset ambiguous, ...)
        and where `request.maps` names a map that the source does not offer.
        """
        ...


@runtime_checkable
class MeteredSource(ImagerySource, Protocol):
    """A source whose requests cost money or quota."""

    def preflight(self, request: ImageRequest) -> None:
        """Ask for next to nothing of a request. Raises InputError where account or settings are wrong."""
        ...

    def estimate(self, requests: Iterable[ImageRequest]) -> dict[str, Any]:
        """JSON: what these requests would take; nothing is sent."""
        ...


def open_source(
    config: Config, quota: RequestQuota | None = None, seats: Seats | None = None
) -> ImagerySource:
    """The source of `source.kind`. Raises InputError where its settings are not complete.

    `quota` is what this process shares with others; a source that needs one has its own without.
    `seats` are what the threads of this process work on.
    """
    match config.source.kind:
        case "simulated":
            from cropray.imagery.simulated import SimulatedSource

            return SimulatedSource(config.source.simulated)
        case "stac":
            from cropray.imagery.stac import StacSource

            return StacSource(config.source.stac)
        case "earthengine":
            from cropray.imagery.earthengine.source import EarthEngineSource

            return EarthEngineSource(config.source.earthengine, quota, seats)
