"""What a person and the event log learn of a stage: progress, failures, and what only Ray knows."""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cropray.cluster import missing_resources
from cropray.config import RayConfig
from cropray.errors import InputError
from cropray.pipeline.cluster_quota import ClusterQuota, quota_notes
from cropray.progress import is_verbose, progress, say
from cropray.run import Run
from cropray.storage import Folder

if TYPE_CHECKING:
    from cropray.pipeline.fan_out import Outcome

_WRITE_EVERY_S = 10.0
_SHOWN = 5


class EventLog:
    """Attempts and times, one JSON object a line, in `events/<stage>-<start>-<id>.jsonl`; never part of data.

    Object storage cannot append, so the file is rewritten now and then, and at the end of the block.
    """

    def __init__(self, folder: Folder, stage: str) -> None:
        start = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self._folder, self._name = folder, f"events/{stage}-{start}-{uuid.uuid4().hex[:6]}.jsonl"
        self._lines: list[str] = []
        self._written = time.monotonic()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    def record(self, **event: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._lines.append(json.dumps({"time": now, **event}, ensure_ascii=False) + "\n")
        if time.monotonic() - self._written >= _WRITE_EVERY_S:
            self._write()

    def _write(self) -> None:
        self._folder.write_text(self._name, "".join(self._lines))
        self._written = time.monotonic()


def follow(
    stage: str,
    outcomes: Generator[Outcome[Any, Any], None, None],
    total: int,
    run: Run,
    quota: ClusterQuota | None,
    *,
    name: str,
    details: Callable[[Outcome[Any, Any]], Mapping[str, Any]] = lambda _: {},
    note: Callable[[Outcome[Any, Any]], str] = lambda _: "",
) -> None:
    """Show and log the outcomes of `total` tiles until `ray.max_failures` have failed.

    `name` is the attribute that names a tile, and its key in the log. `details` go into the log, too, and
    `note` beside the progress. Raises InputError if tiles failed.
    """
    failures: dict[str, str] = {}
    started, done = time.monotonic(), 0
    with closing(outcomes), EventLog(run.folder, stage) as events, progress(stage, total) as bar:
        for done, outcome in enumerate(outcomes, start=1):
            tile = getattr(outcome.job, name)
            events.record(**{name: tile}, **details(outcome), error=outcome.error)
            if outcome.error:
                failures[tile] = outcome.error
            notes = [note(outcome), f"{len(failures)} failed" if failures else ""]
            if quota is not None:
                for attempt in quota.take_unanswered():
                    events.record(**asdict(attempt))
                minutes, seconds = divmod(round((time.monotonic() - started) / done * (total - done)), 60)
                left = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"
                notes += [*quota_notes(quota.status()), left]
            bar.advance(note=", ".join(filter(None, notes)))
            if len(failures) >= run.config.ray.max_failures:
                break
    check_failures(stage, failures, total, total - done)


def check_failures(stage: str, failures: Mapping[str, str], total: int, untried: int = 0) -> None:
    """Raise InputError if any of `total` tiles failed; `failures` are errors by tile."""
    if not failures:
        return
    tiles_by_error: dict[str, list[str]] = {}
    for tile, error in failures.items():
        tiles_by_error.setdefault(error, []).append(tile)
    most = sorted(tiles_by_error.items(), key=lambda item: (-len(item[1]), item[0]))
    lines = [f"  {len(tiles)} x {error} (such as {tiles[0]})" for error, tiles in most[:_SHOWN]]
    if len(most) > _SHOWN:
        lines.append(f"  … and {len(most) - _SHOWN} other errors")
    stopped = f", and {untried} were not tried (ray.max_failures)" if untried else ""
    raise InputError(
        "\n".join(
            [
                f"{stage}: {len(failures)} of {total} tiles failed{stopped}:",
                *lines,
                "The other tiles are kept. Fix the cause and run the same command again.",
            ]
        )
    )


class Losses(logging.Handler):
    """Why tasks of Ray Data failed. Only its log tells; it is read here and not shown.

    Before the first process is at work, `patience` of them may die.
    """

    def __init__(self, stage: str, patience: int) -> None:
        super().__init__(logging.ERROR)
        self.stage, self.begun, self.reason, self._patience = stage, threading.Event(), "", patience

    @contextmanager
    def heard(self) -> Iterator[None]:
        logger = logging.getLogger("ray.data")
        before = list(logger.handlers), logger.level
        if not is_verbose():
            logger.handlers, logger.level = [], logging.ERROR
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.handlers, logger.level = before

    def emit(self, record: logging.LogRecord) -> None:
        """Note why a process died. What is raised here ends the dataset and reaches the driver."""
        from ray.exceptions import RayTaskError

        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return
        self.reason = str(error).strip().splitlines()[-1]
        self._patience -= not self.begun.is_set()
        if isinstance(error, RayTaskError) or self._patience < 0:
            raise InputError(cannot_start(self.reason)) from error


def cannot_start(reason: str) -> str:
    return (
        f"a process cannot start: {reason}; every node must have cropray and its packages and must see the "
        "run folder: give --run a folder that all nodes share, or a URI"
    )


@contextmanager
def report_missing_resources(
    losses: Losses, resources: Mapping[str, float], config: RayConfig, patience_s: float
) -> Iterator[None]:
    """During the block, say which `resources` no node has, or that no process has started."""
    ended = threading.Event()

    def watch() -> None:
        said, wait_s = "", 0.0
        while not ended.wait(wait_s):
            missing = missing_resources(resources, config)
            if not missing and wait_s and not losses.begun.is_set():
                missing = f"no process has started in {wait_s:g} s; other work may hold the resources"
            if missing and missing != said:
                say(f"{losses.stage}: waiting: {missing}")
            said, wait_s = missing, patience_s

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
