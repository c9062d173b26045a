"""The only importer of the Earth Engine client: the graph of a request, and the session that sends it.

The graph is the rule of `composite` as functions of the server: whatever depends on which scenes
there are is decided there, so that a tile is one request for pixels and nothing else. It is built
once for a recipe, as a function of a month; a request maps it over its months.
"""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ee
from google.auth.exceptions import GoogleAuthError, TransportError
from googleapiclient.errors import Error as GoogleApiError
from googleapiclient.errors import HttpError

from cropray.bands import NODATA, S1_BANDS
from cropray.config.imagery import EarthEngineConfig
from cropray.grid import Grid
from cropray.imagery.earthengine.assets import (
    CLOUD_SCORE_COLLECTION,
    S1_COLLECTION,
    S2_COLLECTION,
    MapAsset,
)
from cropray.imagery.earthengine.failures import UnavailableError, failure
from cropray.imagery.earthengine.session import (
    Transport,
    credentials_of,
    project_of,
    refused_sign_in,
    retry_after_s,
    without_answer,
)
from cropray.imagery.earthengine.tiling import S1_NAMES, S2_NAMES, band_names
from cropray.types import CompositeRecipe, Period

_PASS, _ORBIT = "orbitProperties_pass", "relativeOrbitNumber_start"
_URLS = {
    "standard": "https://earthengine.googleapis.com",
    "high_volume": "https://earthengine-highvolume.googleapis.com",
}


Outline = list[list[float]]
"""A closed ring of longitudes and latitudes."""


def month_function(recipe: CompositeRecipe) -> Any:
    """The server's function of (start, end, area, extent) to an image of a month.

    Its bands are those of Sentinel-2 and Sentinel-1 in units of the stored integers, not yet
    rounded. `area` is the outline of what is asked for, `extent` of the whole ROI.
    """

    def month(row: Any) -> Any:
        row = ee.List(row)
        dates = ee.Filter.date(ee.Date(row.get(0)), ee.Date(row.get(1)))
        area, extent = ee.Geometry(row.get(2)), ee.Geometry(row.get(3))
        return _reflectance(dates, area, recipe).addBands(_backscatter(dates, extent, recipe))

    return ee.CustomFunction.create(month, "Image", ["Object"])


def _reflectance(dates: Any, area: Any, recipe: CompositeRecipe) -> Any:
    """`composite.median_reflectance`: per band the median of the clear views."""
    scenes = ee.ImageCollection(S2_COLLECTION).filter(dates).filterBounds(area)
    if recipe.cloud_score is not None:
        scenes = scenes.linkCollection(ee.ImageCollection(CLOUD_SCORE_COLLECTION), ["cs_cdf"])

    def clear_view(scene: Any) -> Any:
        bands = scene.select(S2_NAMES)
        whole = bands.mask().reduce(ee.Reducer.min()).gt(0)
        return bands.updateMask(whole.And(_is_clear(scene, recipe))).toFloat()

    # A month without a scene would have no band: one more view, masked throughout, changes nothing.
    nothing = ee.ImageCollection([_nothing(S2_NAMES).toFloat()])
    return scenes.map(clear_view).merge(nothing).median()


def _is_clear(scene: Any, recipe: CompositeRecipe) -> Any:
    # unmask: without sameFootprint=False it leaves masked what lies outside a scene's footprint.
    if recipe.cloud_score is not None:
        return scene.select("cs_cdf").unmask(0, False).gte(recipe.cloud_score)
    invalid = list(recipe.scl_invalid)
    classes = scene.select("SCL").unmask(0, False)
    return classes.remap(invalid, [0] * len(invalid), 1) if invalid else classes.gte(0)


def _backscatter(dates: Any, extent: Any, recipe: CompositeRecipe) -> Any:
    """`composite.mosaic_backscatter`: means of relative orbits, one laid over the other, in dB."""
    passes = [name.upper() for name in recipe.s1_passes]
    scenes = (
        ee.ImageCollection(S1_COLLECTION)
        .filter(dates)
        .filterBounds(extent)
        .filter(ee.Filter.eq("instrumentMode", "IW"))
        .filter(ee.Filter.eq("resolution", "H"))
        .filter(ee.Filter.inList(_PASS, passes))
    )
    for name in S1_NAMES:
        scenes = scenes.filter(ee.Filter.listContains("transmitterReceiverPolarisation", name))
    containing = scenes.filter(ee.Filter.contains(".geo", extent))
    chosen = scenes
    for name in reversed(passes):
        of_pass = containing.filter(ee.Filter.eq(_PASS, name))
        chosen = ee.Algorithms.If(of_pass.size().gt(0), of_pass, chosen)
    layers = ee.List([_nothing(S1_NAMES).toDouble().set("order", 1e12)])
    for rank, name in enumerate(passes):
        of_pass = ee.ImageCollection(chosen).filter(ee.Filter.eq(_PASS, name))
        layers = layers.cat(_orbit_means(of_pass, rank))
    # `mosaic` puts the last image on top.
    mosaic = ee.ImageCollection.fromImages(layers).sort("order", False).mosaic()
    return mosaic.log10().multiply(10 / S1_BANDS[0].scale)


def _orbit_means(scenes: Any, rank: int) -> Any:
    """A list of images: the mean of each relative orbit, in linear power.

    Of their `order` the lowest lies on top: by pass, then most scenes, then the lower number.
    """

    def orbit_mean(number: Any) -> Any:
        same = scenes.filter(ee.Filter.eq(_ORBIT, number))
        order = ee.Number(number).subtract(same.size().multiply(1000)).add(rank * 10**9)
        return same.map(_power).mean().set("order", order)

    return scenes.aggregate_array(_ORBIT).distinct().map(orbit_mean)


