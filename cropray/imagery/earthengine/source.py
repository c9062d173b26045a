"""Google Earth Engine as a source: composites and maps of a tile in one request for pixels.

The server computes the composites (`graph`), by the rule of `composite`. Here a request is cut into chunks
that one response can hold. They are sent within a quota, tried again where that may help, and put together.
"""

from __future__ import annotations

import io
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from cropray.bands import NODATA, S1_BANDS, S2_BANDS
from cropray.config.imagery import EarthEngineConfig
from cropray.errors import InputError
from cropray.imagery.earthengine import session, tiling
from cropray.imagery.earthengine.assets import MapAsset, map_asset
from cropray.imagery.earthengine.graph import S1_COLLECTION, S2_COLLECTION, Client
from cropray.imagery.earthengine.quota import Attempt, LocalQuota, RequestQuota, released
from cropray.imagery.earthengine.tiling import Chunk
from cropray.imagery.scenes import check_plausible
from cropray.types import Composite, ImageRequest, IntArray

_PREFLIGHT_ATTEMPTS = 5  # some ten seconds, while the person who started the export is still there
_UNPACKED_ROWS = 4
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

Assets = Mapping[str, MapAsset]
Pixels = npt.NDArray[Any]
"""A structured array (H, W) with one field for each band."""
Answer = tuple[Pixels, tuple[str, ...]]
"""Pixels and the radar orbits of the season, such as "ascending 88"."""


