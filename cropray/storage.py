"""Run folders and shards by path or URI (file, s3, gs, or any fsspec scheme); files appear whole.

Nothing that a reader may see is ever half-written: on a file system a file is written under a
temporary name and renamed, on object storage it is one upload, tried again where it fails.
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

from cropray.errors import InputError

T = TypeVar("T")


def in_thread(work: Callable[[], T]) -> Future[T]:
    """Run `work` in a thread of its own, which does not keep the process alive.

    The main thread stays free for the user's interrupt, whose handling others (Ray Train) would take
    over there, and keep.
    """
    future: Future[T] = Future()

    def target() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # handed over to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=target, name="beside", daemon=True).start()
    return future


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` gives. Raises TimeoutError where it takes longer; then it is left to itself."""
    answer = in_thread(work)
    if not wait([answer], timeout=seconds).done:
        raise TimeoutError(f"no answer in {seconds:g} s")
    return answer.result()


# Between attempts to upload a file anew. Arrow's client asks again by itself where a request is answered
# by 503, but for the one that completes an upload.
_WAITS_S = (0.5, 1.0, 2.0, 4.0)
_ARROW_SCHEMES = ("file", "s3", "gs", "gcs")

# By itself a store's client goes on asking for two minutes (S3) to a quarter of an hour (Google's, which
# says what was wrong only then).
_ANSWER_S = 30.0
_RETRY_S = 10
_GOOGLE = (
    "wanted a bucket that there is, a network, and credentials: gcloud auth application-default login, "
    "GOOGLE_APPLICATION_CREDENTIALS=KEY.json, or on Google's machines a service account"
)
_WANTED = {
    "s3": "wanted a bucket that there is, a network, and credentials: AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, aws configure, or on Amazon's machines a role (and AWS_ENDPOINT_URL for the S3 "
    "of somebody else)",
    "gs": _GOOGLE,
    "gcs": _GOOGLE,
}
_answered: set[str] = set()  # the stores that did, of this process


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """The Arrow file system and the path on it of a path or URI.

    Raises InputError where the scheme is not known or its package is not installed, and where a
    store (s3, gs) does not answer or refuses when a process asks it for the first time.
    """
    scheme = _scheme(uri)
    if not scheme:
        return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    if scheme in _WANTED:
        _first_answer(uri, scheme)
    try:
        if scheme in _ARROW_SCHEMES:
            filesystem, path = pafs.FileSystem.from_uri(uri)
            return filesystem, path
        import fsspec

        fs, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise InputError(
            f"cannot open {uri!r}: {error}; wanted a path or a URI like s3://bucket/run"
        ) from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(fs)), path


def _scheme(uri: str) -> str:
    return uri.split("://", 1)[0] if "://" in uri else ""


def _first_answer(uri: str, scheme: str) -> None:
    """Ask a store whether there is something at `uri`, whatever it says. Raises InputError."""
    store = uri.split("/", 3)[2]
    if not store:
        raise InputError(f"{uri!r} names no bucket: wanted a URI like {scheme}://bucket/run")
    if store in _answered:
        return

    briefly = f"{uri}?retry_limit_seconds={_RETRY_S}" if scheme != "s3" and "?" not in uri else uri

    def ask() -> None:
        filesystem, path = pafs.FileSystem.from_uri(briefly)
        filesystem.get_file_info(path)

    try:
        within(_ANSWER_S, ask)
    except OSError as error:
        raise InputError(f"cannot open {uri}: {_reason(error)}; {_WANTED[scheme]}") from error
    _answered.add(store)


def _reason(error: OSError) -> str:
    """What a store's client says, without what it says of itself around it."""
    said = str(error).split(" error_info=")[0].rpartition("with a last message of ")[2]
    return " ".join(said.split())[:300]


@dataclass(frozen=True)
class Folder:
    """A folder by path or URI. Names below it are relative, with forward slashes."""

    uri: str

    def __post_init__(self) -> None:
        # Relative paths are made absolute: Ray workers run in another directory.
        if "://" not in self.uri:
            object.__setattr__(self, "uri", str(Path(self.uri).expanduser().absolute()))

    def __str__(self) -> str:
        return self.uri

    @property
    def is_local(self) -> bool:
        return _scheme(self.uri) in ("", "file")

    @cached_property
    def _resolved(self) -> tuple[pafs.FileSystem, str]:
        return resolve(self.uri)

    def __reduce__(self) -> tuple[type[Folder], tuple[str]]:
        return Folder, (self.uri,)  # file systems are opened anew in every process

    @property
    def filesystem(self) -> pafs.FileSystem:
        return self._resolved[0]

    def path(self, name: str = "") -> str:
        """The path of `name` on `filesystem`."""
        return f"{self._resolved[1].rstrip('/')}/{name}" if name else self._resolved[1]

    def child(self, name: str) -> Folder:
        return Folder(f"{self.uri.rstrip('/')}/{name}")

    def local(self, name: str = "") -> Path:
        """The local path of `name`. Raises InputError on object storage."""
        if not self.is_local:
            raise InputError(f"{self.uri} is not on a local file system")
        return Path(self.path(name))

    def exists(self, name: str = "") -> bool:
        return bool(self.filesystem.get_file_info(self.path(name)).type != pafs.FileType.NotFound)

    def names(self, suffix: str = "") -> list[str]:
        """Names of the files below (recursively) that end in `suffix`, sorted; none if absent."""
        selector = pafs.FileSelector(self.path(), allow_not_found=True, recursive=True)
        root = self.path().rstrip("/") + "/"
        found = [
            info.path.removeprefix(root)
            for info in self.filesystem.get_file_info(selector)
            if info.type == pafs.FileType.File and info.path.endswith(suffix)
        ]
        return sorted(name for name in found if not name.rsplit("/", 1)[-1].startswith(".tmp-"))

    def read_bytes(self, name: str) -> bytes:
        try:
            with self.filesystem.open_input_stream(self.path(name)) as stream:
                return bytes(stream.read())
        except FileNotFoundError as error:
            raise InputError(f"there is no {name} in {self.uri}") from error

    def read_text(self, name: str) -> str:
        return self.read_bytes(name).decode()

    def write_bytes(self, name: str, data: bytes | pa.Buffer) -> None:
        """Publish a file whole; it replaces an older one of the name."""
        if not self.is_local:
            self._upload(name, data)
            return
        with _replacing(self.local(name)) as temporary:
            temporary.write_bytes(data)

    def _upload(self, name: str, data: bytes | pa.Buffer) -> None:
        for wait_s in (*_WAITS_S, None):
            try:
                with self.filesystem.open_output_stream(self.path(name)) as stream:
                    stream.write(data)
                return
            except OSError:  # of what kind, Arrow tells in its text alone
                if wait_s is None:
                    raise
                time.sleep(wait_s)

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def publish(self, local_file: Path, name: str) -> None:
        """Copy a finished local file here, whole."""
        if not self.is_local:
            # In one write: a stream that is closed after half of them would publish half of the file.
            # (Arrow's copy_files is no help: where an upload fails, it can end without an error.)
            with pa.memory_map(str(local_file)) as file:
                self.write_bytes(name, file.read_buffer())
            return
        with _replacing(self.local(name)) as temporary:
            shutil.copyfile(local_file, temporary)

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """A local path to write a new file at, which appears whole at the end of the block or not at all."""
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
        """Delete a folder below, if it is there, with all that it holds."""
        if self.exists(name):
            self.filesystem.delete_dir(self.path(name))


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A temporary path for a new `target`, renamed to it at the end of the block and else removed.

    Raises OSError that names `target`: one from a full disk names no file by itself.
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
