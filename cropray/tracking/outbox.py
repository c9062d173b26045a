"""Metrics on their way to a server that may be away for a while: none is lost, and nobody waits."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType

from cropray.errors import InputError
from cropray.progress import say
from cropray.tracking.runs import Tracker

_RETRY_S = 3.0
_PATIENCE_S = 120.0
_HASTE_S = 5.0  # where something else has ended the block
# What a server answers that is there, but not in order.
_PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


class Outbox:
    """Sends metrics in their order from a thread of its own, again and again until they arrive.

    Leaving the block waits for them. Raises InputError where they do not arrive for minutes, and
    MlflowException where the server refuses them.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._letters: deque[tuple[Mapping[str, float], int, float]] = deque()
        self._change = threading.Condition()
        self._closing = self._away = False
        self._refused: Exception | None = None
        self._thread = threading.Thread(target=self._send_all, name="mlflow-outbox", daemon=True)
        self._thread.start()

    def metrics(self, metrics: Mapping[str, float], step: int, when_s: float) -> None:
        """Leave metrics of a step and time (seconds since 1970) to be sent."""
        with self._change:
            if self._refused is not None:
                raise self._refused
            self._letters.append((metrics, step, when_s))
            self._change.notify_all()

    def __enter__(self) -> Outbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        with self._change:
            self._closing = True
            self._change.notify_all()
            if self._away and self._letters:
                say(f"waits for the MLflow server, to which {len(self._letters)} records are still to go")
            patience_s = _PATIENCE_S if kind is None else _HASTE_S
            self._change.wait_for(lambda: not self._letters or self._refused, timeout=patience_s)
        if kind is not None:
            return  # what ended the block says more than this
        if self._refused is not None:
            raise self._refused
        if self._letters:
            raise InputError(
                f"the MLflow server did not answer for {_PATIENCE_S:.0f} s, and {len(self._letters)} records "
                "are still to go; when it is back, run the same command again: they are sent then"
            )

    def _send_all(self) -> None:
        from mlflow.exceptions import MlflowException

        while True:
            with self._change:
                self._change.wait_for(lambda: self._letters or self._closing)
                if not self._letters:
                    return
                letter = self._letters[0]
            try:
                self._tracker.metrics(letter[0], letter[1], when_s=letter[2])
            except MlflowException as error:
                if not _passes(error):
                    with self._change:
                        self._refused = error
                        self._change.notify_all()
                    return
                if not self._away:
                    say("the MLflow server does not answer; the training goes on, its record is sent later")
                self._away = True
                time.sleep(_RETRY_S)
                continue
            self._away = False
            with self._change:
                self._letters.popleft()
                self._change.notify_all()


def _passes(error: Exception) -> bool:
    """Whether a server was away, rather than that it refused."""
    from mlflow.exceptions import RestException

    return not isinstance(error, RestException) or error.error_code in _PASSING
