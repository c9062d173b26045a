"""The database of a run folder on a disk that fills up."""

from pathlib import Path

from tests.full_disk import run_on_small_disk

FILLED = """
import os, sys
from pathlib import Path
from cropray.config import Config
from cropray.errors import InputError
from cropray.run import Run
from cropray.storage import Folder
from cropray.tracking.runs import tracked

disk = Path(sys.argv[1])
run, filler = Run(Folder(str(disk / "run")), Config()), disk / "filler"


def fill() -> None:
    with filler.open("wb") as file:
        try:
            while True:
                os.write(file.fileno(), bytes(4096))
        except OSError:
            pass


def fails(act) -> str:
    try:
        act()
    except (InputError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    raise SystemExit("nothing was raised")


def record(step: int) -> None:
    with tracked(run, "finetune") as tracker:
        for part in range(200):
            tracker.metrics({f"loss{i}": 1.0 for i in range(50)}, step=200 * step + part)


fill()
print(fails(lambda: record(0)))
print(sorted(path.name for path in disk.rglob("*") if path.is_file()))
filler.unlink()
with tracked(run, "finetune") as tracker:
    tracker.metrics({"loss": 0.5}, step=0)
fill()
print(fails(lambda: record(1)))
filler.unlink()
with tracked(run, "finetune") as tracker:
    tracker.metrics({"loss": 0.25}, step=1)
    print(sorted(tracker.steps_of("loss")), tracker.client.get_run(tracker.run_id).info.status)
"""


def test_a_database_that_cannot_grow_says_so_and_goes_on_once_there_is_room(tmp_path: Path) -> None:
    first, files, second, steps = run_on_small_disk(tmp_path / "disk", FILLED).splitlines()
    assert first.startswith(("InputError", "OSError"))
    assert "filler" in files
    assert "mlflow.db" not in files  # half a database would be no database
    assert second.startswith("InputError")
    assert "full" in second
    assert "same command again" in second
    assert steps == "[0, 1] RUNNING"
