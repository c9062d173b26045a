"""Requests cut by bytes: as few chunks as fit, every pixel and month once, and their estimate_cost cost."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropray.config.imagery import EarthEngineConfig
from cropray.grid import Grid
from cropray.imagery.earthengine.tiling import (
    BANDS,
    MAX_BYTES,
    AdaptiveSize,
    Chunk,
    band_names,
    estimate_cost,
    plan_chunks,
)
from cropray.types import ImageRequest, Period

LIMIT = 50_331_648  # bytes a response, as published


def request(height: int, width: int, months: int = 6, maps: tuple[str, ...] = ()) -> ImageRequest:
    grid = Grid("EPSG:32631", 500_000, 5_600_000, 10, height, width)
    periods = tuple(
        Period(date(2018 + m // 12, m % 12 + 1, 1), date(2018 + m // 12, m % 12 + 1, 28))
        for m in range(months)
    )
    return ImageRequest(grid, grid, periods, maps=maps)


def test_six_months_and_a_label_map_of_480_px_square_are_one_request() -> None:
    (chunk,) = plan_chunks(request(480, 480, maps=("eucropmap",)))
    assert chunk.nbytes == 480 * 480 * (72 * 3 + 2) <= LIMIT
    assert len(plan_chunks(request(484, 484, maps=("eucropmap",)))) == 2


@given(st.integers(1, 1500), st.integers(1, 1500), st.integers(1, 24), st.sets(st.sampled_from("ab")))
def test_chunks_fit_and_cover_a_request_once(height: int, width: int, months: int, maps: set[str]) -> None:
    chunks = plan_chunks(request(height, width, months, tuple(maps)))
    seen = np.zeros((months, height, width), int)
    mapped = np.zeros((height, width), int)
    for chunk in chunks:
        assert chunk.nbytes <= LIMIT
        assert chunk.bands == len(band_names(chunk.stop - chunk.first)) + len(chunk.maps)
        rows, cols = chunk.window.slices
        seen[chunk.first : chunk.stop, rows, cols] += 1
        mapped[rows, cols] += chunk.maps == tuple(maps)
    assert (seen == 1).all()
    assert (mapped == 1).all() or not maps
    whole = height * width * (months * BANDS * 3 + len(maps) * 2)
    assert len(chunks) <= 2 * -(-whole // LIMIT)


@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 12))
def test_halving_ends_with_single_months_of_small_windows_and_loses_nothing(
    height: int, width: int, months: int
) -> None:
    (whole,) = plan_chunks(request(height, width, months, ("a",)), max_bytes=1 << 60)
    queue, smallest = [whole], []
    while queue:
        chunk = queue.pop()
        queue.extend(chunk.halves() or ())
        if chunk.halves() is None:
            smallest.append(chunk)
    assert all(chunk.stop - chunk.first == 1 for chunk in smallest)
    assert max(max(chunk.window.height, chunk.window.width) for chunk in smallest) < 128
    assert sum(chunk.nbytes for chunk in smallest) == whole.nbytes


def test_space_is_halved_before_months_and_maps_come_with_the_first_months() -> None:
    (chunk,) = plan_chunks(request(100, 200, maps=("eucropmap",)))
    left, right = chunk.halves() or ()
    assert (left.window.width, right.window.width, right.window.col) == (100, 100, 100)
    early, late = left.halves() or ()
    assert (early.first, early.stop, early.maps) == (0, 3, ("eucropmap",))
    assert (late.first, late.stop, late.maps) == (3, 6, ())


def test_after_three_refusals_in_a_row_requests_are_half_as_large() -> None:
    size = AdaptiveSize()
    (chunk,) = plan_chunks(request(400, 400))
    for _ in range(2):
        size.record_refusal(chunk)
    size.record_answer(chunk)
    for _ in range(2):
        size.record_refusal(chunk)
    assert size.max_bytes == MAX_BYTES
    size.record_answer(chunk.halves()[0])  # a half says nothing of the whole
    size.record_refusal(chunk)
    assert size.max_bytes == chunk.nbytes // 2
    assert len(plan_chunks(request(400, 400), size.max_bytes)) == 2


def test_an_estimate_is_that_of_its_assumptions() -> None:
    config = EarthEngineConfig(
        in_flight=4, per_second=10, assumed_eecu_s=36, assumed_latency_s=3, assumed_request_s=20
    )
    chunks = [chunk for _ in range(100) for chunk in plan_chunks(request(400, 500))]
    got = estimate_cost(chunks, config)
    assert got["requests"] == 100
    assert got["response_bytes"] == 100 * 400 * 500 * 72 * 3
    assert got["eecu_hours"] == pytest.approx(100 * 0.2 * 6 * 36 / 3600)
    transfer_s = 100 * 400 * 500 * 72 * 3 / LIMIT * 20
    assert got["wall_time_s"] == pytest.approx((100 * 3 + transfer_s) / 4, rel=1e-3)
    small: list[Chunk] = [chunk for _ in range(100) for chunk in plan_chunks(request(8, 8))]
    assert estimate_cost(small, config)["wall_time_s"] == pytest.approx(75.1, abs=0.5)
    fast = config.model_copy(update={"assumed_latency_s": 0.1})
    assert estimate_cost(small, fast)["wall_time_s"] == pytest.approx(10.0)  # by the rate
    assert "36 EECU-seconds a megapixel and month, 3 s a request and 20 s more for 48 MiB" in got["assumed"]
