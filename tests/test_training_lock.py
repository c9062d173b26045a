"""One owner at a time, on a file system and on object storage."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path

import pytest

from cropray.errors import InputError
from cropray.storage import Folder
from cropray.training.lock import RunLock, run_lock
from cropray.training.state import Snapshot, StateWriter
from tests.s3_server import Bucket, s3_bucket

ROOT = Path(__file__).parents[1]
LEASE_S = 3.0
HOLDER = f"""
import sys, time
from cropray.storage import Folder
from cropray.training.lock import run_lock
with run_lock(Folder(sys.argv[1]), "finetune.lock", "finetune", lease_s={LEASE_S}) as lock:
    print("held", flush=True)
    for line in sys.stdin:
        lock.check()
        print("checked", flush=True)
"""


def start_holder(folder: Folder) -> subprocess.Popen[str]:
    """A process that holds the lock, and checks it for each line that it is sent."""
    command = [sys.executable, "-c", HOLDER, folder.uri]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    holder = subprocess.Popen(command, text=True, cwd=ROOT, **pipes)  # type: ignore[call-overload]
    assert holder.stdout.readline() == "held\n"
    return holder  # type: ignore[no-any-return]


def try_lock(folder: Folder, name: str = "finetune.lock") -> None:
    with run_lock(folder, name, "finetune", lease_s=LEASE_S):
        pass


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with s3_bucket(monkeypatch) as bucket:
        yield bucket


@pytest.fixture
def remote(bucket: Bucket) -> Folder:
    return Folder(bucket.uri).child("stages")


def check_handover(folder: Folder, after_kill_s: float) -> None:
    """Another process is refused until the holder is dead, and then waits no longer than this."""
    with start_holder(folder) as holder:
        with pytest.raises(InputError) as refused:
            try_lock(folder)
        for fact in ("finetune", f"process {holder.pid} on {socket.gethostname()}", "--run", "stop it"):
            assert fact in str(refused.value)
        try_lock(folder, "pretrain.lock")  # another training
        holder.kill()
        holder.wait()
        deadline = time.monotonic() + after_kill_s
        while True:
            try:
                try_lock(folder)
                return
            except InputError:
                assert time.monotonic() < deadline
                time.sleep(0.2)


def test_on_a_file_system_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    check_handover(Folder(str(tmp_path)), after_kill_s=0)


def test_a_lock_is_free_after_its_block(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with run_lock(folder, "a.lock", "finetune") as lock:
        lock.check()
        with pytest.raises(InputError, match=f"process {os.getpid()} on"):
            try_lock(folder, "a.lock")
    try_lock(folder, "a.lock")


def test_on_object_storage_a_lock_expires_after_the_death_of_its_process(remote: Folder) -> None:
    check_handover(remote, after_kill_s=LEASE_S + 30)


def test_on_object_storage_a_lock_is_renewed_and_given_back(remote: Folder) -> None:
    with run_lock(remote, "a.lock", "finetune", lease_s=LEASE_S):
        time.sleep(LEASE_S + 2)  # longer than it lasts by itself
        with pytest.raises(InputError, match="is running already"):
            try_lock(remote, "a.lock")
    try_lock(remote, "a.lock")


def test_an_owner_that_was_stalled_notices_before_its_next_state(remote: Folder) -> None:
    with start_holder(remote) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stderr is not None
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "checked\n"
        holder.send_signal(signal.SIGSTOP)
        time.sleep(LEASE_S + 2)
        with run_lock(remote, "finetune.lock", "finetune", lease_s=60) as mine:
            holder.send_signal(signal.SIGCONT)
            _, said = holder.communicate("\n", timeout=60)
            assert holder.returncode
            assert "InputError" in said
            assert f"lost its lock {remote}/finetune.lock to process {os.getpid()} on" in said
            mine.check()  # the other has not disturbed it by its end


def test_a_state_is_neither_begun_nor_made_whole_by_who_lost_the_lock(tmp_path: Path) -> None:
    for lost_at in (1, 2):
        checks = iter([None] * (lost_at - 1) + ["lost"])

        def check(checks: Iterator[str | None] = checks) -> None:
            if next(checks):
                raise InputError("the lock is lost")

        states = Folder(str(tmp_path / str(lost_at)))
        writer = StateWriter(states, check=check)
        writer.put(Snapshot("epoch-0001-step-0000001", {}, {}), None, None)
        with pytest.raises(InputError, match="the lock is lost"):
            writer.wait()
        assert not [name for name in states.names() if name.endswith("whole.json")]
        assert bool(states.names()) == (lost_at == 2)


def test_of_many_that_come_at_once_one_gets_the_lock(remote: Folder) -> None:
    """Both where there is none yet, and where the last one has expired."""
    for _ in range(2):
        got, refused = list[RunLock](), list[InputError]()
        barrier = threading.Barrier(8)

        def come(
            barrier: threading.Barrier = barrier,
            got: list[RunLock] = got,
            refused: list[InputError] = refused,
        ) -> None:
            lock = RunLock(remote, "a.lock", "finetune", os.urandom(8).hex(), lease_s=1.0)
            barrier.wait()
            try:
                while not lock.take():
                    pass
                got.append(lock)
            except InputError as error:
                refused.append(error)

        threads = [threading.Thread(target=come) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(got), len(refused)) == (1, 7)
        time.sleep(2.5)  # it expires


def test_the_processes_of_an_owner_renew_its_lock_beside_each_other(remote: Folder) -> None:
    with run_lock(remote, "a.lock", "finetune", lease_s=LEASE_S) as lock, ExitStack() as stack:
        workers = [pickle.loads(pickle.dumps(lock)) for _ in range(2)]
        threads = [threading.Thread(target=lambda w=w: [w.check() for _ in range(5)]) for w in workers]
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
    try_lock(remote, "a.lock")


def test_a_lock_whose_first_answer_was_lost_is_held(remote: Folder) -> None:
    lock = RunLock(remote, "a.lock", "finetune", "mine")
    assert lock.take()
    assert lock.take()
    lock.check()


def test_a_lock_that_somebody_deleted_is_lost(remote: Folder) -> None:
    with run_lock(remote, "a.lock", "finetune") as lock:
        remote.delete("a.lock")
        with pytest.raises(InputError, match=r"lost its lock .* deleted it"):
            lock.check()


def test_a_mount_that_keeps_locks_on_one_machine_promises_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, said in (("fuse.gcsfuse", True), ("nfs4", False), ("ext4", False)):
        monkeypatch.setattr("cropray.training.lock.mounted_as", lambda _path, kind=kind: kind)
        with run_lock(Folder(str(tmp_path)), "a.lock", "finetune"):
            pass
        assert (f"no lock on {tmp_path} ({kind}" in capsys.readouterr().err) == said


def test_storage_without_locks_promises_none_and_says_so(
    bucket: Bucket, remote: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket.fault = lambda method, path: (
        HTTPStatus.NOT_IMPLEMENTED if ".lock" in path and method == "PUT" else 0
    )
    for folder in (Folder("memory://locks/run"), remote):
        with run_lock(folder, "a.lock", "finetune") as lock:
            lock.check()
        said = capsys.readouterr().err
        assert f"finetune has no lock on {folder}" in said
        assert "no other process" in said
