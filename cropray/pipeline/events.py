"""Attempts and times of a stage, one JSON object a line; never part of the data."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cropray.errors import InputError
from cropray.storage import Folder

_WRITE_EVERY_S = 10.0


@dataclass
class EventLog:
    """The log of one attempt at a stage. Object storage cannot append: the file is written anew."""

    folder: Folder
    name: str
    _lines: list[str] = field(default_factory=list)
    _written: float = field(default_factory=time.monotonic)

    def record(self, **event: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._lines.append(json.dumps({"time": now, **event}, ensure_ascii=False) + "\n")
        if time.monotonic() - self._written >= _WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        self.folder.write_text(self.name, "".join(self._lines))
        self._written = time.monotonic()


@contextmanager
def event_log(folder: Folder, stage: str) -> Iterator[EventLog]:
    """A log `events/<stage>-<start>-<id>.jsonl`, written as it goes and at the end."""
    start = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    log = EventLog(folder, f"events/{stage}-{start}-{uuid.uuid4().hex[:6]}.jsonl")
    try:
        yield log
    finally:
        log.write()


TILE_FAILURES = (ValueError, OSError, RuntimeError, ArithmeticError, LookupError, MemoryError)
"""What a tile can fail of: input, storage, network, a source's data. Others are faults of the program
and end the stage at once."""

_SHOWN = 5


def refuse_failures(stage: str, failures: Mapping[str, str], total: int, untried: int = 0) -> None:
    """Raises InputError where tiles failed; `failures` are errors by tile, of `total` tiles.

    `untried` tiles were given up after too many failures.
    """
    if not failures:
        return
    tiles_by_error: dict[str, list[str]] = {}
    for tile, error in failures.items():
        tiles_by_error.setdefault(error, []).append(tile)
    most = sorted(tiles_by_error.items(), key=lambda item: (-len(item[1]), item[0]))
    lines = [f"  {len(tiles)} x {error} (as {tiles[0]})" for error, tiles in most[:_SHOWN]]
    more = [f"  … and {len(most) - _SHOWN} other errors"] if len(most) > _SHOWN else []
    stopped = f", and it stopped before {untried} others (ray.max_failures)" if untried else ""
    raise InputError(
        f"{stage}: {len(failures)} of {total} tiles failed{stopped}:\n"
        + "\n".join(lines + more)
        + "\nthe others are kept; mend the cause and run the same command again"
    )
