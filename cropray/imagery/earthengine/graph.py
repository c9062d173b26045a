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
from functools import lru_cache
from typing import Any, ClassVar

import ee
from google.auth.exceptions import GoogleAuthError, TransportError
from googleapiclient.errors import Error as GoogleApiError
from googleapiclient.errors import HttpError

from cropray.bands import NODATA, S1_BANDS
from cropray.config.imagery import EarthEngineConfig
from cropray.grid import Grid
from cropray.imagery.earthengine import session
from cropray.imagery.earthengine.assets import MapAsset
from cropray.imagery.earthengine.tiling import ORBITS_FOLLOW, S1_NAMES, S2_NAMES, Chunk, band_names
from cropray.imagery.orbits import NEARLY_ALL, survey_grid
from cropray.types import CompositeRecipe, ImageRequest

S2_COLLECTION = "COPERNICUS/S2_SR_HARMONIZED"
S1_COLLECTION = "COPERNICUS/S1_GRD"
CLOUD_SCORE_COLLECTION = "GOOGLE/CLOUD_SCORE_PLUS/V1/S2_HARMONIZED"

_PASS, _NUMBER = "orbitProperties_pass", "relativeOrbitNumber_start"
_ACQUISITION = "orbitNumber_start"  # of one satellite; those of two with one relative orbit are years apart
_PROCESSED, _BASELINE = "GRD_Post_Processing_start", "PROCESSING_BASELINE"
_ORBIT, _DATATAKE = "cropray_orbit", "cropray_datatake"  # properties that the graph sets
_AFFINE = ("scaleX", "shearX", "translateX", "shearY", "scaleY", "translateY")


def map_image(asset: MapAsset, name: str) -> Any:
    """Bytes: 1..n for the codes of the legend, 255 for others, 0 where the map is masked."""
    images = ee.ImageCollection(asset.collection)
    if asset.year is not None:
        images = images.filterDate(f"{asset.year}-01-01", f"{asset.year + 1}-01-01")
    indices = list(range(1, len(asset.codes) + 1))
    codes = images.select(asset.band).mosaic().remap(list(asset.codes), indices, 255)
    return codes.unmask(0, False).toByte().rename(name)


def month_function(recipe: CompositeRecipe) -> Any:
    """The server's function of (start, end, area, extent, orbits) to an image of a month.

    Its bands are those of Sentinel-2 and Sentinel-1 in units of the stored integers, not yet rounded. `area`
    is the outline of the request's grid, `extent` that of the whole ROI. `orbits` is what `season_function`
    gives; the monthly rule chooses its own.
    """

    def month(row: Any) -> Any:
        row = ee.List(row)
        dates = _within(row)
        area, extent = ee.Geometry(row.get(2)), ee.Geometry(row.get(3))
        optical, radar = _nothing(S2_NAMES).toFloat(), _nothing(S1_NAMES).toDouble()
        if "s2" in recipe.sensors:
            optical = _reflectance(dates, area, recipe)
        if "s1" in recipe.sensors:
            scenes = _radar_scenes(dates, extent, recipe)
            orbits = row.get(4)
            if recipe.s1_orbit_rule == "monthly":
                scenes, orbits = _monthly_orbits(scenes, extent, recipe.s1_passes)
            radar = _backscatter(scenes, ee.List(orbits))
        return optical.addBands(radar)

    return ee.CustomFunction.create(month, "Image", ["Object"])


def _reflectance(dates: Any, area: Any, recipe: CompositeRecipe) -> Any:
    """`composite.median_reflectance`: the median of the clear views of each band.

    An acquisition is a datatake, by whose start an index begins. No two satellites start one in the same
    second.
    """
    scenes = ee.ImageCollection(S2_COLLECTION).filter(dates).filterBounds(area)
    if recipe.cloud_score is not None:
        scenes = scenes.linkCollection(ee.ImageCollection(CLOUD_SCORE_COLLECTION), ["cs_cdf"])
    scenes = scenes.map(lambda one: one.set(_DATATAKE, ee.String(one.get("system:index")).slice(0, 15)))
    scenes = scenes.sort(_BASELINE)

    def with_data(scene: Any) -> Any:
        bands = scene.select(S2_NAMES)
        whole = bands.mask().reduce(ee.Reducer.min()).gt(0)
        return bands.addBands(_is_clear(scene, recipe).rename("clear")).toFloat().updateMask(whole)

    def clear_view(datatake: Any) -> Any:
        # `mosaic` puts the last image on top: the newest baseline.
        view = scenes.filter(ee.Filter.eq(_DATATAKE, datatake)).map(with_data).mosaic()
        return view.select(S2_NAMES).updateMask(view.select("clear"))

    # A month without a scene would have no bands. One more view, all masked, changes nothing.
    views = ee.List([_nothing(S2_NAMES).toFloat()]).cat(_distinct(scenes, _DATATAKE).map(clear_view))
    return ee.ImageCollection.fromImages(views).median()


