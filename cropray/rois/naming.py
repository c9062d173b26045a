"""Nearest right names for error messages, and identities that are the same on every machine."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

import xxhash


def nearest(wrong: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest right name, else all of them."""
    names = sorted(set(known))
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names) or 'none'}"


def identity(label: str, parts: Iterable[bytes]) -> str:
    """`label` as a plain word, and a hash of it and of `parts`: fit for names of files.

    Every part is hashed by itself first, so that moving a boundary between parts changes the whole.
    """
    whole = xxhash.xxh3_64(label.encode())
    for part in parts:
        whole.update(xxhash.xxh3_64_digest(part))
    word = re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-").lower()
    return f"{word}-{whole.hexdigest()}" if word else whole.hexdigest()
