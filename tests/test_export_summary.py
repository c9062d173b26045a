"""What an export says of its ledger: counts by month, and gaps of Sentinel-1 as warnings."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from cropray.pipeline.export_summary import summarise
from cropray.shards.ledger import LedgerRow
from cropray.storage import Folder
from cropray.types import Period
from tests.export_inputs import PlainSource, export_here, make_config, make_roi

MAY, JUNE, JULY = (Period(date(2022, m, 1), date(2022, m + 1, 1)) for m in (5, 6, 7))
MONTHS = {"maize-1": (MAY, JUNE)}


def exported(path: Path, *, blind: bool = False) -> list[LedgerRow]:
    """Two tiles of one region; its first month has no scene of Sentinel-1."""
    return export_here(make_config(), [make_roi()], PlainSource(blind=blind), Folder(str(path)))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[LedgerRow]:
    return exported(tmp_path_factory.mktemp("summary"))


def test_tiles_are_counted_and_their_gaps_named_by_sensor_and_month(rows: list[LedgerRow]) -> None:
    summary = summarise(rows, MONTHS)
    (warning,) = summary.pop("warnings")
    assert re.search(r"no valid Sentinel-1: 2022-05 in 1 of 1 ROIs \(such as maize-1\)", warning)
    assert summary == {
        "tiles": 2,
        "patches": 6,
        "patches_by_split": {"train": 6},
        "nbytes": 6 * rows[0].nbytes // 4,
        "provisional_tiles": 0,
        "empty_tiles": {},
        "months_without_scene": {"s2": {}, "s1": {"2022-05": 2}},
        "months_without_view": {"s2": {"2022-05": 1, "2022-06": 1}, "s1": {"2022-05": 2}},
        "scenes_lost": 0,
    }


def test_scenes_that_a_source_does_not_count_are_not_reported_as_there(rows: list[LedgerRow]) -> None:
    uncounted = [replace(row, scenes_s2=[], scenes_s1=[]) for row in rows]
    got = summarise(uncounted, MONTHS)
    assert got["months_without_scene"] == {"s2": None, "s1": None}
    assert got["months_without_view"]["s1"] == {"2022-05": 2}
    assert got["warnings"] == summarise(rows, MONTHS)["warnings"]


def test_tiles_in_which_nothing_was_seen_are_a_warning(tmp_path: Path) -> None:
    rows = exported(tmp_path, blind=True)
    got = summarise(rows, MONTHS)
    assert got["empty_tiles"] == {"no valid pixel in any month of either sensor": 2}
    blind, optical, radar = got["warnings"]
    assert blind.startswith("2 of 2 tiles have no valid pixel in any month of either sensor")
    assert ("Sentinel-2" in optical, "Sentinel-1" in radar) == (True, True)


def test_a_month_without_sentinel_2_is_a_warning_too(rows: list[LedgerRow]) -> None:
    clouded = [replace(row, valid_s2=[1.0, 0.0], valid_s1=[1.0, 1.0]) for row in rows]
    (warning,) = summarise(clouded, MONTHS)["warnings"]
    assert "no valid Sentinel-2: 2022-06 in 1 of 1 ROIs (such as maize-1)" in warning
    partly = [replace(rows[0], valid_s2=[1.0, 0.1], valid_s1=[1.0, 1.0])]
    assert summarise(partly, MONTHS)["warnings"] == []  # clouds
    without = [replace(row, valid_s2=[0.0, 0.0], valid_s1=[1.0, 1.0]) for row in rows]
    (warning,) = summarise(without, MONTHS)["warnings"]
    assert "Sentinel-2 in any month" in warning


def test_a_month_that_lacks_one_of_the_orbits_is_a_warning(rows: list[LedgerRow]) -> None:
    whole = [replace(row, valid_s1=[1.0, 1.0]) for row in rows]
    assert summarise(whole, MONTHS)["warnings"] == []
    west, east = whole  # of one height
    share = west.width / (west.width + east.width)
    partly = [west, replace(east, valid_s1=[0.0, 1.0])]
    (warning,) = summarise(partly, MONTHS)["warnings"]
    assert (
        f"less Sentinel-1 than others: 2022-05 in 1 of 1 ROIs (such as maize-1: {share:.0%} of it" in warning
    )
    assert "at best 100%" in warning
    # An orbit that is never there shows in no month: this is what the region has.
    edge = [west, replace(east, valid_s1=[0.0, 0.0], valid_s2=[1.0, 1.0])]
    assert summarise(edge, MONTHS)["warnings"] == []
    assert summarise(edge, MONTHS)["months_without_view"]["s1"] == {"2022-05": 1, "2022-06": 1}


def test_regions_of_other_seasons_are_counted_by_their_own_months(rows: list[LedgerRow]) -> None:
    later = [replace(row, roi_id="late", valid_s1=[1.0, 0.0]) for row in rows]
    got = summarise([*rows, *later], MONTHS | {"late": (JUNE, JULY)})
    assert got["months_without_view"]["s1"] == {"2022-05": 2, "2022-07": 2}
    (warning,) = got["warnings"]
    assert "2022-05 in 1 of 2 ROIs (such as maize-1), 2022-07 in 1 of 2 ROIs (such as late)" in warning


def test_scenes_that_were_left_out_are_counted_and_named(rows: list[LedgerRow]) -> None:
    seen = [replace(row, valid_s1=[1.0, 1.0]) for row in rows]
    lost = [
        replace(row, lost=["S2X: cannot read B03.tif", f"S2Y: {share}% of B02"])
        for row, share in zip(seen, (98, 99), strict=True)  # by tile, of one scene
    ]
    got = summarise(lost, MONTHS)
    assert got["scenes_lost"] == 2
    (warning,) = got["warnings"]
    assert re.search(r"2 scenes .* 2 tiles, such as S2X: cannot read B03\.tif", warning)


def test_tiles_of_one_region_with_different_orbits_are_a_warning(rows: list[LedgerRow]) -> None:
    west, east = (replace(row, valid_s1=[1.0, 1.0], orbits_s1=["ascending 88"]) for row in rows)
    assert summarise([west, east], MONTHS)["warnings"] == []
    (warning,) = summarise([west, replace(east, orbits_s1=["descending 37"])], MONTHS)["warnings"]
    assert re.search(r"1 ROIs .*different Sentinel-1 orbits, such as maize-1", warning)
