"""The only importer of the Earth Engine client: the graph of a request, and the client that sends it.

The graph is the rule of `composite` as functions of the server. The server decides everything that depends on
which scenes exist, so a chunk is one request for pixels and nothing else. The graph is built once for a
recipe, as a function of a month; a request maps it over its months.
"""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import ee
import numpy as np
import numpy.typing as npt
from google.auth.exceptions import GoogleAuthError, TransportError
from googleapiclient.errors import Error as GoogleApiError
from googleapiclient.errors import HttpError

from cropray.bands import NODATA, S1_BANDS
from cropray.config.imagery import EarthEngineConfig
from cropray.errors import InputError
from cropray.grid import Grid
from cropray.imagery.earthengine import session
from cropray.imagery.earthengine.tiling import S1_NAMES, S2_NAMES, Chunk, band_names
from cropray.types import ByteArray, CompositeRecipe, ImageRequest

S2_COLLECTION = "COPERNICUS/S2_SR_HARMONIZED"
S1_COLLECTION = "COPERNICUS/S1_GRD"
CLOUD_SCORE_COLLECTION = "GOOGLE/CLOUD_SCORE_PLUS/V1/S2_HARMONIZED"

_EUCROPMAP = (100, *range(211, 220), 221, 222, 223, *range(230, 234), 240, 250, 290, 300, 500, 600, 700, 800)
_WORLDCOVER = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100)
_OTHER = -1  # code of a pixel whose code is not in the legend
_PASS, _ORBIT = "orbitProperties_pass", "relativeOrbitNumber_start"
_HOSTS = {"standard": "earthengine", "high_volume": "earthengine-highvolume"}
_AFFINE = ("scaleX", "shearX", "translateX", "shearY", "scaleY", "translateY")


@dataclass(frozen=True)
class MapAsset:
    """An image collection that is one map, or one for each `year`. `codes` is its legend.

    Codes are sent as one byte, their position in the legend, so that a label map and six months of an ROI
    of 480 px square fit into one response.
    """

    collection: str
    band: str
    codes: tuple[int, ...]
    year: int | None = None

    def image(self, name: str) -> Any:
        """Bytes: 1..n for the codes of the legend, 255 for others, 0 where the map is masked."""
        images = ee.ImageCollection(self.collection)
        if self.year is not None:
            images = images.filterDate(f"{self.year}-01-01", f"{self.year + 1}-01-01")
        indices = list(range(1, len(self.codes) + 1))
        codes = images.select(self.band).mosaic().remap(list(self.codes), indices, 255)
        return codes.unmask(0, False).toByte().rename(name)

    def decode(self, stored_hw: ByteArray) -> npt.NDArray[np.int32]:
        """Codes from the bytes of `image`, 0 where the map is masked."""
        codes = np.full(256, _OTHER, np.int32)
        codes[: len(self.codes) + 1] = (0, *self.codes)
        decoded: npt.NDArray[np.int32] = codes[stored_hw]
        return decoded


def map_asset(name: str, eucropmap_year: int) -> MapAsset:
    """The asset of a map by its name in the settings. Raises InputError for an unknown name.

    Legends as in the catalogue of Earth Engine: d'Andrimont et al. 2021 (doi:10.1016/j.rse.2021.112708) and
    ESA WorldCover 2021 (doi:10.5281/zenodo.7254221).
    """
    maps = {
        "eucropmap": MapAsset("JRC/D5/EUCROPMAP/V1", "classification", _EUCROPMAP, eucropmap_year),
        "land_cover": MapAsset("ESA/WorldCover/v200", "Map", _WORLDCOVER),
    }
    if name not in maps:
        raise InputError(
            f"source.kind: earthengine has no map {name!r}; source: takes one of {', '.join(maps)}, "
            "another map can be given as a raster file"
        )
    return maps[name]


