"""Folders by path or URI (file, s3, gs or any fsspec scheme). A reader never sees half a file.

On a file system a new file is written under a temporary name and renamed. On object storage it is one
upload, which is tried again if it fails.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from cropray.errors import InputError, check_no_password

T = TypeVar("T")

# Arrow repeats a request that was answered with 503, except the one that completes an upload.
_UPLOAD_WAITS_S = (0.5, 1.0, 2.0, 4.0)
_ARROW_SCHEMES = ("file", "s3", "gs", "gcs")

# The clients of the stores give up after two minutes (S3) or a quarter of an hour (Google) by themselves.
_ANSWER_S = 30.0
_GOOGLE_RETRY_S = 10
_GOOGLE_CHECKS = (
    "Check the bucket, the network and the credentials: run gcloud auth application-default login, set "
    "GOOGLE_APPLICATION_CREDENTIALS=KEY.json, or use a service account on a machine of Google's."
)
_STORE_CHECKS = {
    "s3": "Check the bucket, the network and the credentials: set AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, run aws configure, or use a role on a machine of Amazon's. Set "
    "AWS_ENDPOINT_URL for another provider's S3.",
    "gs": _GOOGLE_CHECKS,
    "gcs": _GOOGLE_CHECKS,
}
_answered: set[str] = set()  # stores that have answered this process


@dataclass(frozen=True)
class Folder:
    """A folder by path or URI. Names below it are relative, with forward slashes."""

    uri: str

    def __post_init__(self) -> None:
        check_no_password(self.uri)
        if "://" in self.uri and set(self.uri) & {"?", "#"}:
            raise InputError(
                f"{self.uri} has a query or a fragment, but names of files are added to the URI of a folder. "
                "Leave it out and set the variables of the service, such as AWS_ENDPOINT_URL and AWS_REGION."
            )
        # Relative paths become absolute: Ray workers run in another directory.
        if "://" not in self.uri:
            object.__setattr__(self, "uri", str(Path(self.uri).expanduser().absolute()))

    def __str__(self) -> str:
        return self.uri

    def __reduce__(self) -> tuple[type[Folder], tuple[str]]:
        return Folder, (self.uri,)  # every process opens the file system itself

    @property
    def is_local(self) -> bool:
        return _scheme(self.uri) in ("", "file")

    @cached_property
    def _resolved(self) -> tuple[pafs.FileSystem, str]:
        return resolve(self.uri)

    @property
    def filesystem(self) -> pafs.FileSystem:
        return self._resolved[0]

    def path(self, name: str = "") -> str:
        """The path of `name` on `filesystem`. Raises InputError if it lies outside the folder."""
        if ".." in name.split("/"):
            raise InputError(f"{name!r} is not in {self.uri}. Give a name without '..'.")
        return f"{self._resolved[1].rstrip('/')}/{name}" if name else self._resolved[1]

    def child(self, name: str) -> Folder:
        self.path(name)
        return Folder(f"{self.uri.rstrip('/')}/{name}")

    def local(self, name: str = "") -> Path:
        """The local path of `name`. Raises InputError on object storage."""
        if not self.is_local:
            raise InputError(f"{self.uri} is not on a local file system. Give the path of a local folder.")
        return Path(self.path(name))

    def exists(self, name: str = "") -> bool:
        return bool(self.filesystem.get_file_info(self.path(name)).type != pafs.FileType.NotFound)

    def names(self, suffix: str = "") -> list[str]:
        """Sorted names of all files in and below the folder that end in `suffix`. Empty if it is absent."""
        selector = pafs.FileSelector(self.path(), allow_not_found=True, recursive=True)
        root = self.path().rstrip("/") + "/"
        found = [
            info.path.removeprefix(root)
            for info in self.filesystem.get_file_info(selector)
            if info.type == pafs.FileType.File and info.path.endswith(suffix)
        ]
        return sorted(name for name in found if not name.rsplit("/", 1)[-1].startswith(".tmp-"))

    def read_bytes(self, name: str) -> bytes:
        """Raises InputError if the file does not exist."""
        try:
            with self.filesystem.open_input_stream(self.path(name)) as stream:
                return bytes(stream.read())
        except FileNotFoundError as error:
            raise InputError(f"there is no {name} in {self.uri}") from error

    def read_text(self, name: str) -> str:
        return self.read_bytes(name).decode()

    def write_bytes(self, name: str, data: bytes | pa.Buffer) -> None:
        """Publish a file whole. It replaces an older file of that name."""
        if not self.is_local:
            self._upload(name, data)
            return
        with _replacing(self.local(name)) as temporary:
            temporary.write_bytes(data)

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def publish(self, local_file: Path, name: str) -> None:
        """Copy a finished local file here, whole."""
        if not self.is_local:
            # One write only: closing a stream after half of the writes would publish half of the file.
            # Arrow's copy_files is no alternative, since it can end without an error if an upload fails.
            with pa.memory_map(str(local_file)) as file:
                self._upload(name, file.read_buffer())
            return
        with _replacing(self.local(name)) as temporary:
            shutil.copyfile(local_file, temporary)

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """A local path for a new file, published at the end of the block. An error publishes nothing."""
        if self.is_local:
            with _replacing(self.local(name)) as temporary:
                yield temporary
            return
        with tempfile.TemporaryDirectory(prefix="cropray-") as directory:
            path = Path(directory) / name.rsplit("/", 1)[-1]
            yield path
            self.publish(path, name)

    def delete(self, name: str) -> None:
        self.filesystem.delete_file(self.path(name))

    def delete_folder(self, name: str) -> None:
        """Delete a folder with its contents if it exists."""
        if self.exists(name):
            self.filesystem.delete_dir(self.path(name))

    def _upload(self, name: str, data: bytes | pa.Buffer) -> None:
        for wait_s in (*_UPLOAD_WAITS_S, None):
            try:
                with self.filesystem.open_output_stream(self.path(name)) as stream:
                    stream.write(data)
                return
            except OSError:  # only Arrow's text tells the kinds of failure apart
                if wait_s is None:
                    raise
                time.sleep(wait_s)


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A temporary path that is renamed to `target` at the end of the block and removed after an error.

    Raises OSError that names `target`: a full disk's own error names no file.
    """
    temporary = target.with_name(f".tmp-{uuid.uuid4().hex}-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error


def resolve(uri: str, *, answer_s: float = _ANSWER_S) -> tuple[pafs.FileSystem, str]:
    """The Arrow file system of a path or URI, and the path on it.

    Raises InputError if the scheme is unknown or its package is missing, and if a store (s3, gs) refuses
    the first request of this process or does not answer it within `answer_s` seconds.
    """
    scheme = _scheme(uri)
    if not scheme:
        return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    if scheme in _STORE_CHECKS:
        _check_store(uri, scheme, answer_s)
    try:
        if scheme in _ARROW_SCHEMES:
            filesystem, path = pafs.FileSystem.from_uri(uri)
            return filesystem, path
        import fsspec

        fs, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise InputError(
            f"cannot open {uri!r}: {error}. Give a path, or a URI such as s3://bucket/run."
        ) from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(fs)), path


