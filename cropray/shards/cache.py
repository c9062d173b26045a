"""A bounded folder of what was read from object storage, so that later epochs need no network.

Entries are byte ranges of shards (row groups), each a file with its checksum, published whole, so that
processes may share a folder. Where room is wanted, those go first that were not used for longest.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import xxhash

_CHECK_BYTES = 8


class RangeCache:
    """At most `max_bytes` in `folder`. Pickles to the same folder."""

    def __init__(self, folder: str, max_bytes: int) -> None:
        self._folder, self._max_bytes = Path(folder), max_bytes
        self._folder.mkdir(parents=True, exist_ok=True)
        self._evicting = threading.Lock()

    def __reduce__(self) -> tuple[type[RangeCache], tuple[str, int]]:
        return RangeCache, (str(self._folder), self._max_bytes)

    def read(self, key: str, fetch: Callable[[], pa.Buffer]) -> pa.Buffer:
        """What was kept under `key`, else what `fetch` gives; an entry that is damaged is fetched anew."""
        path = self._folder / f"{xxhash.xxh3_128_hexdigest(key.encode())}.range"
        with suppress(FileNotFoundError):
            kept = memoryview(path.read_bytes())
            if kept[:_CHECK_BYTES] == xxhash.xxh3_64_digest(kept[_CHECK_BYTES:]):
                os.utime(path)
                return pa.py_buffer(kept[_CHECK_BYTES:])
        data = fetch()
        if data.size + _CHECK_BYTES <= self._max_bytes:
            self._keep(path, data)
        return data

    def _keep(self, path: Path, data: pa.Buffer) -> None:
        with self._evicting:
            self._make_room(data.size + _CHECK_BYTES)
            temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
            try:
                with temporary.open("wb") as file:
                    file.write(xxhash.xxh3_64_digest(data))
                    file.write(data)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    def _make_room(self, nbytes: int) -> None:
        entries = []
        for path in self._folder.glob("*.range"):
            with suppress(FileNotFoundError):  # another process made room too
                about = path.stat()
                entries.append((about.st_mtime_ns, about.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total + nbytes <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size
