"""Footprints, regions and searches at 180° longitude."""

from __future__ import annotations

import pytest
import shapely

from cropray.imagery.longitudes import search_boxes, within_180

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