class EarthEngineSource:
    """An ImagerySource on the account that the settings name. Threads may share one.

    A thread that requests a composite holds one of `slots`, and gives it up while it waits for an answer.
    `max_bytes` of a response is the service's limit; `max_wait_s` is the longest wait between attempts.
    """

    def __init__(
        self,
        config: EarthEngineConfig,
        quota: RequestQuota | None = None,
        slots: threading.Semaphore | None = None,
        *,
        max_bytes: int = tiling.MAX_BYTES,
        max_wait_s: float = 60.0,
    ) -> None:
        self._config, self._slots, self._max_wait_s = config, slots, max_wait_s
        self._quota = quota or LocalQuota(config.in_flight, config.per_second, config.lease_s)
        self._client = Client(config)
        self._size = tiling.AdaptiveSize(max_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        return EarthEngineSource, (self._config, self._quota)

    def identity(self) -> dict[str, Any]:
        return {
            "kind": "earthengine",
            "version": 2,  # of the graph: raised with any change that touches a pixel
            "s2": S2_COLLECTION,
            "s1": S1_COLLECTION,
            "s1_quantity": "sigma0",
            "eucropmap_year": self._config.eucropmap_year,
        }

    def composite(self, request: ImageRequest) -> Composite:
        """See ImagerySource. Scenes are not counted.

        A chunk that is refused for its size, memory or time is requested in halves; the pixels do not depend
        on it. Raises RequestError where all attempts at a chunk failed.
        """
        return self._composite(request, self._config.attempts)

    def preflight(self, request: ImageRequest) -> None:
        """Request one pixel, which shows at once what is wrong with the account or the settings."""
        one = replace(request.grid, height=1, width=1)
        attempts = min(self._config.attempts, _PREFLIGHT_ATTEMPTS)
        try:
            self._composite(replace(request, grid=one, name=f"{request.name} (one pixel, to try)"), attempts)
        except session.TooLargeError:
            return  # the service lacks memory or time, but it has let this account in
        except session.RateLimitedError as error:
            raise InputError(
                f"Earth Engine has too many requests of this project ({error}, after {attempts} attempts). "
                "Wait, end other runs of the project, or lower source.earthengine.in_flight"
            ) from error
        except session.RequestError as error:
            raise InputError(
                f"Earth Engine does not answer ({error}, after {attempts} attempts); check "
                "source.earthengine.url and the connection, or try again later"
            ) from error

    def estimate(self, requests: Iterable[ImageRequest]) -> dict[str, Any]:
        """See MeteredSource. Does not include requests that the service refuses for their size."""
        chunks = [chunk for request in requests for chunk in tiling.plan_chunks(request)]
        return tiling.estimate_cost(chunks, self._config)

    def _composite(self, request: ImageRequest, attempts: int) -> Composite:
        assets = {name: map_asset(name, self._config.eucropmap_year) for name in request.maps}
        stored_tchw = np.empty((len(request.periods), tiling.BANDS, *request.grid.shape), tiling.STORED)
        orbits = set[tuple[str, ...]]()
        coded = {name: np.zeros(request.grid.shape, tiling.CODED) for name in assets}
        chunks = deque(tiling.plan_chunks(request, self._size.max_bytes))
        while chunks:
            chunk = chunks.popleft()
            try:
                with released(self._slots):
                    pixels, chosen = self._fetch(chunk, request, assets, attempts)
            except session.TooLargeError:
                self._size.record_refusal(chunk)
                halves = chunk.halves()
                if halves is None:
                    raise
                chunks.extendleft(reversed(halves))
                continue
            self._size.record_answer(chunk)
            orbits.add(chosen)
            rows, cols = chunk.window.slices
            _unpack(pixels, stored_tchw[chunk.first : chunk.stop, :, rows, cols])
            for name in chunk.maps:
                coded[name][rows, cols] = pixels[name]
            del pixels
        if len(orbits) > 1:
            raise session.UnavailableError(f"the catalogue changed during the requests for {request.name}")
        s2_tchw, s1_tchw = stored_tchw[:, : len(S2_BANDS)], stored_tchw[:, len(S2_BANDS) :]
        composite = Composite(
            grid=request.grid,
            periods=request.periods,
            s2_tchw=s2_tchw * np.float32(S2_BANDS[0].scale),
            s1_tchw=s1_tchw * np.float32(S1_BANDS[0].scale),
            s2_valid_thw=s2_tchw[:, 0] != NODATA,  # a view counts in all bands or in none
            s1_valid_thw=s1_tchw[:, 0] != NODATA,
            maps={name: asset.decode(coded[name]) for name, asset in assets.items()},
            orbits_s1=orbits.pop(),
        )
        return replace(composite, impossible=check_plausible(composite, request))

    def _fetch(self, chunk: Chunk, request: ImageRequest, assets: Assets, attempts: int) -> Answer:
        unknown = itertools.count()

        def may_pass(error: BaseException) -> bool:
            if isinstance(error, session.UnknownError):
                return next(unknown) == 0
            return isinstance(error, (session.RateLimitedError, session.UnavailableError))

        retrying = Retrying(
            retry=retry_if_exception(may_pass),
            stop=stop_after_attempt(attempts),
            wait=wait_random_exponential(multiplier=1, max=self._max_wait_s),
            reraise=True,
        )
        try:
            answer: Answer = retrying(self._attempt, chunk, request, assets)
        except session.UnknownError as error:
            raise InputError(str(error)) from error
        return answer

    def _attempt(self, chunk: Chunk, request: ImageRequest, assets: Assets) -> Answer:
        permit = self._quota.acquire()
        started = time.monotonic()
        attempt = Attempt(f"{request.name} {chunk}", "refused", 0.0, error="interrupted")
        try:
            content = self._client.pixels(chunk, request, assets)
            attempt = replace(attempt, nbytes=len(content))
            answer = _decode(content, chunk, request.recipe.s1_passes)
            attempt = replace(
                attempt, outcome="done", error="", restricted=self._client.last_answer.restricted
            )
        except session.RequestError as error:
            waits_s = min(error.retry_after_s, self._config.deadline_s)
            attempt = replace(attempt, outcome=error.outcome, error=str(error), retry_after_s=waits_s)
            raise
        except InputError as error:
            attempt = replace(attempt, error=str(error))
            raise
        finally:
            self._quota.release(permit, replace(attempt, seconds=round(time.monotonic() - started, 3)))
        return answer


def _decode(content: bytes, chunk: Chunk, passes: Sequence[str]) -> Answer:
    """The pixels of a response, and the radar orbits of the season. Raises UnavailableError for others."""
    bands = [(name, tiling.STORED) for name in tiling.band_names(chunk.stop - chunk.first)]
    wanted = np.dtype(bands + [(name, tiling.CODED) for name in chunk.maps])
    size = (chunk.window.height, chunk.window.width)
    file = io.BytesIO(content)
    try:
        shape, by_columns, dtype = _READ_HEADER[np.lib.format.read_magic(file)](file)
        dtype, orbits = _without_orbits(dtype, passes)
        if shape != size or dtype != wanted or by_columns:
            raise session.UnavailableError(f"the answer is {shape} of {dtype}, wanted {size} of {wanted}")
        # Not np.load, which copies: many answers may be waiting.
        pixels: Pixels = np.frombuffer(content, wanted, math.prod(size), file.tell())
    except (ValueError, KeyError) as error:
        message = f"the answer of {len(content)} bytes is not an array: {error}"
        raise session.UnavailableError(message) from error
    return pixels.reshape(size), orbits


def _without_orbits(dtype: np.dtype[Any], passes: Sequence[str]) -> tuple[np.dtype[Any], tuple[str, ...]]:
    """A type by the names of its bands alone, and the orbits that follow the name of one (see `graph`)."""
    fields, numbers = [], ""
    for name in dtype.names or ():
        band, _, follow = name.partition(tiling.ORBITS_FOLLOW)
        fields.append((band, dtype[name]))
        numbers += follow
    orbits = (divmod(int(number), 1000) for number in numbers.split("_") if number)
    return np.dtype(fields), tuple(f"{passes[place]} {number}" for place, number in orbits)


def _unpack(pixels: Pixels, out_tchw: IntArray) -> None:
    """Copy the composites' bands of a response, which come pixel by pixel, plane by plane.

    A few rows at a time, whose bands stay in the cache: this is four times faster.
    """
    months, bands, height, _ = out_tchw.shape
    names = iter(tiling.band_names(months))
    planes = [(next(names), out_tchw[t, c]) for t in range(months) for c in range(bands)]
    for start in range(0, height, _UNPACKED_ROWS):
        rows = np.s_[start : start + _UNPACKED_ROWS]
        for name, plane_hw in planes:
            plane_hw[rows] = pixels[name][rows]
