from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod, Transformer

from cropray.config.rois import SplitConfig
from cropray.errors import InputError
from cropray.grid import Grid, transform_bounds
from cropray.rois.near import components, near_across, near_pairs
from cropray.rois.splits import apart, audit_grids, audit_splits, missing_crops, split_rois
from cropray.types import Roi

CRS = "EPSG:32631"


def roi(name: str, x: float, y: float, crop: str = "wheat", crs: str = CRS, size: float = 640.0) -> Roi:
    bounds = (500_000 + x, 5_400_000 + y, 500_000 + x + size, 5_400_000 + y + size)
    return Roi(name, crop, "", "", "", "", bounds, crs)


def spread(counts: dict[str, int]) -> list[Roi]:
    """ROIs of each crop far from all others."""
    crops = [crop for crop, count in counts.items() for _ in range(count)]
    return [roi(f"{crop}-{n}", 5000.0 * (n % 50), 5000.0 * (n // 50), crop) for n, crop in enumerate(crops)]


def shares(rois: list[Roi], crop: str) -> list[int]:
    return [sum(r.crop == crop and r.split == split for r in rois) for split in ("train", "val", "test")]


def test_a_province_left_out_is_the_test_split_and_its_neighbours_are_no_training() -> None:
    rois = [replace(r, province="Fars" if n < 10 else "Gilan") for n, r in enumerate(spread({"wheat": 60}))]
    rois.append(replace(roi("border", 700, 0), province="Gilan"))  # 60 m from the first of Fars
    config = SplitConfig(left_out=("Fars",), buffer_m=1000.0)
    kept, near = apart(split_rois(rois, config, seed=0), config)
    assert {r.province for r in kept if r.split == "test"} == {"Fars"}
    assert [sum(r.split == split for r in kept) for split in ("train", "val", "test")] == [
        43,
        7,
        10,
    ]  # val had the border
    assert [r.roi_id for r in near] == ["border"]
    audit_splits(kept, config.buffer_m)


def test_a_year_is_left_out_by_season_or_harvest() -> None:
    rois = [replace(r, season="2021", harvest_end=date(2022, 7, 1)) for r in spread({"wheat": 3})]
    rois = [*rois, replace(roi("later", 90_000, 0), harvest_end=date(2023, 7, 1))]
    for name in ("2021", 2022):
        split = split_rois(rois, SplitConfig(left_out=(name,), val=0), seed=0)
        assert [r.split for r in split] == ["test"] * 3 + ["train"]
    with pytest.raises(InputError, match=r"'202'.*'202[123]'"):
        split_rois(rois, SplitConfig(left_out=("202",)), seed=0)
    with pytest.raises(ValueError, match=r"named.*left_out"):
        SplitConfig(left_out=("2021",), named={"a": "test"})


def test_near_is_a_distance_on_the_ground() -> None:
    rois = [roi("a", 0, 0), roi("b", 640 + 980, 0), roi("c", 0, 640 + 1020), roi("d", 9000, 9000)]
    assert near_pairs(rois, 1000.0).T.tolist() == [[0, 1]]
    assert len(near_pairs(rois, 1050.0).T) == 3  # b and c as well, corner to corner
    # Web Mercator stretches: at 60° N, 1,500 of its metres are 750 on the ground.
    x, y = Transformer.from_crs(4326, 3857, always_xy=True).transform(10, 60)
    north = [
        replace(r, crs="EPSG:3857", bounds=(x + d, y, x + d + 640, y + 640))
        for r, d in zip(rois, (0, 2140), strict=False)
    ]
    assert near_pairs(north, 1000.0).shape == (2, 1)
    assert near_pairs(north, 700.0).shape == (2, 0)


@given(st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 20_000)), min_size=2, max_size=25))
@settings(deadline=None)
def test_no_pair_nearer_than_the_buffer_is_overlooked(corners: list[tuple[int, int]]) -> None:
    rois = [roi(f"r{n}", x, y) for n, (x, y) in enumerate(corners)]
    pairs = {tuple(pair) for pair in near_pairs(rois, 1000.0).T.tolist()}
    low = np.array(corners, dtype=float)
    gap = np.maximum(np.abs(low[:, None] - low[None]) - 640, 0)  # along each axis
    for one in range(len(rois)):
        for other in range(one + 1, len(rois)):
            if np.hypot(*gap[one, other]) < 999:  # UTM scale 0.9996
                assert (one, other) in pairs
            if gap[one, other].max() > 1030:  # the convergence of meridians widens boxes a little
                assert (one, other) not in pairs


