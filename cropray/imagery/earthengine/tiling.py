"""Requests by their size: what one may ask for, and how to ask for less. Pure planning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cropray.bands import S1_BANDS, S2_BANDS
from cropray.config.imagery import EarthEngineConfig
from cropray.grid import Window
from cropray.types import ImageRequest

# Limits of computePixels (https://developers.google.com/earth-engine/guides/usage); a response
# counts one byte a band and pixel for the mask.
MAX_BYTES, _MAX_SIDE, _MAX_BANDS = 48 << 20, 32_768, 1024
_MASK_BYTES = 1
_SMALLEST_SIDE = 64  # px: below this a request is refused for its months, not for its pixels
_REFUSALS = 3
S2_NAMES = [band.ee for band in S2_BANDS]
S1_NAMES = [band.ee for band in S1_BANDS]
BANDS = len(S2_NAMES) + len(S1_NAMES)
STORED = np.dtype(np.int16)
CODED = np.dtype(np.uint8)


def band_names(months: int) -> list[str]:
    """The bands of a request's composites: month by month, of each first Sentinel-2."""
    return [f"{name}_{month}" for month in range(months) for name in (*S2_NAMES, *S1_NAMES)]


@dataclass(frozen=True)
class Piece:
    """A part of an ImageRequest: a window of its grid, some of its periods, its maps or none."""

    window: Window
    first: int  # of the periods
    stop: int
    maps: tuple[str, ...]

    @property
    def bands(self) -> int:
        return (self.stop - self.first) * BANDS + len(self.maps)

    @property
    def nbytes(self) -> int:
        """Bytes of the response as the service counts them."""
        months = (self.stop - self.first) * BANDS * (STORED.itemsize + _MASK_BYTES)
        return (
            self.window.height
            * self.window.width
            * (months + len(self.maps) * (CODED.itemsize + _MASK_BYTES))
        )

    def fits(self, most_bytes: int) -> bool:
        side = max(self.window.height, self.window.width)
        return self.nbytes <= most_bytes and self.bands <= _MAX_BANDS and side <= _MAX_SIDE

    def __str__(self) -> str:
        at = self.window
        months = f"months {self.first + 1} to {self.stop}"
        return f"{at.height} x {at.width} px at row {at.row}, column {at.col}, {months}"

    def halves(self) -> tuple[Piece, Piece] | None:
        """The longer side halved, or the months where the sides are short; None: it is the smallest."""
        window = self.window
        if max(window.height, window.width) >= 2 * _SMALLEST_SIDE:
            one, other = _halves(window)
            return replace(self, window=one), replace(self, window=other)
        if self.stop - self.first > 1:
            middle = (self.first + self.stop) // 2
            return replace(self, stop=middle), replace(self, first=middle, maps=())
        return None


def plan_pieces(request: ImageRequest, most_bytes: int = MAX_BYTES) -> list[Piece]:
    """Pieces that cover a request once, each within the limits; one where that is possible."""
    whole = Piece(
        Window(0, 0, request.grid.height, request.grid.width), 0, len(request.periods), request.maps
    )
    return list(_fitting(whole, most_bytes))


@dataclass
class LearntSize:
    """How much to ask for at once: half of what was refused for its work three times in a row.

    A limit of bytes is known beforehand, those of memory and time are not; and a request that times
    out has taken minutes.
    """

    most_bytes: int = MAX_BYTES
    _refused: int = 0

    def refuse(self, piece: Piece) -> None:
        self._refused += 1
        if self._refused >= _REFUSALS:
            self.most_bytes, self._refused = min(self.most_bytes, piece.nbytes) // 2, 0

    def answer(self, piece: Piece) -> None:
        if piece.nbytes > self.most_bytes // 2:
            self._refused = 0


def estimated(pieces: Sequence[Piece], config: EarthEngineConfig) -> dict[str, Any]:
    """JSON: requests, bytes, EECU-hours and wall time at the quota, with what was assumed."""
    nbytes = sum(piece.nbytes for piece in pieces)
    pixel_months = sum(
        piece.window.height * piece.window.width * (piece.stop - piece.first) for piece in pieces
    )
    # A small request is taken to last in proportion to its bytes.
    in_turn_s = nbytes / MAX_BYTES * config.assumed_request_s / config.in_flight
    return {
        "requests": len(pieces),
        "response_bytes": nbytes,
        "eecu_hours": round(pixel_months / 1e6 * config.assumed_eecu_s / 3600, 3),
        "wall_time_s": round(max(in_turn_s, len(pieces) / config.per_second), 1),
        "assumed": (
            f"{config.assumed_eecu_s:g} EECU-seconds a megapixel and month, {config.assumed_request_s:g} s a "
            f"request of 48 MiB, {config.in_flight} in flight, at most {config.per_second:g} a second"
        ),
    }


def _fitting(piece: Piece, most_bytes: int) -> Iterator[Piece]:
    halves = None if piece.fits(most_bytes) else piece.halves()
    if halves is None:
        yield piece
        return
    for half in halves:
        yield from _fitting(half, most_bytes)


def _halves(window: Window) -> tuple[Window, Window]:
    if window.height >= window.width:
        top = (window.height + 1) // 2
        return (
            replace(window, height=top),
            replace(window, row=window.row + top, height=window.height - top),
        )
    left = (window.width + 1) // 2
    return replace(window, width=left), replace(window, col=window.col + left, width=window.width - left)