def _scheme(uri: str) -> str:
    return uri.split("://", 1)[0] if "://" in uri else ""


def _check_store(uri: str, scheme: str, answer_s: float) -> None:
    store = uri.split("/", 3)[2]
    if not store:
        raise InputError(f"{uri!r} names no bucket. Give a URI such as {scheme}://bucket/run.")
    if store in _answered:
        return
    brief = f"{uri}?retry_limit_seconds={_GOOGLE_RETRY_S}" if scheme != "s3" and "?" not in uri else uri

    def ask() -> None:
        filesystem, path = pafs.FileSystem.from_uri(brief)
        filesystem.get_file_info(path)

    try:
        within(answer_s, ask)
    except OSError as error:
        # Arrow wraps the message of the store in descriptions of itself.
        reason = str(error).split(" error_info=")[0].rpartition("with a last message of ")[2]
        reason = " ".join(reason.split())[:300]
        raise InputError(f"cannot open {uri}: {reason}. {_STORE_CHECKS[scheme]}") from error
    _answered.add(store)


def mounted_as(path: str | Path, table: str = "/proc/self/mounts") -> str:
    """The type of the file system that holds a path, such as "nfs4". Empty where the system does not say."""
    try:
        mounts = [line.split(" ")[1:3] for line in Path(table).read_text().splitlines()]
    except OSError:
        return ""
    place = str(Path(path).absolute())
    # Blanks in a place are octal numbers there. The last of several mounts on one place is on top.
    found = [(place_of.replace("\\040", " "), kind) for place_of, kind in mounts]
    above = [(len(root), kind) for root, kind in found if f"{place}/".startswith(f"{root.rstrip('/')}/")]
    return max(reversed(above), key=lambda each: each[0], default=(0, ""))[1]


def within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`. Raises TimeoutError after `seconds`; the work then continues unobserved."""
    result = in_thread(work)
    if not wait([result], timeout=seconds).done:
        raise TimeoutError(f"no answer in {seconds:g} s")
    return result.result()


def in_thread(work: Callable[[], T]) -> Future[T]:
    """Run `work` in a daemon thread, which does not keep the process alive.

    The main thread stays free for Ctrl-C. Libraries such as Ray Train replace its handler if they run there.
    """
    future: Future[T] = Future()

    def target() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised where the result is read
            future.set_exception(error)

    threading.Thread(target=target, daemon=True).start()
    return future