def month_function(recipe: CompositeRecipe) -> Any:
    """The server's function of (start, end, area, extent) to an image of a month.

    Its bands are those of Sentinel-2 and Sentinel-1 in units of the stored integers, not yet rounded. `area`
    is the outline of the request's grid, `extent` that of the whole ROI.
    """

    def month(row: Any) -> Any:
        row = ee.List(row)
        dates = ee.Filter.date(ee.Date(row.get(0)), ee.Date(row.get(1)))
        area, extent = ee.Geometry(row.get(2)), ee.Geometry(row.get(3))
        return _reflectance(dates, area, recipe).addBands(_backscatter(dates, extent, recipe))

    return ee.CustomFunction.create(month, "Image", ["Object"])


def _reflectance(dates: Any, area: Any, recipe: CompositeRecipe) -> Any:
    """`composite.median_reflectance`: the median of the clear views of each band."""
    scenes = ee.ImageCollection(S2_COLLECTION).filter(dates).filterBounds(area)
    if recipe.cloud_score is not None:
        scenes = scenes.linkCollection(ee.ImageCollection(CLOUD_SCORE_COLLECTION), ["cs_cdf"])

    def clear_view(scene: Any) -> Any:
        bands = scene.select(S2_NAMES)
        whole = bands.mask().reduce(ee.Reducer.min()).gt(0)
        return bands.updateMask(whole.And(_is_clear(scene, recipe))).toFloat()

    # A month without a scene would have no bands. One more view, all masked, changes nothing.
    nothing = ee.ImageCollection([_nothing(S2_NAMES).toFloat()])
    return scenes.map(clear_view).merge(nothing).median()


def _is_clear(scene: Any, recipe: CompositeRecipe) -> Any:
    # unmask: without sameFootprint=False pixels outside a scene's footprint stay masked.
    if recipe.cloud_score is not None:
        return scene.select("cs_cdf").unmask(0, False).gte(recipe.cloud_score)
    invalid = list(recipe.scl_invalid)
    classes = scene.select("SCL").unmask(0, False)
    return classes.remap(invalid, [0] * len(invalid), 1) if invalid else classes.gte(0)


def _backscatter(dates: Any, extent: Any, recipe: CompositeRecipe) -> Any:
    """`composite.mosaic_backscatter`: means of relative orbits, laid over one another, in dB."""
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
    layers = ee.List([_nothing(S1_NAMES).toDouble().set("order", 1e12)])
    chosen = _choose_scenes(scenes, extent, passes)
    for rank, name in enumerate(passes):
        of_pass = ee.ImageCollection(chosen).filter(ee.Filter.eq(_PASS, name))
        layers = layers.cat(_orbit_means(of_pass, rank))
    # `mosaic` puts the last image on top.
    mosaic = ee.ImageCollection.fromImages(layers).sort("order", False).mosaic()
    return mosaic.log10().multiply(10 / S1_BANDS[0].scale)


def _choose_scenes(scenes: Any, extent: Any, passes: Sequence[str]) -> Any:
    """`composite.choose_orbits`: of the first pass that contains the extent, else all scenes."""
    containing = scenes.filter(ee.Filter.contains(".geo", extent))
    chosen = scenes
    for name in reversed(passes):
        of_pass = containing.filter(ee.Filter.eq(_PASS, name))
        chosen = ee.Algorithms.If(of_pass.size().gt(0), of_pass, chosen)
    return chosen


