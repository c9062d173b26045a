"""Errors that a person can mend, and what a message says of them. Standard library only."""

from __future__ import annotations

import difflib
import errno
import shutil
from collections.abc import Iterable
from pathlib import Path

_TO_DO = {
    errno.ENOSPC: "make room there, and run the same command again: what is finished is kept",
    errno.EDQUOT: "make room there, and run the same command again: what is finished is kept",
    errno.EACCES: "get the permission, or give another place",
    errno.EPERM: "get the permission, or give another place",
    errno.EROFS: "give a place that may be written",
    errno.ENOTDIR: "a file is where a folder is wanted: give another --run folder",
    errno.EEXIST: "a file is where a folder is wanted: give another --run folder",
    errno.EISDIR: "a folder is where a file is wanted: give another name",
}


class InputError(ValueError):
    """What a user gave cannot be used: says what was given, where, what was wanted, what to do."""


def format_os_error(error: OSError) -> str:
    """What a user can do about a failed read or write, in one message that names the file."""
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if error.filename and is_full(error):
        what += f" ({free_space(error.filename)})"
    return f"{what}; {_TO_DO.get(error.errno or 0, 'mend the cause and run the same command again')}"


def is_full(error: OSError) -> bool:
    """Whether a disk, or a share of one, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def free_space(path: str | Path) -> str:
    """How much is free on the disk where a file is, or was to be."""
    there = next(place for place in Path(path).absolute().parents if place.exists())
    return f"{shutil.disk_usage(there).free / 1e6:.1f} MB free in {there}"


def is_lasting(error: OSError) -> bool:
    """Whether trying again cannot help until somebody has done something about it."""
    return error.errno in _TO_DO


def format_error(failure: Exception) -> str:
    """A failure in the words of its row: what a user gave, a file system or a service says itself."""
    if isinstance(failure, InputError) or (isinstance(failure, OSError) and failure.errno is None):
        return str(failure)
    return format_os_error(failure) if isinstance(failure, OSError) else repr(failure)


def nearest(wrong: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest right name, else all of them."""
    names = sorted(set(known))
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names) or 'none'}"
