"""One owner at a time for a training or a sweep in a run folder.

On a file system the kernel holds the lock (flock, by `filelock`) and frees it when its process ends. FUSE, as
of gcsfuse, keeps it on one machine, and a message says so. On S3
and Google Cloud Storage it is an object that only conditional writes change (`obstore`). Its owner renews it;
another process may take it when it has not been renewed for a minute, by the store's clock. So an owner
renews the lock right before it begins a state and before the state counts (`RunLock.check`), and stops if it
finds another token. Two owners write together only if one stalls for a minute between such a check and its
write. Elsewhere there is no lock, and a message says so.
"""

from __future__ import annotations

import configparser
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from cropray.errors import InputError
from cropray.progress import say
from cropray.storage import Folder, mounted_as

LEASE_S = 60.0
LOCKS_OF_ONE_MACHINE = ("fuse.", "9p", "cifs", "smb")
"""Types of mounts that tell no other machine of a lock. NFS passes flock on to its server."""

_CLOCK_S = 1.0  # stores tell times in whole seconds
_RETRY = {"max_retries": 4, "retry_timeout": timedelta(seconds=20)}  # obstore's own: 3 minutes


class _Found(NamedTuple):
    body: dict[str, Any]
    version: dict[str, Any]  # for a conditional write
    modified: datetime  # by the store's clock


@dataclass(frozen=True)
class RunLock:
    """A lock that is held; its owner may pass it to other processes. Only one on a store has a `token`."""

    folder: Folder
    name: str
    what: str
    token: str = ""
    lease_s: float = LEASE_S

    def check(self) -> None:
        """Renew the lock for `lease_s` seconds. Raises InputError if another process has taken it."""
        while self.token:
            found = self._read()
            if found is None or found.body["token"] != self.token:
                owner = found.body["owner"] if found else "somebody who deleted it"
                raise InputError(
                    f"{self.what} has lost its lock {self.folder}/{self.name} to {owner}: it was not renewed "
                    f"for {self.lease_s:g} s. Wait for the other process to end, and run this command again"
                )
            if self._write(self.token, found.version):
                return  # else another process was quicker, perhaps of the same owner

    def take(self) -> bool:
        """Whether it was free or expired, and is held now. Raises InputError if another process holds it."""
        if self._write(self.token, "create"):
            return True
        found = self._read()
        if found is None:
            return False  # it was deleted just now
        owner = found.body["token"]
        if owner == self.token:
            return True  # the store's answer was lost, and obstore tried again
        left_s = found.body["lease_s"] + _CLOCK_S - (self._now() - found.modified).total_seconds()
        if owner and left_s > 0:
            dead = f"if it is dead, its lock expires in {left_s:.0f} s"
            raise _taken(self.what, f"{found.body['owner']} ({dead})")
        return self._write(self.token, found.version)

    def release(self) -> None:
        """Let others have it at once, unless it is lost."""
        found = self._read()
        if found is not None and found.body["token"] == self.token:
            self._write("", found.version)

    def _read(self) -> _Found | None:
        import obstore

        try:
            answer = obstore.get(_store(self.folder), self.name)
        except FileNotFoundError:
            return None
        meta = answer.meta
        version = {key: value for key in ("e_tag", "version") if (value := meta.get(key))}
        return _Found(json.loads(bytes(answer.bytes())), version, meta["last_modified"])

    def _write(self, token: str, mode: Any) -> bool:
        """Write the lock; False if it is not as `mode` (`create`, or a version) wants it."""
        import obstore
        from obstore import exceptions as errors

        # S3 knows versions by a checksum of the content: no two writes may be the same.
        body = {"token": token, "owner": _process(), "lease_s": self.lease_s, "write": uuid.uuid4().hex}
        try:
            obstore.put(_store(self.folder), self.name, json.dumps(body).encode(), mode=mode)
        except (FileNotFoundError, errors.AlreadyExistsError, errors.PreconditionError):
            return False
        return True

    def _now(self) -> datetime:
        """The time by the store's clock: that of a file just written."""
        import obstore

        obstore.put(_store(self.folder), f"{self.name}.clock", b"")
        return obstore.head(_store(self.folder), f"{self.name}.clock")["last_modified"]


