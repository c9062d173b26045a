"""Progress for a person: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_LINE_EVERY_S = 10.0


@dataclass
class Progress:
    """Counts finished steps of one stage; `note` stands beside the count."""

    label: str
    total: int
    _done: int = 0
    _bar: object = None
    _last_line: float = field(default_factory=time.monotonic)

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._done += steps
        if self._bar is not None:
            from rich.progress import Progress as Bar

            assert isinstance(self._bar, Bar)
            self._bar.update(self._bar.task_ids[0], advance=steps, note=note)
        elif time.monotonic() - self._last_line >= _LINE_EVERY_S or self._done == self.total:
            self._last_line = time.monotonic()
            say(f"{self.label}: {self._done}/{self.total} {note}".rstrip())


def say(text: str) -> None:
    """One plain line for a person, on standard error; results go to standard output."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextmanager
def progress(label: str, total: int) -> Iterator[Progress]:
    """A progress display of `total` steps; `advance` moves it."""
    if not sys.stderr.isatty():
        yield Progress(label, total)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        bar.add_task(label, total=total, note="")
        yield Progress(label, total, _bar=bar)
