"""Google Earth Engine as a source: composites and maps of a tile in one request for pixels.

What a composite is, the server works out (`earthengine_client`) by the rule of `composite`. Here a
request is cut to what one response holds, sent within a quota, tried again where that may help, and
put together.
"""

from __future__ import annotations

import io
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from cropray.bands import NODATA, S1_BANDS, S2_BANDS
from cropray.config.imagery import EarthEngineConfig
from cropray.errors import InputError
from cropray.grid import Grid
from cropray.imagery.earthengine.assets import S1_COLLECTION, S2_COLLECTION, MapAsset, map_asset
from cropray.imagery.earthengine.failures import (
    RateLimitedError,
    RequestError,
    TooLargeError,
    UnavailableError,
)
from cropray.imagery.earthengine.quota import Attempt, ComputeSlots, LocalQuota, RequestQuota
from cropray.imagery.earthengine.tiling import (
    BANDS,
    CODED,
    STORED,
    LearntSize,
    Piece,
    band_names,
    estimated,
    plan_pieces,
)
from cropray.types import Composite, ImageRequest, IntArray

if TYPE_CHECKING:
    from cropray.imagery.earthengine.graph import Outline, Session

_LONGEST_WAIT_S = 60.0
_ATTEMPTS_AT_FIRST = 5  # some ten seconds: whoever has just started an export is still there
_UNPACKED_ROWS = 4
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class EarthEngineSource:
    """An ImagerySource over the account that the settings name. Threads may share one.

    A thread that asks for a composite holds one of `slots`, and gives it up while it waits for an answer.
    """

    def __init__(
        self, config: EarthEngineConfig, quota: RequestQuota | None = None, slots: ComputeSlots | None = None
    ) -> None:
        self._config = config
        self._slots = slots
        self._quota = quota or LocalQuota(config.in_flight, config.per_second, config.lease_s)
        self._opening = threading.Lock()
        self._opened: Session | None = None
        self._size = LearntSize()

    def __reduce__(self) -> tuple[Any, ...]:
        return EarthEngineSource, (self._config, self._quota)

    def identity(self) -> dict[str, Any]:
        return {
            "kind": "earthengine",
            "version": 1,  # of the graph: raised with any change that touches a pixel
            "s2": S2_COLLECTION,
            "s1": S1_COLLECTION,
            "s1_quantity": "sigma0",
            "eucropmap_year": self._config.eucropmap_year,
        }

    def composite(self, request: ImageRequest) -> Composite:
        """See ImagerySource. Scenes are not counted. A piece that is refused for its size, memory or
        time is asked for in halves; the pixels do not depend on it.

        Raises RequestError where all attempts at a piece failed.
        """
        return self._composite(request, self._config.attempts)

    def preflight(self, request: ImageRequest) -> None:
        """Ask for one pixel of a request: shows at once what is wrong with account or settings."""
        one = replace(request.grid, height=1, width=1)
        attempts = min(self._config.attempts, _ATTEMPTS_AT_FIRST)
        try:
            self._composite(replace(request, grid=one, name=f"{request.name} (one pixel, to try)"), attempts)
        except TooLargeError:
            return  # a service that is short of memory or time has let this account in
        except RequestError as error:
            raise InputError(
                f"Earth Engine does not answer ({error}, after {attempts} attempts); is "
                "source.earthengine.url right, and is there a connection? else try later"
            ) from error

    def estimate(self, requests: Iterable[ImageRequest]) -> dict[str, Any]:
        """See MeteredSource. Requests that the service refuses for their size come on top."""
        pieces = [piece for request in requests for piece in plan_pieces(request)]
        return estimated(pieces, self._config)

    def _composite(self, request: ImageRequest, attempts: int) -> Composite:
        assets = {name: map_asset(name, self._config.eucropmap_year) for name in request.maps}
        outlines = (_outline(request.grid), _outline(request.extent))
        stored_tchw = np.empty((len(request.periods), BANDS, *request.grid.shape), STORED)
        coded = {name: np.zeros(request.grid.shape, CODED) for name in assets}
        pieces = deque(plan_pieces(request, self._size.most_bytes))
        while pieces:
            piece = pieces.popleft()
            try:
                with self._slots.released() if self._slots else nullcontext():
                    pixels = self._fetch(piece, request, outlines, assets, attempts)
            except TooLargeError:
                self._size.refuse(piece)
                halves = piece.halves()
                if halves is None:
                    raise
                pieces.extendleft(reversed(halves))
                continue
            self._size.answer(piece)
            rows, cols = piece.window.slices
            _unpack(pixels, stored_tchw[piece.first : piece.stop, :, rows, cols])
            for name in piece.maps:
                coded[name][rows, cols] = pixels[name]
            del pixels
        maps = {name: asset.decode(coded[name]) for name, asset in assets.items()}
        return _as_composite(request, stored_tchw, maps)

    def _fetch(
        self,
        piece: Piece,
        request: ImageRequest,
        outlines: tuple[Outline, Outline],
        assets: Mapping[str, MapAsset],
        attempts: int,
    ) -> npt.NDArray[Any]:
        """The pixels of a piece, after up to `attempts` attempts."""
        retrying = Retrying(
            retry=retry_if_exception_type((RateLimitedError, UnavailableError)),
            stop=stop_after_attempt(attempts),
            wait=wait_random_exponential(multiplier=1, max=_LONGEST_WAIT_S),
            reraise=True,
        )
        pixels: npt.NDArray[Any] = retrying(self._attempt, piece, request, outlines, assets)
        return pixels

    def _attempt(
        self,
        piece: Piece,
        request: ImageRequest,
        outlines: tuple[Outline, Outline],
        assets: Mapping[str, MapAsset],
    ) -> npt.NDArray[Any]:
        session = self._session()
        permit = self._quota.acquire()
        started = time.monotonic()
        attempt = Attempt(f"{request.name} {piece}", "refused", 0.0, error="interrupted")
        try:
            content = session.pixels(
                request.grid.window(piece.window),
                request.periods[piece.first : piece.stop],
                request.recipe,
                outlines,
                {name: assets[name] for name in piece.maps},
            )
            attempt = replace(attempt, nbytes=len(content))
            pixels = _decoded(content, piece)
            attempt = replace(attempt, outcome="done", error="", restricted=session.restricted)
        except RequestError as error:
            waits_s = min(error.retry_after_s, self._config.deadline_s)
            attempt = replace(attempt, outcome=error.outcome, error=str(error), retry_after_s=waits_s)
            raise
        except InputError as error:
            attempt = replace(attempt, error=str(error))
            raise
        finally:
            self._quota.release(permit, replace(attempt, seconds=round(time.monotonic() - started, 3)))
        return pixels

    def _session(self) -> Session:
        from cropray.imagery.earthengine.graph import Session

        with self._opening:
            if self._opened is None:
                self._opened = Session(self._config)
            return self._opened


