"""Earth Engine as a source: attempts, quota and chunks, against the server of the tests."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from email.utils import formatdate
from typing import Any
from unittest import mock

import ee
import numpy as np
import pytest
import requests

from cropray.config import Config
from cropray.config.imagery import EarthEngineConfig
from cropray.errors import InputError
from cropray.grid import Grid
from cropray.imagery import ImagerySource, MeteredSource, open_source
from cropray.imagery.earthengine import graph
from cropray.imagery.earthengine import source as source_module
from cropray.imagery.earthengine.assets import MapAsset
from cropray.imagery.earthengine.quota import LocalQuota
from cropray.imagery.earthengine.session import RequestError, UnavailableError, retry_after_s
from cropray.imagery.earthengine.source import EarthEngineSource
from cropray.imagery.earthengine.tiling import S2_NAMES
from cropray.types import Composite, ImageRequest, Period
from tests.earthengine_server import Catalogue, Fault, Serving, serve

GRID = Grid("EPSG:32631", 590_000, 5_600_000, 10, 24, 40)
MONTHS = tuple(Period(date(2022, m, 1), date(2022, m + 1, 1)) for m in (4, 5))
REQUEST = ImageRequest(GRID, GRID, MONTHS, maps=("eucropmap",), name="a tile")


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serve(replay=True) as serving:
        yield serving


@pytest.fixture(autouse=True)
def no_fetch_from_outside() -> Iterator[None]:
    with mock.patch("ee.deprecation._FetchDataCatalogStac", return_value={}):
        yield


@pytest.fixture(scope="module")
def undisturbed(server: Serving) -> Composite:
    return source_of(server)[0].composite(REQUEST)


def source_of(server: Serving, **settings: Any) -> tuple[EarthEngineSource, LocalQuota]:
    server.plan()
    config = EarthEngineConfig(url=server.url, per_second=1000, **settings)
    quota = LocalQuota(config.in_flight, config.per_second, config.lease_s)
    return EarthEngineSource(config, quota, max_wait_s=0.02), quota


def assert_equal(got: Composite, wanted: Composite) -> None:
    for name in ("s2_tchw", "s1_tchw", "s2_valid_thw", "s1_valid_thw"):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))
    for name, codes in wanted.maps.items():
        np.testing.assert_array_equal(got.maps[name], codes)


def test_it_is_a_metered_source(server: Serving) -> None:
    source, _ = source_of(server)
    assert isinstance(source, ImagerySource)
    assert isinstance(source, MeteredSource)
    config = EarthEngineConfig(url=server.url)
    opened = open_source(Config.model_validate({"source": {"kind": "earthengine", "earthengine": config}}))
    assert opened.identity() == source.identity()
    assert source.identity()["s1_quantity"] == "sigma0"


def test_the_identity_is_that_of_the_pixels_and_not_of_the_account() -> None:
    plain = EarthEngineSource(EarthEngineConfig()).identity()
    assert EarthEngineSource(EarthEngineConfig(project="a", in_flight=3, url="http://x")).identity() == plain
    assert EarthEngineSource(EarthEngineConfig(eucropmap_year=2022)).identity() != plain


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("429", "rate_limited"),
        ("403_rate", "rate_limited"),
        ("capacity", "unavailable"),
        ("unknown", "refused"),
        ("500", "unavailable"),
        ("503", "unavailable"),
        ("html", "unavailable"),
        ("drop", "unavailable"),
        ("truncate", "unavailable"),
        ("garbage", "unavailable"),
        ("shape", "unavailable"),
        ("memory", "too_large"),
        ("timeout", "too_large"),
        ("size", "too_large"),
    ],
)
def test_a_request_that_fails_once_is_reported_and_its_pixels_are_the_same(
    server: Serving, undisturbed: Composite, kind: Any, outcome: str
) -> None:
    source, quota = source_of(server)
    server.plan(Fault(kind, times=1))
    assert_equal(source.composite(REQUEST), undisturbed)
    (attempt,) = quota.take_unanswered()
    assert attempt.outcome == outcome
    assert "a tile 24 x 40 px at row 0, column 0, months 1 to 2" in attempt.name
    assert attempt.error
    assert quota.status().in_flight == 0
    assert quota.status().requests == (3 if outcome == "too_large" else 2)


def test_a_request_not_answered_by_the_deadline_is_sent_again(
    server: Serving, undisturbed: Composite
) -> None:
    source, quota = source_of(server, deadline_s=2.0)
    server.plan(Fault("delay", times=1, seconds=60))
    assert_equal(source.composite(REQUEST), undisturbed)
    attempt = quota.take_unanswered()[0]
    assert "within 2 s" in attempt.error
    assert 1.9 < attempt.seconds < 10


def test_a_slot_is_released_while_a_thread_waits(server: Serving, undisturbed: Composite) -> None:
    slots = threading.Semaphore(1)
    source = EarthEngineSource(EarthEngineConfig(url=server.url, per_second=1000), slots=slots)
    server.plan()
    server.service.latency = 1.0

    def tile(_: int) -> Composite:
        with slots:
            return source.composite(REQUEST)

    server.forget()
    late = server.counters()["in_flight"]  # answers that no test waits for any more
    try:
        with ThreadPoolExecutor(4) as pool:
            composites = list(pool.map(tile, range(4)))
    finally:
        server.service.latency = 0.0
    assert server.counters()["in_flight_max"] - late == 4
    for composite in composites:
        assert_equal(composite, undisturbed)


def test_attempts_are_bounded_and_the_last_error_is_raised(server: Serving) -> None:
    source, quota = source_of(server, attempts=3)
    server.plan(Fault("503"))
    with pytest.raises(UnavailableError, match="503: The service is currently unavailable"):
        source.composite(REQUEST)
    assert [attempt.outcome for attempt in quota.take_unanswered()] == ["unavailable"] * 3


def test_a_refusal_in_unknown_words_is_final_after_the_second_time(server: Serving) -> None:
    source, quota = source_of(server)
    server.plan(Fault("unknown"))
    with pytest.raises(InputError, match=r"refused the request \(400\): The flux"):
        source.composite(REQUEST)
    assert quota.status().requests == 2


def test_a_start_with_too_many_requests_blames_the_quota_and_not_the_address(server: Serving) -> None:
    source, _ = source_of(server)
    server.plan(Fault("429"))
    with pytest.raises(InputError, match=r"too many requests .*429.*in_flight") as raised:
        source.preflight(REQUEST)
    assert "url" not in str(raised.value)


def test_a_chunk_that_cannot_be_halved_any_more_fails(server: Serving) -> None:
    source, quota = source_of(server)
    server.plan(Fault("memory"))
    with pytest.raises(RequestError, match="memory limit"):
        source.composite(REQUEST)
    assert quota.status().requests == 2  # the months together, then the first alone


def test_a_restricted_project_has_fewer_in_flight(server: Serving) -> None:
    source, quota = source_of(server, in_flight=20)
    server.plan(Fault("restricted", times=1))
    source.composite(REQUEST)
    assert quota.status().restricted
    assert quota.status().allowed == 2
    source.composite(REQUEST)
    assert quota.status().allowed == 20


def test_a_refused_request_is_not_sent_again(server: Serving) -> None:
    source, quota = source_of(server)
    request = ImageRequest(GRID, GRID, MONTHS, maps=("soil",))
    with pytest.raises(InputError, match=r"no map 'soil'.*eucropmap, land_cover"):
        source.composite(request)
    assert quota.status().requests == 0


def test_only_pixels_are_requested_and_the_graph_is_built_once(server: Serving) -> None:
    source, _ = source_of(server)
    before = server.counters()["requests"]
    with mock.patch.object(graph, "month_function", wraps=graph.month_function) as built:
        for _ in range(3):
            source.composite(REQUEST)
    assert built.call_count == 1
    after = server.counters()["requests"]
    assert {
        kind: after[kind] - before.get(kind, 0) for kind in after if after[kind] != before.get(kind, 0)
    } == {"image:computePixels": 3}


def test_the_body_of_a_request_hardly_grows_with_its_months(server: Serving) -> None:
    source, _ = source_of(server)
    sizes = []
    for months in (MONTHS[:1], MONTHS):
        before = server.counters()["bytes_in"]
        source.composite(ImageRequest(GRID, GRID, months))
        sizes.append(server.counters()["bytes_in"] - before)
    assert sizes[1] - sizes[0] < 0.05 * sizes[0]


def test_a_preflight_is_one_pixel(server: Serving) -> None:
    source, quota = source_of(server)
    source.preflight(REQUEST)
    assert quota.status().requests == 1
    assert quota.status().nbytes < 5000  # the header of an array of 25 bands
    server.plan(Fault("timeout"))
    source.preflight(REQUEST)  # the account is let in
    server.plan(Fault("503"))
    with pytest.raises(InputError, match=r"does not answer \(503.*after 5 attempts"):
        source.preflight(REQUEST)


def test_without_a_server_the_address_is_named() -> None:
    source = EarthEngineSource(EarthEngineConfig(url="http://127.0.0.1:9", attempts=2), max_wait_s=0.02)
    with pytest.raises(InputError, match=r"does not answer.*source\.earthengine\.url"):
        source.preflight(REQUEST)


PAGE = b"<!DOCTYPE html><title>Error 502 (Server Error)!!1</title>"


@pytest.mark.parametrize("part", ["$discovery", "/algorithms"])
@pytest.mark.parametrize(
    "answer", [(502, PAGE), (200, PAGE), (200, b""), (429, b"{}"), requests.ConnectionError("reset")]
)
def test_a_connection_that_fails_at_first_is_tried_again(
    server: Serving, monkeypatch: pytest.MonkeyPatch, part: str, answer: Any
) -> None:
    real, failed = requests.Session.request, []

    def request(self: requests.Session, method: str, uri: str, **kwargs: Any) -> requests.Response:
        if part not in uri or failed:
            return real(self, method, uri, **kwargs)
        failed.append(uri)
        if isinstance(answer, Exception):
            raise answer
        response = requests.Response()
        response.status_code, response.raw = answer[0], io.BytesIO(answer[1])
        return response

    ee.Reset()  # the client fetches its functions once a process
    monkeypatch.setattr(requests.Session, "request", request)
    source, quota = source_of(server)
    source.preflight(REQUEST)
    assert len(failed) == 1
    assert quota.status().requests == 2
    (attempt,) = quota.take_unanswered()
    assert attempt.outcome == ("rate_limited" if answer == (429, b"{}") else "unavailable")


def starts(server: Serving) -> list[float]:
    return [entry.started for entry in server.service.book]


@pytest.mark.parametrize("kind", ["429", "503"])
def test_a_request_waits_as_long_as_the_service_asks(
    server: Serving, undisturbed: Composite, kind: Any
) -> None:
    source, quota = source_of(server)
    source.preflight(REQUEST)  # connected
    server.plan(Fault(kind, times=1, retry_after="2"))
    server.forget()
    assert_equal(source.composite(REQUEST), undisturbed)
    refused, answered = starts(server)
    assert 2 <= answered - refused < 6
    (attempt,) = quota.take_unanswered()
    assert attempt.retry_after_s == 2


def test_a_date_to_wait_for_is_compared_with_the_clock_of_the_service(server: Serving) -> None:
    source, quota = source_of(server)
    server.service.clock_ahead_s = 5000.0
    try:
        until = formatdate(server.service.now() + 3, usegmt=True)
        server.plan(Fault("429", times=1, retry_after=until))
        server.forget()
        source.composite(REQUEST)
    finally:
        server.service.clock_ahead_s = 0.0
    (attempt,) = quota.take_unanswered()
    assert 1 <= attempt.retry_after_s <= 3
    refused, answered = starts(server)
    assert 1 <= answered - refused < 8


def test_no_wait_is_longer_than_the_deadline(server: Serving) -> None:
    source, quota = source_of(server, deadline_s=2.0)
    server.plan(Fault("429", times=1, retry_after="86400"))
    source.composite(REQUEST)
    (attempt,) = quota.take_unanswered()
    assert attempt.retry_after_s == 2


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ({}, 0),
        ({"retry-after": "120"}, 120),
        (
            {"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT", "date": "Fri, 31 Dec 1999 23:58:59 GMT"},
            60,
        ),
        (
            {"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT", "date": "Sat, 01 Jan 2000 00:00:00 GMT"},
            0,
        ),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0),  # by this machine's clock
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "-1"}, 0),
        ({"retry-after": "Fri, 31 Dec 999999 23:59:59 GMT"}, 0),
    ],
)
def test_how_long_to_wait_is_read_as_http_has_it(headers: dict[str, str], wanted: float) -> None:
    assert retry_after_s(headers) == wanted


def test_requests_to_two_services_in_turn_are_not_mixed_up(server: Serving) -> None:
    """The client is set to one account and address a process."""
    here, _ = source_of(server)
    with serve(Catalogue(seed=7)) as elsewhere:
        there, _ = source_of(elsewhere)
        first, second = here.composite(REQUEST), there.composite(REQUEST)
        assert not np.array_equal(first.s2_tchw, second.s2_tchw)
        assert_equal(here.composite(REQUEST), first)
        assert_equal(there.composite(REQUEST), second)
    assert_equal(here.composite(REQUEST), first)  # the other service is gone


def test_an_account_that_is_refused_does_not_lend_its_name_to_another(server: Serving) -> None:
    good, _ = source_of(server)
    good.preflight(REQUEST)
    refused, _ = source_of(server, project="forbidden")
    with pytest.raises(InputError, match="needs the roles"):
        refused.preflight(REQUEST)
    good.preflight(REQUEST)
    with pytest.raises(InputError, match="needs the roles"):
        refused.preflight(REQUEST)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("S2_COLLECTION", "COPERNICUS/S2_NOT", r"asset 'COPERNICUS/S2_NOT' not found.*may read"),
        ("S2_NAMES", [*S2_NAMES[:-1], "B99"], r"Band pattern 'B99'"),
    ],
)
def test_an_unknown_asset_or_band_is_reported_after_one_request(
    server: Serving, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, said: str
) -> None:
    monkeypatch.setattr(graph, name, value)
    source, quota = source_of(server)
    with pytest.raises(InputError, match=said):
        source.preflight(REQUEST)
    assert quota.status().requests == 1


def test_a_missing_map_asset_is_reported(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = MapAsset("JRC/D5/EUCROPMAP/V0", "classification", (100, 211))
    monkeypatch.setattr(source_module, "map_asset", lambda *_: gone)
    source, _ = source_of(server)
    with pytest.raises(InputError, match="asset 'JRC/D5/EUCROPMAP/V0' not found"):
        source.preflight(REQUEST)