def _power(scene: Any) -> Any:
    power = scene.select(S1_NAMES).toDouble().multiply(math.log(10) / 10).exp()
    both = power.unmask(0, False).gt(0).reduce(ee.Reducer.allNonZero())
    return power.updateMask(both)


def _nothing(names: Sequence[str]) -> Any:
    """Masked bands, to be cast to the type of those that they join: collections are reduced of one type."""
    return ee.Image.constant([0] * len(names)).rename(names).updateMask(0)


def _coded(name: str, asset: MapAsset) -> Any:
    """A map as bytes: 1..n for the codes of its legend, 255 for others, 0 where it says nothing."""
    images = ee.ImageCollection(asset.collection)
    if asset.year is not None:
        images = images.filterDate(f"{asset.year}-01-01", f"{asset.year + 1}-01-01")
    indices = list(range(1, len(asset.codes) + 1))
    codes = images.select(asset.band).mosaic().remap(list(asset.codes), indices, 255)
    return codes.unmask(0, False).toByte().rename(name)


class _Turns:
    """Whose account and address the client of this process is set to: it knows one at a time.

    Several sessions take turns: one waits for the answers to another's requests, then connects
    anew. A single session waits for nothing.
    """

    def __init__(self) -> None:
        self._entrance = threading.Lock()  # whoever waits to connect lets nobody past
        self._left = threading.Condition()
        self._whose: Session | None = None
        self._inside = 0

    @contextmanager
    def of(self, session: Session) -> Iterator[None]:
        with self._entrance, self._left:
            self._left.wait_for(lambda: self._whose is session or not self._inside)
            if self._whose is not session:
                self._whose = None  # also where connecting fails
                session.connect()
                self._whose = session
            self._inside += 1
        try:
            yield
        finally:
            with self._left:
                self._inside -= 1
                self._left.notify()


_TURNS = _Turns()


class Session:
    """Requests on one account to one address; threads may share it. Connects with the first request."""

    def __init__(self, config: EarthEngineConfig) -> None:
        self._config = config
        self._project = project_of(config)
        self._transport = Transport(
            config.deadline_s, config.in_flight, through_proxies=not config.is_loopback
        )
        self._months: dict[CompositeRecipe, Any] = {}

    def connect(self) -> None:
        """Set the client of this process to this account and address."""
        config = self._config
        with _no_endless_fetch():
            ee.data.setMaxRetries(0)  # ours are bounded, counted and logged
            ee.Initialize(
                credentials_of(config),
                url=config.url or _URLS[config.endpoint],
                project=self._project or None,  # None: that of the credentials
                http_transport=self._transport,
            )

    def pixels(
        self,
        grid: Grid,
        periods: Sequence[Period],
        recipe: CompositeRecipe,
        outlines: tuple[Outline, Outline],
        maps: Mapping[str, MapAsset],
    ) -> bytes:
        """Composites of `periods` and `maps` on `grid` as NPY: see `band_names`, then the maps.

        `outlines` are those of the area and the extent (see `month_function`), in degrees. Raises
        InputError where there are no credentials, no project or no permission, or the request is
        refused; RequestError where another attempt may be answered.
        """
        with self._failures(), _TURNS.of(self):
            body = {
                "expression": self._expression(periods, recipe, outlines, maps),
                "fileFormat": "NPY",
                "grid": _wire_grid(grid),
                "workloadTag": self._config.workload_tag,
            }
            content: bytes = ee.data.computePixels(body)
        return content

    @property
    def restricted(self) -> bool:
        """Whether the last answer to this thread said that the project is in restricted mode."""
        return self._transport.restricted

    def _expression(
        self,
        periods: Sequence[Period],
        recipe: CompositeRecipe,
        outlines: tuple[Outline, Outline],
        maps: Mapping[str, MapAsset],
    ) -> Any:
        if recipe not in self._months:
            self._months[recipe] = month_function(recipe)
        area, extent = (ee.Geometry.Polygon([outline], None, False) for outline in outlines)
        rows = [[period.start.isoformat(), period.end.isoformat(), area, extent] for period in periods]
        months = ee.ImageCollection.fromImages(ee.List(rows).map(self._months[recipe]))
        stored = months.toBands().rename(band_names(len(periods))).round().clamp(NODATA + 1, 32767)
        image = stored.unmask(NODATA, False).toInt16()
        for name, asset in maps.items():
            image = image.addBands(_coded(name, asset))
        return image

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Exceptions of the client and below as ours."""
        try:
            yield
        except (ee.EEException, GoogleApiError) as error:
            # The client wraps an answer's status away, but keeps the answer as the context.
            answer = error if isinstance(error, HttpError) else error.__context__
            if isinstance(answer, HttpError):
                waits_s = retry_after_s(answer.resp)
                raise failure(int(answer.resp.status), str(answer.reason), self._project, waits_s) from error
            raise without_answer(str(error)) from error
        except GoogleAuthError as error:
            if error.retryable or isinstance(error, TransportError):
                raise UnavailableError(f"signing in: {error}") from error
            raise refused_sign_in(error, self._transport.clock_ahead_s) from error
        except (ConnectionError, TimeoutError) as error:
            raise UnavailableError(str(error) or type(error).__name__) from error


@contextmanager
def _no_endless_fetch() -> Iterator[None]:
    """A time-out for the list of deprecated assets, which the client fetches without one."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _wire_grid(grid: Grid) -> dict[str, Any]:
    a, b, c, d, e, f = grid.transform
    return {
        "dimensions": {"width": grid.width, "height": grid.height},
        "affineTransform": {
            "scaleX": a,
            "shearX": b,
            "translateX": c,
            "shearY": d,
            "scaleY": e,
            "translateY": f,
        },
        "crsCode": grid.crs,
    }
