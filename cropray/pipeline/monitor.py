"""What a person and the event log learn about a stage: progress, failures, and what only Ray knows."""

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
from cropray.errors import InputError, redacted
from cropray.pipeline.cluster_quota import ClusterQuota, quota_notes
from cropray.progress import is_verbose, progress, say
from cropray.run import Run
from cropray.storage import Folder

if TYPE_CHECKING:
    from cropray.pipeline.fan_out import Outcome

_WRITE_EVERY_S = 10.0
_PATIENCE_S = 30.0  # for the first process of a stage to start
_SHOWN = 5


@contextmanager
def event_log(folder: Folder, stage: str) -> Iterator[Callable[..., None]]:
    """A function that records attempts and times as JSON lines in `events/<stage>-<start>-<id>.jsonl`.

    Object storage cannot append, so the file is rewritten now and then, and at the end of the block.
    """
    name = f"events/{stage}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}.jsonl"
    lines, written = list[str](), time.monotonic()

    def record(**event: Any) -> None:
        nonlocal written
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        shown = {key: redacted(value) if isinstance(value, str) else value for key, value in event.items()}
        lines.append(json.dumps({"time": now, **shown}, ensure_ascii=False) + "\n")
        if time.monotonic() - written >= _WRITE_EVERY_S:
            folder.write_text(name, "".join(lines))
            written = time.monotonic()

    try:
        yield record
    finally:
        folder.write_text(name, "".join(lines))


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
    with closing(outcomes), event_log(run.folder, stage) as record, progress(stage, total) as bar:
        for done, outcome in enumerate(outcomes, start=1):
            tile = getattr(outcome.job, name)
            record(**{name: tile}, **details(outcome), error=outcome.error)
            if outcome.error:
                failures[tile] = outcome.error
            notes = [note(outcome), f"{len(failures)} failed" if failures else ""]
            if quota is not None:
                for attempt in quota.take_unanswered():
                    record(**asdict(attempt))
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
    first = f"{stage}: {len(failures)} of {total} tiles failed{stopped}:"
    last = "The other tiles are kept. Fix the cause and run the same command again."
    raise InputError("\n".join([first, *lines, last]))


class Losses(logging.Handler):
    """Why tasks of Ray Data failed. Only its log says so: it is read here and not shown.

    At most `patience` processes may die before the first one is at work.
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
        """Note why a process died. An exception raised here ends the dataset and reaches the driver."""
        from ray.exceptions import RayTaskError

        error = record.exc_info[1] if record.exc_info else None
        if error is None or (isinstance(error, InputError) and not isinstance(error, RayTaskError)):
            return  # the second is what was raised here: Ray Data logs it, too
        self.reason = str(error).strip().splitlines()[-1].rstrip(".")
        self._patience -= not self.begun.is_set()
        if isinstance(error, RayTaskError) or self._patience < 0:
            raise InputError(cannot_start(self.reason)) from error


def cannot_start(reason: str) -> str:
    return (
        f"a process cannot start: {reason}. Every node must have cropray and its packages, and must see the "
        "run folder. Give --run a folder that all nodes share, or a URI."
    )


@contextmanager
def report_missing_resources(
    losses: Losses, resources: Mapping[str, float], config: RayConfig
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
            said, wait_s = missing, _PATIENCE_S

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
