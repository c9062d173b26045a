"""What a run talks to: its storage, the MLflow server, and clocks that must agree."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from cropray.config import Config
from cropray.doctor.finding import Finding, bad, ok, warning
from cropray.doctor.machine import existing
from cropray.errors import InputError
from cropray.run import Run
from cropray.storage import Folder, within

# A signed request is refused by object storage when it is 15 minutes off, a token by Google after 5.
CLOCK_BAD_S, CLOCK_LOW_S = 60.0, 5.0
_ANSWER_S = 30.0  # a store's own client goes on trying for a quarter of an hour


@dataclass(frozen=True)
class Probe:
    """A small file that was written where the run will be, to be read back here and on the nodes."""

    folder: Folder
    name: str
    data: bytes
    clock_ahead_s: float  # of the storage, against this machine


def judge_clock(ahead_s: Mapping[str, float]) -> Finding:
    """Seconds by which other clocks are ahead of this one."""
    if not ahead_s:
        return ok("clock", f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, compared with no other")
    who, most = max(ahead_s.items(), key=lambda item: abs(item[1]))
    found = f"{abs(most):.1f} s {'behind' if most > 0 else 'ahead of'} {who}"
    if abs(most) > CLOCK_BAD_S:
        return bad("clock", found, "set the clock by NTP (timedatectl set-ntp true): tokens are refused")
    if abs(most) > CLOCK_LOW_S:
        return warning("clock", found, "set the clock by NTP (timedatectl set-ntp true)")
    return ok("clock", f"within {abs(most):.1f} s of {', '.join(sorted(ahead_s))}")


def clock_ahead(told: float, before: float, after: float, *, resolution_s: float = 0.0) -> float:
    """Seconds by which a clock that told the time between two readings of ours is surely ahead of it."""
    least, most = told - after, told + resolution_s - before
    return least if least > 0 else min(most, 0.0)


@contextmanager
def storage_probe(folder: Folder) -> Iterator[Probe]:
    """Write a file and remove it at the end of the block. Raises OSError and InputError.

    In the run folder, or where that is local and not there yet, in the nearest one above it.
    """
    place = Folder(str(existing(folder.local()))) if folder.is_local else folder
    name, data = f".cropray-doctor-{uuid.uuid4().hex}", os.urandom(1024)
    before = time.time()
    within(_ANSWER_S, lambda: place.write_bytes(name, data))
    after = time.time()
    try:
        written = place.filesystem.get_file_info(place.path(name)).mtime_ns
        # Stores keep whole seconds.
        ahead = 0.0 if written is None else clock_ahead(written / 1e9, before, after, resolution_s=1.0)
        yield Probe(place, name, data, ahead)
    finally:
        place.delete(name)


def judge_storage(probe: Probe, read: bytes, nodes_without: Sequence[str]) -> Finding:
    """`nodes_without` are those that did not read the same file."""
    where = f"wrote and read {probe.folder}"
    if read != probe.data:
        return bad(
            "storage", f"{probe.folder} gave other bytes than were written", "give another --run folder"
        )
    if nodes_without:
        return bad(
            "storage",
            f"{where} here, but not on {', '.join(nodes_without)}",
            "give a run folder that all nodes share: gs://…, s3://… (with the right to use it), or a mount",
        )
    return ok("storage", where)


def storage_failed(folder: Folder, error: OSError | InputError) -> Finding:
    said = " ".join(str(error).split())[:300]
    return bad("storage", f"cannot write or read {folder}: {said}", "mend it, or give another --run folder")


def tracking(config: Config, folder: Folder | None) -> Finding:
    """The MLflow of the settings is read, and a database is written to without a change.

    A database that is not there yet is not made.
    """
    from cropray.tracking.connection import shown, sqlite_file
    from cropray.tracking.runs import open_client, tracking_uri, try_writing

    uri = config.tracking.uri
    if not uri and folder is None:
        return ok("tracking", "SQLite in the run folder (tracking.uri is not set)")
    try:
        uri = uri or tracking_uri(Run(folder or Folder("."), config))
        database = sqlite_file(uri)
        if database is not None and not database.exists():
            return ok("tracking", f"SQLite, to be made at {database}")
        open_client(uri)
        written = try_writing(uri)
    except InputError as error:
        problem, _, remedy = str(error).partition("; ")
        return bad("tracking", problem, remedy or "start the server, or correct tracking.uri")
    what = "may be read and written" if written else "can be read; whether it can be written was not tried"
    return ok("tracking", f"{shown(uri)} {what}")
