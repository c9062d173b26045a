"""One driver at a time, on a file system and on object storage."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from cropray.errors import InputError
from cropray.storage import Folder
from cropray.training import lock
from cropray.training.lock import held

ROOT = Path(__file__).parents[1]
HOLDER = """
import sys, time
from cropray.storage import Folder
from cropray.training.lock import held
with held(Folder(sys.argv[1]), "finetune.lock", "finetune"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        said = rf"finetune is under way already, by process {holder.pid} on "
        with pytest.raises(InputError, match=said), held(Folder(str(tmp_path)), "finetune.lock", "finetune"):
            pass
        with held(Folder(str(tmp_path)), "pretrain.lock", "pretrain"):  # another training
            pass
        holder.kill()
        holder.wait()
        with held(Folder(str(tmp_path)), "finetune.lock", "finetune"):
            pass


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Object storage, on which claims settle and expire at once."""
    monkeypatch.setattr(lock, "_SETTLES_S", 0.05)
    monkeypatch.setattr(lock, "_EXPIRES_S", 0.6)
    monkeypatch.setattr(lock, "_RENEWED_S", 0.1)
    return Folder("memory://locks/run")


def test_on_object_storage_a_claim_is_renewed_and_given_back(remote: Folder) -> None:
    with held(remote, "a.lock", "finetune"):
        time.sleep(1.0)  # longer than a claim lasts by itself
        with pytest.raises(InputError, match=r"its claim ends"), held(remote, "a.lock", "finetune"):
            pass
    assert not remote.exists("a.lock")
    with held(remote, "a.lock", "finetune"):
        pass


def test_on_object_storage_what_the_dead_left_behind_expires(remote: Folder) -> None:
    remote.write_text("b.lock", f'{{"token": "x", "owner": "process 7 on nowhere", "at": {time.time()}}}')
    with pytest.raises(InputError, match="process 7 on nowhere"), held(remote, "b.lock", "finetune"):
        pass
    time.sleep(0.7)
    with held(remote, "b.lock", "finetune"):
        pass