def _orbit_means(scenes: Any, rank: int) -> Any:
    """A list of images: the mean of each relative orbit, in linear power.

    The lowest `order` lies on top: by pass, then most scenes, then the lower number.
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
    """Masked bands, to be cast to the type of those that they join: collections are reduced in one type."""
    return ee.Image.constant([0] * len(names)).rename(names).updateMask(0)


class Client:
    """Requests on one account to one address. Threads may share it. It connects with the first request.

    The `ee` module knows one account and address in a process, those of the last client that connected:
    clients of several accounts must not send requests at the same time.
    """

    _connecting = threading.Lock()
    _connected: ClassVar[Client | None] = None

    def __init__(self, config: EarthEngineConfig) -> None:
        self._config = config
        self._project = session.project_of(config)
        self._transport = session.Transport(
            config.deadline_s, config.in_flight, through_proxies=not config.is_loopback
        )
        self.last_answer = self._transport.last_answer
        self._months: dict[CompositeRecipe, Any] = {}

    def _connect(self) -> None:
        """Set the `ee` module of this process to this account and address."""
        config = self._config
        Client._connected = None  # also if connecting fails
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(10)  # the module fetches a list of deprecated assets without a time-out
        try:
            ee.data.setMaxRetries(0)  # ours are bounded, counted and logged
            ee.Initialize(
                session.credentials_of(config),
                url=config.url or f"https://{_HOSTS[config.endpoint]}.googleapis.com",
                project=self._project or None,  # None: that of the credentials
                http_transport=self._transport,
            )
            Client._connected = self
        finally:
            socket.setdefaulttimeout(before)

    def pixels(self, chunk: Chunk, request: ImageRequest, assets: Mapping[str, MapAsset]) -> bytes:
        """A chunk of a request as NPY: the composites (see `band_names`), then the maps.

        Raises InputError where there are no credentials, no project or no permission, or the request is
        refused; RequestError where another attempt may succeed.
        """
        with self._failures():
            with self._connecting:
                if Client._connected is not self:
                    self._connect()
            image = self._composites(chunk, request)
            for name in chunk.maps:
                image = image.addBands(assets[name].image(name))
            grid = request.grid.window(chunk.window)
            body = {
                "expression": image,
                "fileFormat": "NPY",
                "grid": {
                    "dimensions": {"width": grid.width, "height": grid.height},
                    "affineTransform": dict(zip(_AFFINE, grid.transform, strict=True)),
                    "crsCode": grid.crs,
                },
                "workloadTag": self._config.workload_tag,
            }
            content: bytes = ee.data.computePixels(body)
        return content

    def _composites(self, chunk: Chunk, request: ImageRequest) -> Any:
        if request.recipe not in self._months:
            self._months[request.recipe] = month_function(request.recipe)
        area, extent = (
            ee.Geometry.Polygon([_outline(grid)], None, False) for grid in (request.grid, request.extent)
        )
        periods = request.periods[chunk.first : chunk.stop]
        rows = [[period.start.isoformat(), period.end.isoformat(), area, extent] for period in periods]
        months = ee.ImageCollection.fromImages(ee.List(rows).map(self._months[request.recipe]))
        stored = months.toBands().rename(band_names(len(periods))).round().clamp(NODATA + 1, 32767)
        return stored.unmask(NODATA, False).toInt16()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Exceptions of the client and of what it uses, as ours."""
        try:
            yield
        except (ee.EEException, GoogleApiError) as error:
            # The client drops the status of an answer, but keeps the answer as the context.
            answer = error if isinstance(error, HttpError) else error.__context__
            if isinstance(answer, HttpError):
                status, waits_s = int(answer.resp.status), session.retry_after_s(answer.resp)
                raise session.failure(status, str(answer.reason), self._project, waits_s) from error
            raise session.client_failure(str(error)) from error
        except GoogleAuthError as error:
            if error.retryable or isinstance(error, TransportError):
                raise session.UnavailableError(f"signing in: {error}") from error
            raise session.sign_in_failure(error, self.last_answer.clock_ahead_s) from error
        except (ConnectionError, TimeoutError) as error:
            raise session.UnavailableError(str(error) or type(error).__name__) from error


@lru_cache(64)
def _outline(grid: Grid) -> list[list[float]]:
    """A closed ring of longitudes and latitudes, to a tenth of a millimetre."""
    ring: list[list[float]] = grid.outline_in("EPSG:4326").round(9).tolist()
    return ring