def _is_clear(scene: Any, recipe: CompositeRecipe) -> Any:
    # unmask: without sameFootprint=False pixels outside a scene's footprint stay masked.
    if recipe.cloud_score is not None:
        return scene.select("cs_cdf").unmask(0, False).gte(recipe.cloud_score)
    invalid = list(recipe.scl_invalid)
    classes = scene.select("SCL").unmask(0, False)
    return classes.remap(invalid, [0] * len(invalid), 1) if invalid else classes.gte(0)


def _radar_scenes(dates: Any, extent: Any, recipe: CompositeRecipe) -> Any:
    """The scenes that touch an ROI, with a number for their orbit: 1000 x place of its pass + its own."""
    passes = ee.List([name.upper() for name in recipe.s1_passes])
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

    def numbered(scene: Any) -> Any:
        place = ee.Number(passes.indexOf(scene.get(_PASS)))
        return scene.set(_ORBIT, place.multiply(1000).add(ee.Number(scene.get(_NUMBER))))

    return scenes.map(numbered).sort(_PROCESSED)


def _backscatter(scenes: Any, orbits: Any) -> Any:
    """`composite.mosaic_backscatter`: means of orbits, laid over one another, the first on top, in dB."""
    nothing = ee.List([_nothing(S1_NAMES).toDouble()])

    def orbit_mean(orbit: Any) -> Any:
        same = scenes.filter(ee.Filter.eq(_ORBIT, orbit))

        def view(acquisition: Any) -> Any:
            return same.filter(ee.Filter.eq(_ACQUISITION, acquisition)).map(_power).mosaic()

        return ee.ImageCollection.fromImages(nothing.cat(_distinct(same, _ACQUISITION).map(view))).mean()

    mosaic = ee.ImageCollection.fromImages(nothing.cat(orbits.reverse().map(orbit_mean))).mosaic()
    return mosaic.log10().multiply(10 / S1_BANDS[0].scale)


def _power(scene: Any) -> Any:
    power = scene.select(S1_NAMES).toDouble().multiply(math.log(10) / 10).exp()
    both = power.unmask(0, False).gt(0).reduce(ee.Reducer.allNonZero())
    return power.updateMask(both)


def _monthly_orbits(scenes: Any, extent: Any, passes: Sequence[str]) -> tuple[Any, Any]:
    """`orbits.monthly_order`: the scenes of the orbits that are used, and their order."""
    containing, chosen = scenes.filter(ee.Filter.contains(".geo", extent)), scenes
    for name in reversed(passes):
        of_pass = containing.filter(ee.Filter.eq(_PASS, name.upper()))
        chosen = ee.Algorithms.If(of_pass.size().gt(0), of_pass, chosen)
    chosen = ee.ImageCollection(chosen)

    def place(orbit: Any) -> Any:
        acquired = _distinct(chosen.filter(ee.Filter.eq(_ORBIT, orbit)), _ACQUISITION).size()
        pass_ = ee.Number(orbit).divide(1000).floor()
        return pass_.multiply(1e6).add(orbit).subtract(acquired.multiply(1e3))

    orbits = _distinct(chosen, _ORBIT)
    return chosen, orbits.sort(orbits.map(place))


