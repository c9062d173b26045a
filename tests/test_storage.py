"""Folders by path or URI. Files appear whole."""

import errno
import pickle
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cropray.errors import InputError, format_os_error, is_lasting
from cropray.storage import Folder, mounted_as, resolve


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "run") if request.param == "local" else f"memory://{tmp_path.name}")


def test_what_is_written_is_read_back_and_listed(folder: Folder) -> None:
    assert folder.names() == []
    folder.write_bytes("a/b.bin", b"\0\1")
    folder.write_text("c.txt", "äöü")
    assert folder.read_bytes("a/b.bin") == b"\0\1"
    assert folder.read_text("c.txt") == "äöü"
    assert folder.names() == ["a/b.bin", "c.txt"]
    assert folder.names(".txt") == ["c.txt"]
    assert folder.child("a").names() == ["b.bin"]
    assert folder.exists("c.txt")
    folder.delete("c.txt")
    assert not folder.exists("c.txt")


def test_a_local_file_is_published_whole(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "made.tif").write_bytes(b"x" * 100_000)
    folder.publish(tmp_path / "made.tif", "maps/map.tif")
    assert folder.read_bytes("maps/map.tif") == b"x" * 100_000
    assert folder.names() == ["maps/map.tif"]


def test_a_missing_file_names_itself_and_its_folder(folder: Folder) -> None:
    with pytest.raises(InputError, match=r"no absent\.json in .*"):
        folder.read_bytes("absent.json")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(str(tmp_path))
    folder.write_text("a.txt", "old")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.txt'") as caught:
        folder.write_text("a.txt", "new and longer")
    assert is_lasting(caught.value)
    message = format_os_error(caught.value)
    assert message.startswith(f"{tmp_path}/a.txt: No space left on device (")
    assert re.search(rf"\d+\.\d MB free in {tmp_path}\W.*Free some space", message)
    assert folder.read_text("a.txt") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises((NotADirectoryError, FileExistsError)) as caught:
        Folder(str(tmp_path / "run")).write_text("a.txt", "a")
    assert "run/a.txt" in format_os_error(caught.value)
    assert "another --run folder" in format_os_error(caught.value)


def test_a_network_error_is_not_lasting() -> None:
    assert not is_lasting(ConnectionResetError(errno.ECONNRESET, "reset by peer"))


def test_relative_paths_stay_where_they_were_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Folder("run")
    monkeypatch.chdir("/")
    assert folder.local() == tmp_path / "run"


def test_a_folder_travels_to_other_processes(folder: Folder) -> None:
    folder.write_text("a.txt", "a")
    assert pickle.loads(pickle.dumps(folder)).read_text("a.txt") == "a"


def test_an_unknown_scheme_is_an_error() -> None:
    with pytest.raises(InputError, match="nosuch://"):
        Folder("nosuch://bucket").names()


def test_object_storage_has_no_local_path() -> None:
    with pytest.raises(InputError, match="not on a local file system"):
        Folder("memory://x").local("a")


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_store_that_never_answers_is_reported_in_time_with_what_it_needs(scheme: str, silent: str) -> None:
    who = {"s3": "key:secret", "gs": "anonymous"}[scheme]
    query = f"scheme=http&endpoint_override={silent}" + ("&region=eu" if scheme == "s3" else "")
    start = time.monotonic()
    with pytest.raises(InputError, match=rf"{scheme}://.*no answer in 0\.5 s.*credentials"):
        resolve(f"{scheme}://{who}@bucket/run?{query}", answer_s=0.5)
    assert time.monotonic() - start < 10


def test_a_store_that_cannot_be_reached_is_reported_with_its_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    uri = f"gs://anonymous@bucket/run?scheme=http&endpoint_override=127.0.0.1:{port}&retry_limit_seconds=1"
    with pytest.raises(InputError, match=r"connect to server.*bucket.*GOOGLE_APPLICATION_CRED"):
        resolve(uri)


@pytest.mark.parametrize("uri", ["s3://bucket/run?region=eu", "gs://bucket/run#1", "memory://a?b"])
def test_a_uri_with_a_query_is_refused_for_names_are_added_to_it(uri: str) -> None:
    with pytest.raises(InputError, match=r"query .*AWS_ENDPOINT_URL"):
        Folder(uri)


@pytest.mark.parametrize("name", ["..", "../a", "a/../../b", "maps/.."])
def test_no_name_leaves_its_folder(folder: Folder, name: str) -> None:
    for use in (
        folder.child,
        folder.path,
        folder.exists,
        folder.read_bytes,
        folder.delete,
        folder.delete_folder,
        lambda name: folder.write_text(name, "a"),
    ):
        with pytest.raises(InputError, match="is not in"):
            use(name)
    folder.write_text("a..b", "fine")
    assert folder.names() == ["a..b"]


@pytest.mark.parametrize("uri", ["s3://", "s3:///run", "gs://"])
def test_a_store_without_a_bucket_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match=f"{uri}' names no bucket.*://bucket/run"):
        Folder(uri).exists("x")


def test_a_folder_takes_no_keys_in_its_uri() -> None:
    with pytest.raises(InputError, match="AWS_SECRET_ACCESS_KEY") as error:
        Folder("s3://AKIA:wJalr/X@bucket/run")
    assert not any(part in str(error.value) for part in ("AKIA", "wJalr", "X@"))


def test_the_mount_of_a_path_is_the_innermost_and_the_last_on_its_place(tmp_path: Path) -> None:
    table = tmp_path / "mounts"
    lines = [
        "/dev/sda1 / ext4 rw 0 0",
        "host:/home /home nfs4 rw 0 0",
        "b /home/me/my\\040bucket fuse.gcsfuse rw 0 0",
    ]
    table.write_text("\n".join([*lines, "tmpfs /run tmpfs rw 0 0", "x /run overlay rw 0 0"]) + "\n")
    kinds = {
        "/data/run": "ext4",
        "/home": "nfs4",
        "/home/me/run": "nfs4",
        "/home/me/my bucket/run": "fuse.gcsfuse",
        "/homely": "ext4",
        "/run/a": "overlay",
    }
    assert {path: mounted_as(path, str(table)) for path in kinds} == kinds
    assert mounted_as("/", str(tmp_path / "none")) == ""
    assert mounted_as(tmp_path) != ""  # Linux says so