def test_the_buffer_holds_on_the_ellipsoid_far_north() -> None:
    east, _, _ = Geod(ellps="WGS84").fwd(20.0, 70.0, 90.0, 900.0)
    boxes = [(19.99, 69.99, 20.0, 70.0), (east, 69.99, east + 0.01, 70.0)]
    rois = [Roi(str(n), "", "", "", "", "", box, "EPSG:4326") for n, box in enumerate(boxes)]
    assert near_pairs(rois, 1000.0).shape == (2, 1)


def chained(rois: list[Roi], buffer_m: float) -> set[frozenset[int]]:
    """Components by repeated merging of the groups of each near pair."""
    groups = [{number} for number in range(len(rois))]
    for one, other in near_pairs(rois, buffer_m).T.tolist():
        first, second = (next(group for group in groups if n in group) for n in (one, other))
        if first is not second:
            first |= second
            groups.remove(second)
    return {frozenset(group) for group in groups}


SIZES = st.sampled_from([50.0, 640.0, 3000.0])


@given(
    st.lists(
        st.tuples(st.integers(0, 15_000), st.integers(0, 15_000), SIZES, SIZES), min_size=1, max_size=40
    ),
    st.sampled_from([0.0, 1.0, 300.0, 1000.0]),
)
@settings(deadline=None)
def test_components_are_chains_of_near_regions(
    boxes: list[tuple[int, int, float, float]], buffer_m: float
) -> None:
    rois = [
        replace(roi(f"r{n}", 0, 0), bounds=(x + 5e5, y + 5.4e6, x + wide + 5e5, y + high + 5.4e6))
        for n, (x, y, wide, high) in enumerate(boxes)
    ]
    numbers = components(rois, buffer_m)
    found = {frozenset(np.flatnonzero(numbers == number).tolist()) for number in numbers}
    assert found == chained(rois, buffer_m)
    dealt = [replace(each, split=("train", "val", "test")[n % 3]) for n, each in enumerate(rois)]
    across = near_across(dealt, buffer_m).T.tolist()
    assert across == [[i, j] for i, j in near_pairs(dealt, buffer_m).T.tolist() if i % 3 != j % 3]


def test_regions_on_both_sides_of_180_degrees_are_near() -> None:
    boxes = {"west": (179.98, -17, 179.99, -16.99), "across": (179.995, -17, 180.002, -16.99)}
    boxes |= {"east": (-179.99, -17, -179.98, -16.99), "far": (-179.9, -17, -179.8, -16.99)}
    rois = [Roi(name, "", "", "", "", "", box, "EPSG:4326") for name, box in boxes.items()]
    assert components(rois, 1500.0).tolist() == [0, 0, 0, 1]
    assert near_pairs(rois, 1500.0).T.tolist() == [[0, 1], [1, 2]]
    utm = replace(
        rois[1], bounds=transform_bounds(rois[1].bounds, "EPSG:4326", "EPSG:32760"), crs="EPSG:32760"
    )
    assert near_pairs([rois[0], utm, *rois[2:]], 1500.0).T.tolist() == [[0, 1], [1, 2]]


def test_a_chain_of_neighbours_is_one_component_and_one_split() -> None:
    chain = [roi(f"c{n}", 1500.0 * n, 0) for n in range(10)]
    others = spread({"wheat": 40})
    rois = [replace(r, bounds=tuple(b + 1e5 for b in r.bounds)) for r in others] + chain
    assert len(set(components(rois, 1000.0)[-10:].tolist())) == 1
    dealt = split_rois(rois, SplitConfig(), seed=0)
    assert len({r.split for r in dealt[-10:]}) == 1
    audit_splits(dealt, 1000.0)


def test_shares_hold_for_every_crop() -> None:
    dealt = split_rois(spread({"wheat": 200, "beet": 40, "rye": 20}), SplitConfig(val=0.2, test=0.1), seed=1)
    assert [shares(dealt, crop) for crop in ("wheat", "beet", "rye")] == [
        [140, 40, 20],
        [28, 8, 4],
        [14, 4, 2],
    ]
    assert missing_crops(dealt) == {}


