"""One driver at a time for a training: a lock that ends with its owner, however that ends.

On a file system it is the kernel's (flock), gone in the moment in which the process is. Object storage
has none: there the owner leaves a file and writes it anew while it lives, and one that has not been
written for a minute counts as left behind. Two that begin within the same second see each other's file.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from cropray.errors import InputError
from cropray.storage import Folder

_EXPIRES_S = 60.0
_RENEWED_S = 15.0
_SETTLES_S = 1.0


@contextmanager
def held(folder: Folder, name: str, what: str) -> Iterator[None]:
    """Hold the lock `name` in a folder within the block; `what` it is for stands in messages.

    Raises InputError where another process holds it.
    """
    with _flock(folder, name, what) if folder.is_local else _lease(folder, name, what):
        yield


@contextmanager
def _flock(folder: Folder, name: str, what: str) -> Iterator[None]:
    path = folder.local(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise _taken(what, file.read().strip()) from error
        file.truncate(0)
        file.write(_me())
        file.flush()
        yield  # the lock goes with the open file


@contextmanager
def _lease(folder: Folder, name: str, what: str) -> Iterator[None]:
    mine = uuid.uuid4().hex

    def write() -> None:
        folder.write_text(name, json.dumps({"token": mine, "owner": _me(), "at": time.time()}))

    def other() -> str:
        """Whose lease there is, unless it is this one or has expired."""
        if not folder.exists(name):
            return ""
        lease = json.loads(folder.read_text(name))
        fresh = time.time() - lease["at"] < _EXPIRES_S
        return str(lease["owner"]) if fresh and lease["token"] != mine else ""

    def take() -> None:
        if owner := other():
            raise _taken(what, f"{owner}; if that is dead, its claim ends {_EXPIRES_S:.0f} s after it")

    take()
    write()
    time.sleep(_SETTLES_S)
    take()  # whoever wrote last has it
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(_RENEWED_S):
            write()

    renewing = threading.Thread(target=renew, name="lease", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        folder.delete(name)


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _taken(what: str, owner: str) -> InputError:
    return InputError(
        f"{what} is under way already, by {owner or 'another process'}: wait for it to end, or use another "
        "--run folder"
    )
