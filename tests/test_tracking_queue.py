"""Metrics reach a server that is away for a while, in order, and nobody waits for it."""

import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from mlflow.exceptions import MlflowException, RestException

from cropray.errors import InputError
from cropray.tracking.runs import metric_queue

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


@pytest.fixture
def server() -> Server:
    return Server()


def send(server: Server, *losses: float) -> None:
    with metric_queue(server, retry_s=0.1, patience_s=1.0) as put:
        for step, loss in enumerate(losses):
            put({"loss": loss}, step, 0.0)


def test_metrics_arrive_in_order_and_with_their_time_after_an_outage(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.errors = [AWAY, BUSY, AWAY]
    with metric_queue(server, retry_s=0.1) as put:
        start = time.monotonic()
        for step in range(5):
            put({"loss": 1.0 / (step + 1)}, step, 1000.0 + step)
        assert time.monotonic() - start < 0.1
    assert server.got == [({"loss": 1.0 / (step + 1)}, step, 1000.0 + step) for step in range(5)]
    assert capsys.readouterr().err.count("does not answer") == 1


def test_a_server_that_stays_away_is_reported_at_the_end(server: Server) -> None:
    server.errors = [AWAY] * 1000
    with pytest.raises(InputError, match=r"2 records are left to send.*same command again"):
        send(server, 1.0, 0.5)


def test_a_refusal_is_not_repeated(server: Server) -> None:
    server.errors = [REFUSED]
    with pytest.raises(MlflowException, match="deleted"):
        send(server, 1.0)
    assert server.got == []


def test_a_refusal_is_raised_with_the_next_metrics(server: Server) -> None:
    server.errors = [REFUSED]

    def send_forever() -> None:
        with metric_queue(server) as put:
            while True:
                put({"loss": 1.0}, 0, 0.0)

    with pytest.raises(MlflowException, match="deleted"):
        send_forever()


def test_the_error_that_ends_the_block_is_not_hidden(server: Server) -> None:
    def interrupt() -> None:
        with metric_queue(server) as put:
            put({"loss": 1.0}, 0, 0.0)
            raise KeyboardInterrupt

    server.errors = [REFUSED]
    with pytest.raises(KeyboardInterrupt):
        interrupt()


SILENT = """
import sys
from mlflow import MlflowClient
from cropray.tracking.runs import Tracker, metric_queue
with metric_queue(Tracker(MlflowClient(sys.argv[1], sys.argv[1]), "0")) as put:
    put({"loss": 1.0}, 0, 0.0)
    raise KeyboardInterrupt
"""


def test_a_server_that_accepts_and_never_answers_does_not_hold_an_interrupted_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-c", SILENT, uri]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            silent.settimeout(60)
            connection, _ = silent.accept()
            with connection:
                assert b"log-batch" in connection.recv(4096)
                process.wait(timeout=60)  # MLflow's own patience is four times two minutes
            assert process.stderr is not None
            assert "KeyboardInterrupt" in process.stderr.read()
