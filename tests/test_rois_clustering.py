from pathlib import Path

import numpy as np
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cropray.config.rois import ProvincesConfig
from cropray.rois.clusters import cluster, padded
from cropray.rois.provinces import Provinces, read_provinces
from tests.rois_inputs import UTM, field, write_fields

POINTS = arrays(float, st.tuples(st.integers(1, 25), st.just(2)), elements=st.integers(0, 9000).map(float))


def chained(points: np.ndarray, eps: float) -> set[frozenset[int]]:
    """Groups of points linked by steps of at most eps, by repeated merging."""
    groups = [{index} for index in range(len(points))]
    distance = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1))
    for one, other in np.argwhere(distance <= eps):
        first = next(group for group in groups if one in group)
        second = next(group for group in groups if other in group)
        if first is not second:
            first |= second
            groups.remove(second)
    return {frozenset(group) for group in groups}


@given(POINTS)
def test_clusters_are_chains_of_near_points(points: np.ndarray) -> None:
    labels = cluster(points, 2000.0, 1)
    found = {frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels)}
    assert found == chained(points, 2000.0)


def test_lone_points_are_in_no_cluster_if_it_needs_two() -> None:
    labels = cluster(np.array([[0.0, 0.0], [100.0, 0.0], [9000.0, 0.0]]), 2000.0, 2)
    assert labels.tolist() == [0, 0, -1]


@given(st.floats(-1e7, 1e7), st.floats(-1e7, 1e7), st.floats(0, 5000), st.floats(0, 5000))
def test_padding_keeps_the_middle_and_never_shrinks(x: float, y: float, width: float, height: float) -> None:
    (box,) = padded(np.array([[x, y, x + width, y + height]]), 640.0)
    np.testing.assert_allclose(box[2:] - box[:2], np.maximum([width, height], 640), atol=1e-6)
    np.testing.assert_allclose((box[2:] + box[:2]) / 2, [x + width / 2, y + height / 2], atol=1e-6)


def test_the_province_contains_the_box_or_has_the_largest_overlap() -> None:
    west, east = shapely.box(0, 0, 10, 10), shapely.box(10, 0, 20, 10)
    provinces = Provinces(("West", "East"), np.array([west, east]))
    boxes = np.array(
        [[1, 1, 2, 2], [12, 1, 13, 2], [8, 1, 11, 2], [9, 1, 12, 2], [30, 0, 31, 1], [20, 0, 21, 1.0]]
    )
    assert provinces.of(boxes) == ["West", "East", "West", "East", "", ""]


def test_the_first_of_overlapping_provinces_wins() -> None:
    square = shapely.box(0, 0, 10, 10)
    provinces = Provinces(("A", "B"), np.array([square, square]))
    assert provinces.of(np.array([[1, 1, 2, 2], [9, 1, 12, 2.0]])) == ["A", "A"]


def test_provinces_are_in_the_crs_of_the_boxes(tmp_path: Path) -> None:
    write_fields(tmp_path / "p.shp", [field(0, 0, 50_000)], crs="EPSG:3857", name=["West "])
    provinces = read_provinces(str(tmp_path), ProvincesConfig(path="p.shp", name_field="name"), UTM)
    assert provinces.of(np.array([field(1000, 1000).bounds])) == ["West"]