def season_function(recipe: CompositeRecipe) -> Any:
    """The server's function of (months, extent, survey, CRS, transform) to the orbits of `choose_season`.

    `months` are pairs of dates, `survey` is the outline of the `orbits.survey_grid` with this CRS and
    transform. An orbit is a number as in `_radar_scenes`.
    """

    def season(row: Any) -> Any:
        row = ee.List(row)
        months, extent, survey = ee.List(row.get(0)), ee.Geometry(row.get(1)), ee.Geometry(row.get(2))
        all_dates = _within([ee.List(months.get(0)).get(0), ee.List(months.get(-1)).get(1)])
        scenes = _radar_scenes(all_dates, extent, recipe)

        def sees(scene: Any) -> Any:
            return scene.select(S1_NAMES).mask().reduce(ee.Reducer.min()).gt(0).rename("seen")

        def pixels(of: Any) -> Any:
            """The pixels that scenes see, summed over the months."""

            def seen(month: Any) -> Any:
                nowhere = ee.ImageCollection([ee.Image.constant(0).rename("seen").toByte()])
                return of.filter(_within(month)).map(sees).merge(nowhere).max()

            sums = ee.ImageCollection.fromImages(months.map(seen)).sum()
            grid = {"crs": ee.String(row.get(3)), "crsTransform": ee.List(row.get(4))}
            return ee.Number(sums.reduceRegion(ee.Reducer.sum().unweighted(), survey, **grid).get("seen"))

        passes = [name.upper() for name in recipe.s1_passes]
        by_pass = [pixels(scenes.filter(ee.Filter.eq(_PASS, name))) for name in passes]
        nearly_all = pixels(scenes).multiply(NEARLY_ALL)
        used = ee.List(passes)
        for name, seen in reversed(list(zip(passes, by_pass, strict=True))):
            used = ee.List(ee.Algorithms.If(seen.gte(nearly_all).And(seen.gt(0)), [name], used))
        below = by_pass[-1].gt(by_pass[0])  # the first pass lies below the other, if that sees more
        places = ee.List([below, below.Not()])

        def place(orbit: Any) -> Any:
            same, orbit = scenes.filter(ee.Filter.eq(_ORBIT, orbit)), ee.Number(orbit)
            acquired = _distinct(same, _ACQUISITION).size()
            pass_ = ee.Number(places.get(orbit.divide(1000).floor()))
            number = orbit.mod(1000).subtract(acquired.multiply(1e3)).subtract(pixels(same).multiply(1e6))
            return pass_.multiply(1e12).add(number)

        orbits = _distinct(scenes.filter(ee.Filter.inList(_PASS, used)), _ORBIT)
        return orbits.sort(orbits.map(place))

    return ee.CustomFunction.create(season, "List", ["Object"])


def _within(dates: Any) -> Any:
    """The filter of a list that begins with two dates."""
    return ee.Filter.date(ee.Date(ee.List(dates).get(0)), ee.Date(ee.List(dates).get(1)))


def _distinct(scenes: Any, name: str) -> Any:
    return scenes.aggregate_array(name).distinct()


def _nothing(names: Sequence[str]) -> Any:
    """Masked bands, to be cast to the type of those that they join: collections are reduced in one type."""
    return ee.Image.constant([0] * len(names)).rename(names).updateMask(0)


class Client:
    """Requests on one account to one address. Threads may share it. It connects with the first request.

    The `ee` module knows one account in a process. Clients of several must not send at the same time.
    """

    _connecting = threading.Lock()
    _connected: ClassVar[Client | None] = None

    def __init__(self, config: EarthEngineConfig) -> None:
        self._config = config
        self._project = ""
        proxies = not config.is_loopback
        self._transport = session.Transport(config.deadline_s, config.in_flight, through_proxies=proxies)
        self.last_answer = self._transport.last_answer
        self._functions, self._making = dict[CompositeRecipe, tuple[Any, Any]](), threading.Lock()

    def _connect(self) -> None:
        """Set the `ee` module of this process to this account and address."""
        config = self._config
        Client._connected = None  # also if connecting fails
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(10)  # the module fetches a list of deprecated assets without a time-out
        try:
            ee.data.setMaxRetries(0)  # ours are bounded, counted and logged
            credentials = session.credentials_of(config)
            self._project = session.project_of(config, credentials)
            ee.Initialize(
                credentials,
                url=session.address_of(config),
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
                image = image.addBands(map_image(assets[name], name))
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
        recipe = request.recipe
        with self._making:  # 0.3 s, which each thread of a process would take from all others
            if recipe not in self._functions:
                self._functions[recipe] = month_function(recipe), season_function(recipe)
            month, season = self._functions[recipe]
        area, extent = (
            ee.Geometry.Polygon([_outline(grid)], None, False) for grid in (request.grid, request.extent)
        )
        dates = [[period.start.isoformat(), period.end.isoformat()] for period in request.periods]
        names: Any = band_names(chunk.stop - chunk.first)
        orbits: Any = []
        if "s1" in recipe.sensors and recipe.s1_orbit_rule == "season":
            survey = survey_grid(request.extent)
            around = ee.Geometry.Rectangle(list(survey.bounds), survey.crs, False)
            orbits = ee.List(season.call([dates, extent, around, survey.crs, survey.transform]))
            # The name of a band tells which orbits were chosen: it is all of an answer that is not pixels.
            chosen = orbits.map(lambda orbit: ee.Number(orbit).toInt().format("%d")).join("_")
            names = ee.List(names[:-1]).add(ee.String(names[-1] + ORBITS_FOLLOW).cat(chosen))
        rows = [[*days, area, extent, orbits] for days in dates[chunk.first : chunk.stop]]
        months = ee.ImageCollection.fromImages(ee.List(rows).map(month))
        stored = months.toBands().rename(names).round().clamp(NODATA + 1, 32767)
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
