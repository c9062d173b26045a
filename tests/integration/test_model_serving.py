"""A registered model as others run it: by MLflow's own commands, where this checkout cannot be imported."""

import json
import os
import signal
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cropray.models.checkpoint import load_checkpoint
from cropray.models.inference import Predictor
from cropray.run import Run
from cropray.tracking.connection import tracking_uri
from cropray.tracking.registry import register_checkpoint
from tests.lands import LANDS, MONTHS, ready_run
from tests.mlflow_server import free_port

MODEL = "models:/cropray@candidate"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = ready_run(str(tmp_path_factory.mktemp("run")))
    register_checkpoint(run)
    return run


@pytest.fixture(scope="module")
def environment(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of an environment with the installed packages, but without this project."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # A folder in a .pth file is added to the path; .pth files in that folder (of this project) are not read.
    (packages / "installed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for name, module, function in (("mlflow", "mlflow.cli", "cli"), ("uvicorn", "uvicorn.main", "main")):
        script = folder / "bin" / name
        script.write_text(f"#!{folder}/bin/python\nfrom {module} import {function}\n{function}()\n")
        script.chmod(0o755)
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return variables | {
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": tracking_uri(run),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


@pytest.fixture(scope="module")
def patches() -> dict[str, np.ndarray]:
    """Two patches as shards store them, with pixels and a month that nothing saw."""
    lands = [land for land in LANDS["test"] if min(land.truth_hw.shape) >= 32]
    return {
        "s1": np.stack([land.s1_cthw[..., :32, :32] for land in lands]),
        "s2": np.stack([land.s2_cthw[..., :32, :32] for land in lands]),
    }


@pytest.fixture(scope="module")
def expected(run: Run, patches: dict[str, np.ndarray]) -> np.ndarray:
    """What the trainer's own network gives."""
    predictor = Predictor(load_checkpoint(run.folder.child("models/finetune")))
    return predictor.probabilities(patches["s1"], patches["s2"])


def request_of(patches: dict[str, np.ndarray]) -> str:
    return json.dumps({"inputs": {name: values.tolist() for name, values in patches.items()}})


def predictions(text: str) -> np.ndarray:
    """float32 of an answer: the JSON of a float is exact."""
    return np.array(json.loads(text)["predictions"]).astype(np.float32)


def test_the_environment_has_no_cropray(environment: dict[str, str], tmp_path: Path) -> None:
    command = [
        "python",
        "-c",
        "import torch, mlflow, importlib.util as u; assert u.find_spec('cropray') is None",
    ]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True)


def test_mlflow_models_predict_gives_the_trainers_output(
    environment: dict[str, str], patches: dict[str, np.ndarray], expected: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "in.json").write_text(request_of(patches))
    command = ["mlflow", "models", "predict", "-m", MODEL, "--env-manager", "local", "-t", "json"]
    files = ["-i", str(tmp_path / "in.json"), "-o", str(tmp_path / "out.json")]
    done = subprocess.run(
        [*command, *files], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    np.testing.assert_array_equal(predictions((tmp_path / "out.json").read_text()), expected)


@contextmanager
def served(environment: dict[str, str], folder: Path) -> Iterator[str]:
    """The address of `mlflow models serve`, which is ended by its process group."""
    port, log = free_port(), folder / "serve.log"
    command = ["mlflow", "models", "serve", "-m", MODEL, "--env-manager", "local", "-p", str(port), "-w", "1"]
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + 200
        while True:
            try:
                with urllib.request.urlopen(f"{address}/ping", timeout=10):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    pytest.fail(log.read_text()[-3000:])
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def post(address: str, body: str) -> str:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/invocations", body.encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read().decode()


def test_mlflow_models_serve_gives_the_trainers_output(
    environment: dict[str, str], patches: dict[str, np.ndarray], expected: np.ndarray, tmp_path: Path
) -> None:
    with served(environment, tmp_path) as address:
        np.testing.assert_array_equal(predictions(post(address, request_of(patches))), expected)
        one = {name: values[:1] for name, values in patches.items()}
        np.testing.assert_array_equal(predictions(post(address, request_of(one))), expected[:1])
        short = patches | {"s2": patches["s2"][:, :, 1:]}
        with pytest.raises(urllib.error.HTTPError) as error:
            post(address, request_of(short))
        assert error.value.code == 400
        assert f"(-1, 10, {MONTHS}, -1, -1)" in error.value.read().decode()
