"""Tiles that fail: which exceptions become rows instead of ending a stage, and what the user is told."""

from __future__ import annotations

from collections.abc import Mapping

from cropray.storage import explained
from cropray.types import InputError

TILE_FAILURES = (ValueError, OSError, RuntimeError, ArithmeticError, LookupError, MemoryError)
"""What a tile can fail of: input, storage, network, a source's data. Others are faults of the program
and end the stage at once."""

_SHOWN = 5


def told(failure: Exception) -> str:
    """A failure in the words of its row: what a user gave, a file system or a service says itself."""
    if isinstance(failure, InputError) or (isinstance(failure, OSError) and failure.errno is None):
        return str(failure)
    return explained(failure) if isinstance(failure, OSError) else repr(failure)


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