def _decoded(content: bytes, piece: Piece) -> npt.NDArray[Any]:
    """The structured array (H, W) of a response. Raises UnavailableError for any other content."""
    names = band_names(piece.stop - piece.first)
    wanted = np.dtype([(name, STORED) for name in names] + [(name, CODED) for name in piece.maps])
    size = (piece.window.height, piece.window.width)
    file = io.BytesIO(content)
    try:
        shape, by_columns, dtype = _READ_HEADER[np.lib.format.read_magic(file)](file)
        if shape != size or dtype != wanted or by_columns:
            raise UnavailableError(f"the answer is {shape} of {dtype}, asked was {size} of {wanted}")
        # Not np.load, which copies: many answers may be waiting.
        pixels: npt.NDArray[Any] = np.frombuffer(content, wanted, math.prod(size), file.tell())
    except (ValueError, KeyError) as error:
        raise UnavailableError(f"the answer of {len(content)} bytes is no array: {error}") from error
    return pixels.reshape(size)


def _unpack(pixels: npt.NDArray[Any], out_tchw: IntArray) -> None:
    """Copy the composites' bands of a response (H, W), which come pixel by pixel, plane by plane.

    A few rows at a time: the bands of their pixels stay in the cache, which makes it four times faster.
    """
    months, bands, height, _ = out_tchw.shape
    names = iter(band_names(months))
    planes = [(next(names), out_tchw[t, c]) for t in range(months) for c in range(bands)]
    for start in range(0, height, _UNPACKED_ROWS):
        rows = np.s_[start : start + _UNPACKED_ROWS]
        for name, plane_hw in planes:
            plane_hw[rows] = pixels[name][rows]


def _as_composite(
    request: ImageRequest, stored_tchw: IntArray, maps: Mapping[str, npt.NDArray[np.int32]]
) -> Composite:
    s2_tchw, s1_tchw = stored_tchw[:, : len(S2_BANDS)], stored_tchw[:, len(S2_BANDS) :]
    return Composite(
        grid=request.grid,
        periods=request.periods,
        s2_tchw=s2_tchw * np.float32(S2_BANDS[0].scale),
        s1_tchw=s1_tchw * np.float32(S1_BANDS[0].scale),
        s2_valid_thw=s2_tchw[:, 0] != NODATA,  # a view counts for all bands or for none
        s1_valid_thw=s1_tchw[:, 0] != NODATA,
        maps=dict(maps),
    )


def _outline(grid: Grid) -> Outline:
    """In degrees, to a tenth of a millimetre."""
    ring: Outline = grid.outline_in("EPSG:4326").round(9).tolist()
    return ring
