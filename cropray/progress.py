"""What a person sees while a stage runs, on standard error: lines, and a bar on a terminal.

Lines are records of the logger `cropray`, so a Python program can silence or redirect them as usual.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cropray.errors import redacted

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_LINE_EVERY_S = 10.0


class _StandardError(logging.Handler):
    """Plain lines on the standard error of the moment: it may be redirected after the import."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{record.getMessage()}\n")
        sys.stderr.flush()


_LOG = logging.getLogger("cropray")
_LOG.addHandler(_StandardError())
_LOG.setLevel(logging.INFO)
_LOG.propagate = False


def say(text: str) -> None:
    """One line for a person. Results go to standard output instead."""
    _LOG.info("%s", redacted(text))


def be_quiet() -> None:
    """Show no lines and no bars: results and errors only."""
    _LOG.setLevel(logging.ERROR)


def be_verbose() -> None:
    """Show the log lines of libraries too, Ray's among them."""
    _LOG.setLevel(logging.DEBUG)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(_without_secrets)


def _without_secrets(record: logging.LogRecord) -> bool:
    record.msg, record.args = redacted(record.getMessage()), None
    return True


def is_verbose() -> bool:
    return _LOG.isEnabledFor(logging.DEBUG)


@dataclass
class Progress:
    """Counts finished steps of one stage; `note` is shown beside the count."""

    label: str
    total: int
    _done: int = 0
    _bar: Bar | None = None
    _last_line: float = field(default_factory=time.monotonic)

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._done += steps
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=steps, note=note)
        elif time.monotonic() - self._last_line >= _LINE_EVERY_S or self._done == self.total:
            self._last_line = time.monotonic()
            say(f"{self.label}: {self._done}/{self.total} {note}".rstrip())


@contextmanager
def progress(label: str, total: int) -> Iterator[Progress]:
    """A display of `total` steps, moved by `advance`: a bar on a terminal, else a line every 10 s."""
    if not sys.stderr.isatty() or not _LOG.isEnabledFor(logging.INFO):
        yield Progress(label, total)
        return
    from rich import progress as rich
    from rich.console import Console

    columns = (
        *(rich.TextColumn("{task.description:<10}"), rich.BarColumn(bar_width=30), rich.MofNCompleteColumn()),
        *(rich.TimeElapsedColumn(), rich.TimeRemainingColumn(), rich.TextColumn("{task.fields[note]}")),
    )
    with rich.Progress(*columns, console=Console(stderr=True)) as bar:
        bar.add_task(label, total=total, note="")
        yield Progress(label, total, _bar=bar)