@contextmanager
def run_lock(folder: Folder, name: str, what: str, *, lease_s: float = LEASE_S) -> Iterator[RunLock]:
    """Hold the lock `name` in a folder within the block; `what` is locked, in the words of a message.

    Raises InputError, with process and host, if another process holds it.
    """
    if folder.is_local:
        kind = mounted_as(folder.local())
        if kind.startswith(LOCKS_OF_ONE_MACHINE):
            say(_no_lock(what, folder, f"{kind} keeps the locks of one machine from the others"))
        with _file_lock(folder, name, what) as lock:
            yield lock
        return
    import obstore.exceptions as errors

    lock = RunLock(folder, name, what, uuid.uuid4().hex, lease_s)
    refused = (errors.NotSupportedError, errors.PermissionDeniedError, errors.UnauthenticatedError)
    try:
        while not lock.take():
            pass  # another process was quicker, and may have it now
    except (errors.GenericError, *refused) as error:
        say(_no_lock(what, folder, str(error).partition("\n")[0][:200]))
        yield RunLock(folder, name, what)
        return
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(lock, ended), name="run-lock", daemon=True)
    renewing.start()
    try:
        yield lock
    finally:
        ended.set()
        renewing.join()
        lock.release()


@contextmanager
def _file_lock(folder: Folder, name: str, what: str) -> Iterator[RunLock]:
    from filelock import FileLock, Timeout

    path = folder.local(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise _taken(what, path.read_text() or "another process") from None
    try:
        path.write_text(_process())
        yield RunLock(folder, name, what)
    finally:
        lock.release()


def _renew(lock: RunLock, ended: threading.Event) -> None:
    import obstore.exceptions as errors

    while not ended.wait(lock.lease_s / 4):
        try:
            lock.check()
        except InputError:
            return  # the next check before a write says so
        except errors.BaseError:
            continue  # the store is away, perhaps not for long


def _store(folder: Folder) -> Any:
    """The store of a folder, with the credentials and the endpoint that Arrow uses there."""
    import obstore.store
    from obstore.exceptions import NotSupportedError

    parts = urlsplit(folder.uri)
    if parts.scheme not in ("s3", "gs", "gcs") or parts.query or "@" in parts.netloc:
        raise NotSupportedError(f"there are none on {parts.scheme}:// or with options in the URI")
    options: dict[str, Any] = {"retry_config": _RETRY}
    if parts.scheme == "s3":
        options |= _aws_configured()
        if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
            options["endpoint"] = endpoint
            options["client_options"] = {"allow_http": endpoint.startswith("http:")}
    return obstore.store.from_url(folder.uri.replace("gcs://", "gs://", 1), **options)


def _aws_configured() -> dict[str, Any]:
    """The keys that `aws configure` left in a file, which obstore does not read; empty if others are set."""
    profiles = configparser.ConfigParser()
    if "AWS_ACCESS_KEY_ID" not in os.environ:
        profiles.read(Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser())
    profile = os.environ.get("AWS_PROFILE", "default")
    given = profiles[profile] if profiles.has_section(profile) else {}
    names = ("access_key_id", "secret_access_key", "session_token")
    return {name: given[f"aws_{name}"] for name in names if f"aws_{name}" in given}


def _no_lock(what: str, folder: Folder, reason: str) -> str:
    return (
        f"{what} has no lock on {folder} ({reason}). Make sure that no other process runs it: two would "
        "overwrite each other's files"
    )


def _process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _taken(what: str, owner: str) -> InputError:
    return InputError(
        f"{what} is running already: {owner} has the lock; wait for it to end, stop it, or use another --run "
        "folder"
    )
