"""A disk that is really full: a small file system in memory that only one process sees."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MEGABYTES = 3
_ROOT = Path(__file__).parents[1]


def run_on_small_disk(folder: Path, script: str, environment: dict[str, str] | None = None) -> str:
    """The output of Python code that runs with a file system of a few MB mounted at `folder`.

    Skips the test if the system does not allow the mount, which needs Linux, and user namespaces or root.
    """
    folder.mkdir()
    unshare = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--mount"]
    mounted = ["sh", "-c", f'mount -t tmpfs -o size={MEGABYTES}m tmpfs "$0" && exec "$@"', str(folder)]
    if shutil.which("unshare") is None:
        pytest.skip("no small disk to fill: there is no unshare here")
    probe = subprocess.run([*unshare, *mounted, "true"], check=False, capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no small disk to fill: {probe.stderr.strip()}")
    done = subprocess.run(
        [*unshare, *mounted, sys.executable, "-c", script, str(folder)],
        check=False,
        capture_output=True,
        text=True,
        cwd=_ROOT,
        env=os.environ | (environment or {}),
    )
    assert not done.returncode, done.stderr
    return done.stdout
