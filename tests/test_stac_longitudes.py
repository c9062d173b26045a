"""Footprints, regions and searches at 180° longitude."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from pyproj import Transformer

from cropray.config.imagery import StacConfig, StacSentinel1Config, StacSentinel2Config
from cropray.grid import Grid, Window
from cropray.imagery.longitudes import geojson_bbox, search_boxes, within_180
from cropray.imagery.stac import StacSource
from tests.stac_server import serve
from tests.test_stac import GAMMA0, composite, s1_item, s2_item, source

WEST, EAST = shapely.box(178, -17, 180, -16), shapely.box(-180, -17, -179, -16)
ACROSS = shapely.MultiPolygon([WEST, EAST])


def ring(*lons: float) -> shapely.Polygon:
    """A rectangle of -17° to -16° through these longitudes, out and back."""
    return shapely.Polygon([(lon, -17) for lon in lons] + [(lon, -16) for lon in reversed(lons)])


@pytest.mark.parametrize(
    "footprint",
    [
        ACROSS,
        ring(178, 181),
        ring(-182, -179),
        ring(178, -179),
        ring(178, 180, -180, -179),
        ring(538, 541),
        shapely.MultiPolygon([ring(178, 179), ring(179, -179)]),
    ],
)
def test_a_region_across_180_degrees_is_the_same_however_it_is_written(footprint: shapely.Geometry) -> None:
    got = within_180(footprint)
    assert got.equals(ACROSS)
    assert got.area == pytest.approx(3)
    assert got.intersects(shapely.box(-179.5, -16.6, -179.4, -16.5))
    assert got.covers(shapely.MultiPolygon([ring(179.9, 180), ring(-180, -179.9)]))
    assert not got.intersects(shapely.box(0, -17, 1, -16))


def test_a_bbox_across_180_degrees_begins_in_the_east() -> None:
    assert geojson_bbox(ACROSS) == (178, -17, -179, -16)
    assert geojson_bbox(WEST) == (178, -17, 180, -16)
    assert geojson_bbox(ring(-10, 20)) == (-10, -17, 20, -16)


def test_other_regions_stay_as_they_are() -> None:
    globe = shapely.box(-180, -90, 180, 90)
    for region in (ring(20, 21), ring(-180, -179), ring(179, 180), shapely.Point(179, 0)):
        assert within_180(region) is region
    assert within_180(globe).equals(globe)
    assert within_180(ring(200, 201)).equals(ring(-160, -159))
    wide = shapely.MultiPolygon([ring(-100, -99), ring(100, 101)])
    assert within_180(wide).equals(wide)


def test_holes_stay_in_their_region() -> None:
    hole = [(-179.5, -16.8), (-179.2, -16.8), (-179.2, -16.2), (-179.5, -16.2)]
    got = within_180(shapely.Polygon(ring(178, -179).exterior, [hole]))
    assert got.area == pytest.approx(3 - 0.3 * 0.6)
    assert not got.intersects(shapely.Point(-179.3, -16.5))


def test_a_ring_around_a_pole_reaches_it() -> None:
    got = within_180(shapely.Polygon([(lon, 80) for lon in range(-180, 180, 30)]))
    assert got.covers(shapely.box(-180, 80, 180, 90))
    assert not got.intersects(shapely.box(-180, -90, 180, 79))


def test_searches_find_footprints_on_both_sides() -> None:
    def found(region: shapely.Geometry, stored: tuple[float, float]) -> bool:
        boxes = list(search_boxes(within_180(region)))
        assert all(-180 <= west < east <= 180 for west, _, east, _ in boxes)
        return any(box[0] <= stored[1] and box[2] >= stored[0] for box in boxes)

    for region in (ring(-179.9, -179.8), ring(179.8, 179.9), ring(179.9, 180.1)):
        assert found(region, (178.5, 181.5))
        assert found(region, (-181.5, -178.5))
        assert not found(region, (100, 103))
    assert list(search_boxes(ring(20, 21))) == [(20, -17, 21, -16)]


def test_a_region_across_180_degrees_is_composed_of_scenes_of_both_zones(tmp_path: Path) -> None:
    """On Taveuni, Fiji: the scenes are in UTM zones 60 and 1, their footprints jump from 179° to -179°."""
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:32760", always_xy=True).transform(180.0, -16.8)
    region = Grid("EPSG:32760", round(x, -2) - 60, round(y, -2), 10, 8, 12)
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:32701", always_xy=True).transform(180.0, -16.8)
    east = Grid("EPSG:32701", round(x, -2) - 500, round(y, -2) + 500, 10, 100, 100)
    away = region.window(Window(0, -900, 8, 12))
    baseline = {"s2:processing_baseline": "03.01"}
    s2 = [
        s2_item(tmp_path, "zone60", "2022-01-02", 1000, baseline, grid=region.window(Window(-9, -9, 30, 30))),
        s2_item(tmp_path, "zone1", "2022-01-04", 3000, baseline, grid=east),
        s2_item(tmp_path, "away", "2022-01-05", 9000, baseline, grid=away),
    ]
    s1 = [s1_item(tmp_path, f"s1-{grid.crs[-2:]}", "2022-01-03", 0.1, GAMMA0, grid=grid) for grid in (east,)]
    jumps = [lon for lon, _ in shapely.geometry.shape(s2[0].geometry).exterior.coords]
    assert min(jumps) < -179.9
    assert max(jumps) > 179.9
    expected = composite(source(tmp_path, s2, s1), region)
    assert expected.scenes["s2"][0] == 2
    np.testing.assert_allclose(expected.s2_tchw[0], 0.2, atol=1e-6)
    np.testing.assert_allclose(expected.s1_tchw[0], -10, atol=1e-4)
    items: list[dict[str, Any]] = []
    with serve(items, folder=tmp_path) as (url, searches):
        for kind, found in (("s2", s2), ("s1", s1)):
            for item in found:
                for asset in item.assets.values():
                    asset.href = f"{url}/{asset.href}"
                items.append({**item.to_dict(include_self_link=False), "collection": kind})
        api = StacConfig(
            s2=StacSentinel2Config(api=url, collection="s2"), s1=StacSentinel1Config(api=url, collection="s1")
        )
        got = composite(StacSource(api), region)
        assert all(query["bbox"][2] - query["bbox"][0] < 0.1 for query in searches if "bbox" in query)
    assert got.scenes == expected.scenes
    np.testing.assert_array_equal(got.s2_tchw, expected.s2_tchw)
    np.testing.assert_array_equal(got.s1_tchw, expected.s1_tchw)
