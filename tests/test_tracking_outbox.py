"""Metrics reach a server that is away for a while, in their order, and nobody waits for it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from mlflow.exceptions import MlflowException, RestException

from cropray.errors import InputError
from cropray.tracking import outbox as module
from cropray.tracking.outbox import Outbox

AWAY = MlflowException("API request failed: Connection refused")
BUSY = RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "overloaded"})
REFUSED = RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "the run was deleted"})


@dataclass
class Server:
    """As a tracker: fails with these errors, one a time, before it takes anything."""

    errors: list[Exception] = field(default_factory=list)
    got: list[tuple[dict[str, float], int, float]] = field(default_factory=list)

    def metrics(self, metrics: Mapping[str, float], step: int, *, when_s: float) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.got.append((dict(metrics), step, when_s))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.1)
    monkeypatch.setattr(module, "_PATIENCE_S", 1.0)


def test_what_is_sent_while_the_server_is_away_arrives_in_order_and_with_its_time() -> None:
    server = Server([AWAY, BUSY, AWAY])
    with Outbox(server) as outbox:
        start = time.monotonic()
        for step in range(5):
            outbox.metrics({"loss": 1.0 / (step + 1)}, step, 1000.0 + step)
        assert time.monotonic() - start < 0.1
    assert server.got == [({"loss": 1.0 / (step + 1)}, step, 1000.0 + step) for step in range(5)]


def send(server: Server, *losses: float) -> None:
    with Outbox(server) as outbox:
        for step, loss in enumerate(losses):
            outbox.metrics({"loss": loss}, step, 0.0)


def test_a_server_that_stays_away_is_told_of_at_the_end() -> None:
    with pytest.raises(InputError, match=r"2 records are still to go; .*same command again"):
        send(Server([AWAY] * 1000), 1.0, 0.5)


def test_a_refusal_is_no_absence() -> None:
    with pytest.raises(MlflowException, match="deleted"):
        send(Server([REFUSED]), 1.0)


def interrupted(server: Server) -> None:
    with Outbox(server) as outbox:
        outbox.metrics({"loss": 1.0}, 0, 0.0)
        raise KeyboardInterrupt


def test_what_ends_the_block_is_not_hidden() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(Server([AWAY] * 1000))