@pytest.mark.parametrize("count", [3, 4, 6])
def test_three_regions_of_a_crop_are_enough_for_all_splits(count: int) -> None:
    dealt = split_rois(spread({"wheat": 60, "rye": count}), SplitConfig(), seed=0)
    assert min(shares(dealt, "rye")) >= 1


def test_a_crop_of_one_component_is_trained_on_and_reported_missing_elsewhere() -> None:
    rye = [roi(f"rye-{n}", 700.0 * n, 0, "rye") for n in range(5)]
    rois = rye + [replace(r, bounds=tuple(b + 1e5 for b in r.bounds)) for r in spread({"wheat": 20})]
    dealt = split_rois(rois, SplitConfig(), seed=0)
    assert {r.split for r in dealt[:5]} == {"train"}
    assert missing_crops(dealt) == {"val": ["rye"], "test": ["rye"]}


def test_a_split_with_share_0_is_empty() -> None:
    dealt = split_rois(spread({"wheat": 20}), SplitConfig(val=0.25, test=0), seed=0)
    assert shares(dealt, "wheat") == [15, 5, 0]


@given(st.permutations(range(30)))
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_regions_does_not_matter(order: list[int]) -> None:
    rois = spread({"wheat": 20, "rye": 10})
    wanted = {r.roi_id: r.split for r in split_rois(rois, SplitConfig(), seed=5)}
    dealt = split_rois([rois[index] for index in order], SplitConfig(), seed=5)
    assert {r.roi_id: r.split for r in dealt} == wanted


def test_another_seed_gives_other_splits() -> None:
    rois = spread({"wheat": 40})
    deals = {tuple(r.split for r in split_rois(rois, SplitConfig(), seed)) for seed in range(5)}
    assert len(deals) == 5


def test_the_audit_names_regions_that_leak() -> None:
    leaky = [replace(roi("here", 0, 0), split="train"), replace(roi("there", 900, 0, "rye"), split="test")]
    with pytest.raises(InputError, match=r"1 pairs .*\n  here \(train\) and there \(test\)\n"):
        audit_splits(leaky, 1000.0)
    audit_splits(leaky, 200.0)


def grids(rois: list[Roi], snap: float = 20.0, crs: str = CRS) -> list[Grid]:
    return [Grid.covering(r.bounds, r.crs, crs=crs, snap=snap, min_size=64) for r in rois]


def test_regions_that_are_apart_may_share_pixels_once_snapped() -> None:
    here, there = replace(roi("here", 5, 0), split="train"), replace(roi("there", 655, 0), split="val")
    audit_splits([here, there], 9.0)  # 10 m apart
    with pytest.raises(InputError, match=r"pixels of 1 pairs .*\n  here \(train\) and there \(val\)\n"):
        audit_grids([here, there], grids([here, there]))
    audit_grids([here, there], grids([here, there], snap=10.0))
    audit_grids([here, replace(there, split="train")], grids([here, there]))


def test_grids_of_two_splits_may_touch() -> None:
    rois = [replace(roi("here", 0, 0), split="train"), replace(roi("there", 640, 0), split="val")]
    audit_grids(rois, grids(rois))


def test_a_region_widened_to_a_patch_is_audited_as_widened() -> None:
    small = replace(roi("small", 700, 100, size=100.0), split="test")
    rois = [replace(roi("here", 0, 0), split="train"), small]
    with pytest.raises(InputError, match=r"rois\.split\.buffer_m"):
        audit_grids(rois, grids(rois))


def test_grids_in_two_zones_are_compared_on_the_ground() -> None:
    inside, outside = ((5.9995, 50.0, 6.009, 50.006), (6.015, 50.0, 6.024, 50.006))
    west = Roi("west", "", "", "", "", "train", (5.99, 50.0, 5.9999, 50.006), "EPSG:4326")
    for bounds, clash in ((inside, True), (outside, False)):
        east = Roi("east", "", "", "", "", "val", bounds, "EPSG:4326")
        both = [*grids([west], crs="EPSG:32631"), *grids([east], crs="EPSG:32632")]
        if clash:
            with pytest.raises(InputError, match=r"west .* and east"):
                audit_grids([west, east], both)
        else:
            audit_grids([west, east], both)


def test_the_shares_must_leave_something_to_train_on() -> None:
    with pytest.raises(ValueError, match="training"):
        SplitConfig(val=0.5, test=0.5)
