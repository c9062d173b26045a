"""Requests cut into chunks: what one response can hold, and how to request less. Pure planning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cropray.bands import S1_BANDS, S2_BANDS
from cropray.config.imagery import EarthEngineConfig
from cropray.grid import Window
from cropray.types import ImageRequest

# Limits of computePixels (https://developers.google.com/earth-engine/guides/usage). A response counts one
# byte for each band and pixel for the mask.
MAX_BYTES, _MAX_SIDE, _MAX_BANDS = 48 << 20, 32_768, 1024
_MASK_BYTES = 1
_SMALLEST_SIDE = 64  # px: a smaller window is refused for its months, not for its pixels
_REFUSALS = 3
S2_NAMES = [band.ee for band in S2_BANDS]
S1_NAMES = [band.ee for band in S1_BANDS]
BANDS = len(S2_NAMES) + len(S1_NAMES)
ORBITS_FOLLOW = "__"  # in the name of the last band of the composites: the radar orbits of the season
STORED = np.dtype(np.int16)
CODED = np.dtype(np.uint8)


def band_names(months: int) -> list[str]:
    """The bands of a chunk's composites, month by month, Sentinel-2 before Sentinel-1."""
    return [f"{name}_{month}" for month in range(months) for name in (*S2_NAMES, *S1_NAMES)]


@dataclass(frozen=True)
class Chunk:
    """A part of an ImageRequest: a window of its grid, some of its periods, all of its maps or none."""

    window: Window
    first: int  # period
    stop: int
    maps: tuple[str, ...]

    @property
    def bands(self) -> int:
        return (self.stop - self.first) * BANDS + len(self.maps)

    @property
    def nbytes(self) -> int:
        """Bytes of the response as the service counts them."""
        months = (self.stop - self.first) * BANDS * (STORED.itemsize + _MASK_BYTES)
        maps = len(self.maps) * (CODED.itemsize + _MASK_BYTES)
        return self.window.height * self.window.width * (months + maps)

    def __str__(self) -> str:
        at = self.window
        months = f"months {self.first + 1} to {self.stop}"
        return f"{at.height} x {at.width} px at row {at.row}, column {at.col}, {months}"

    def halves(self) -> tuple[Chunk, Chunk] | None:
        """Cut along the longer side, or between months where the sides are short; None for the smallest."""
        at, months = self.window, self.stop - self.first
        if max(at.height, at.width) < 2 * _SMALLEST_SIDE:
            middle = self.first + months // 2
            return (replace(self, stop=middle), replace(self, first=middle, maps=())) if months > 1 else None
        if at.height >= at.width:
            top = (at.height + 1) // 2
            one, other = (
                replace(at, height=top),
                replace(at, row=at.row + top, height=at.height - top),
            )
        else:
            left = (at.width + 1) // 2
            one, other = replace(at, width=left), replace(at, col=at.col + left, width=at.width - left)
        return replace(self, window=one), replace(self, window=other)


def plan_chunks(request: ImageRequest, max_bytes: int = MAX_BYTES) -> list[Chunk]:
    """Chunks that cover a request once, each within the limits; a single one where possible."""
    window = Window(0, 0, *request.grid.shape)
    return list(_fitting(Chunk(window, 0, len(request.periods), request.maps), max_bytes))


def _fitting(chunk: Chunk, max_bytes: int) -> Iterator[Chunk]:
    side = max(chunk.window.height, chunk.window.width)
    fits = chunk.nbytes <= max_bytes and chunk.bands <= _MAX_BANDS and side <= _MAX_SIDE
    halves = None if fits else chunk.halves()
    if halves is None:
        yield chunk
        return
    for half in halves:
        yield from _fitting(half, max_bytes)


@dataclass
class AdaptiveSize:
    """How much to request at once: half of what was refused for its work three times in a row.

    The limit of bytes is known, those of memory and computing time are not, and a request that times out
    takes minutes.
    """

    max_bytes: int = MAX_BYTES
    _refused: int = 0

    def record_refusal(self, chunk: Chunk) -> None:
        self._refused += 1
        if self._refused >= _REFUSALS:
            self.max_bytes, self._refused = min(self.max_bytes, chunk.nbytes) // 2, 0

    def record_answer(self, chunk: Chunk) -> None:
        if chunk.nbytes > self.max_bytes // 2:
            self._refused = 0


def estimate_cost(chunks: Sequence[Chunk], config: EarthEngineConfig) -> dict[str, Any]:
    """JSON: requests, bytes, EECU-hours and wall time within the quota, and the assumptions made."""
    nbytes = sum(chunk.nbytes for chunk in chunks)
    pixel_months = sum(c.window.height * c.window.width * (c.stop - c.first) for c in chunks)
    # A request takes its latency, and a time in proportion to its bytes.
    requests_s = len(chunks) * config.assumed_latency_s + nbytes / MAX_BYTES * config.assumed_request_s
    return {
        "requests": len(chunks),
        "response_bytes": nbytes,
        "eecu_hours": round(pixel_months / 1e6 * config.assumed_eecu_s / 3600, 3),
        "wall_time_s": round(max(requests_s / config.in_flight, len(chunks) / config.per_second), 1),
        "assumed": (
            f"{config.assumed_eecu_s:g} EECU-seconds a megapixel and month, {config.assumed_latency_s:g} s a "
            f"request and {config.assumed_request_s:g} s more for 48 MiB, {config.in_flight} in flight, at "
            f"most {config.per_second:g} a second"
        ),
    }
