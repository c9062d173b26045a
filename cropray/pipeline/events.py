"""Attempts and times of a stage, one JSON object a line; never part of the data."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

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
