"""Requests in flight and a second, with a clock of the test's own; and the threads of one process."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropray.imagery.earthengine.quota import Attempt, Limiter, LocalQuota, RequestOutcome
from cropray.pipeline.cluster_quota import quota_notes

DONE = Attempt("a tile", "done", 1.0, nbytes=1000)
TOO_MANY = Attempt("a tile", "rate_limited", 1.0, error="429")


def limiter(in_flight: int = 8, per_second: float = 1e9, lease_s: float = 100.0) -> Limiter:
    return Limiter(in_flight, per_second, lease_s)


def started(limit: Limiter, now: float) -> list[int]:
    """Permits of all requests that may start now."""
    permits = []
    while (permit := limit.try_start(now)) is not None:
        permits.append(permit)
        now += 1e-8
    return permits


def test_no_more_are_in_flight_than_allowed() -> None:
    limit = limiter(in_flight=3)
    permits = started(limit, 0.0)
    assert len(permits) == 3
    limit.finish(permits[0], DONE, 1.0)
    assert len(started(limit, 1.0)) == 1


def test_starts_are_spaced_evenly_and_idle_time_is_not_saved_up() -> None:
    limit = limiter(in_flight=100, per_second=4)
    times, now = [], 10.0
    for _ in range(5):
        assert limit.try_start(now) is not None
        times.append(now)
        assert limit.try_start(now) is None
        now += limit.wait_s(now)
    assert times == pytest.approx([10.0, 10.25, 10.5, 10.75, 11.0])
    assert limit.try_start(100.0) is not None
    assert limit.try_start(100.1) is None


def test_too_many_requests_halve_what_is_allowed_once_a_round() -> None:
    limit = limiter(in_flight=16)
    permits = started(limit, 0.0)
    for permit in permits:  # all were on their way when the first was refused
        limit.finish(permit, TOO_MANY, 1.0)
    assert limit.allowed == 8
    for permit in started(limit, 2.0):
        limit.finish(permit, TOO_MANY, 3.0)
    assert limit.allowed == 4
    assert limit.rate_limited == 24


def test_a_round_of_answers_allows_one_more_up_to_the_setting() -> None:
    limit = limiter(in_flight=8)
    limit.finish(started(limit, 0.0)[0], TOO_MANY, 1.0)
    limit = limiter(in_flight=8)
    for permit in started(limit, 0.0):
        limit.finish(permit, TOO_MANY, 1.0)
    allowed = []
    for now in range(2, 40):
        allowed.append(limit.allowed)
        for permit in started(limit, now):
            limit.finish(permit, DONE, now + 0.5)
    assert allowed[0] == 4
    assert sorted(allowed) == allowed
    assert allowed[2] <= 6
    assert allowed[-1] == 8


def test_at_least_one_request_is_always_allowed() -> None:
    limit = limiter(in_flight=2)
    for now in range(0, 20, 2):
        permits = started(limit, now)
        assert permits
        for permit in permits:
            limit.finish(permit, TOO_MANY, now + 1)


def test_a_restricted_project_has_two_in_flight_until_it_is_not_restricted() -> None:
    limit = limiter(in_flight=8)
    limit.finish(started(limit, 0.0)[0], Attempt("a tile", "done", 1.0, restricted=True), 1.0)
    assert limit.allowed == 2
    assert limit.status(1.0).restricted
    limit.finish(2, DONE, 2.0)
    assert limit.allowed == 8


def test_the_permit_of_a_killed_worker_expires() -> None:
    limit = limiter(in_flight=1, lease_s=100)
    permit = limit.try_start(0.0)
    assert permit is not None
    assert limit.try_start(50.0) is None
    assert limit.wait_s(50.0) == pytest.approx(50.0)
    assert limit.try_start(100.1) is not None
    limit.finish(permit, DONE, 101.0)  # late: the newer request is still counted
    assert limit.status(101.0).in_flight == 1


def test_nothing_starts_before_the_time_that_the_service_names() -> None:
    limit = limiter(in_flight=8)
    first, second = (limit.try_start(now) or 0 for now in (0.0, 0.1))
    limit.finish(first, Attempt("a tile", "rate_limited", 1.0, error="429", retry_after_s=30.0), 1.0)
    limit.finish(second, Attempt("a tile", "unavailable", 1.0, error="503", retry_after_s=5.0), 2.0)
    assert started(limit, 30.9) == []
    assert limit.wait_s(11.0) == pytest.approx(20.0)
    assert limit.status(11.0).paused_s == pytest.approx(20.0)
    assert limit.try_start(31.0) is not None
    assert limit.status(31.0).paused_s == 0


def test_speed_is_that_of_the_last_half_minute() -> None:
    limit = limiter()
    for now in (0.0, 10.0, 20.0):
        permit = limit.try_start(now)
        assert permit is not None
        limit.finish(permit, DONE, now)
    assert limit.status(20.0).bytes_per_s == pytest.approx(100.0)
    assert limit.status(45.0).bytes_per_s == pytest.approx(1000 / 30)
    assert limit.status(45.0).nbytes == 3000


@given(
    st.integers(1, 12),
    st.lists(
        st.tuples(st.sampled_from(["done", "rate_limited", "unavailable"]), st.floats(0, 3)), max_size=80
    ),
)
def test_counts_hold_whatever_happens(most: int, events: list[tuple[RequestOutcome, float]]) -> None:
    limit, now, open_permits = limiter(in_flight=most, per_second=10), 0.0, []
    starts: list[float] = []
    for outcome, later in events:
        now += later
        permit = limit.try_start(now)
        if permit is not None:
            open_permits.append(permit)
            starts.append(now)
        elif open_permits:
            limit.finish(open_permits.pop(0), Attempt("a tile", outcome, 0.1), now)
        assert limit.status(now).in_flight == len(open_permits) <= most
        assert 1 <= limit.allowed <= most
        assert limit.wait_s(now) >= 0
    assert all(later - one >= 0.1 - 1e-9 for one, later in pairwise(starts))


def test_threads_share_one_quota() -> None:
    quota = LocalQuota(in_flight=3, per_second=1000, lease_s=100)
    lock, now_in, most = threading.Lock(), 0, 0

    def request(_: int) -> None:
        nonlocal now_in, most
        permit = quota.acquire()
        with lock:
            now_in += 1
            most = max(most, now_in)
        time.sleep(0.003)
        with lock:
            now_in -= 1
        quota.release(permit, DONE)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(request, range(60)))
    assert most == 3
    assert quota.status().requests == 60
    assert quota.status().in_flight == 0


def test_requests_without_an_answer_are_reported_once() -> None:
    quota = LocalQuota(in_flight=3, per_second=1000, lease_s=100)
    for attempt in (DONE, TOO_MANY, DONE):
        quota.release(quota.acquire(), attempt)
    assert quota.take_unanswered() == [TOO_MANY]
    assert quota.take_unanswered() == []


def test_a_person_is_told_the_state_of_the_requests() -> None:
    status = LocalQuota(in_flight=8, per_second=1000, lease_s=100).status()
    assert quota_notes(status) == ["0.0 MB/s", "0 of 8 in flight", "0 x 429"]
    slow = replace(status, rate_limited=3, bytes_per_s=2.5e6, in_flight=2, restricted=True, paused_s=30.2)
    speed, in_flight, refused, paused = quota_notes(slow)
    assert (speed, refused) == ("2.5 MB/s", "3 x 429")
    assert "2 of 8 in flight" in in_flight
    assert "restricted mode" in in_flight
    assert "30 s" in paused
