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
import torch

from cropray.bands import NODATA
from cropray.grid import Grid, Window
from cropray.models.checkpoint import load_checkpoint
from cropray.models.decision import decide
from cropray.models.inference import Predictor
from cropray.rasters import create_tiled
from cropray.run import Run
from cropray.shards.reader import ShardReader
from cropray.tracking.connection import open_client, tracking_uri
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
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def patches() -> dict[str, np.ndarray]:
    """Two patches as shards store them, with pixels and a month that nothing saw."""
    lands = [land for land in LANDS["test"] if min(land.truth_hw.shape) >= 32]
    return {
        "s1": np.stack([land.s1_cthw[..., :32, :32] for land in lands]),
        "s2": np.stack([land.s2_cthw[..., :32, :32] for land in lands]),
    }


def trainers(run: Run, patches: dict[str, np.ndarray]) -> np.ndarray:
    """What the trainer's own network gives, with one thread: their number changes last bits."""
    predictor = Predictor(load_checkpoint(run.folder.child("models/finetune")))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = predictor.probabilities(patches["s1"], patches["s2"])
    torch.set_num_threads(threads)
    return made


@pytest.fixture(scope="module")
def expected(run: Run, patches: dict[str, np.ndarray]) -> np.ndarray:
    return trainers(run, patches)


def physical(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """dB and reflectance of stored integers, NaN where nothing was seen."""
    scales = {"s1": 0.01, "s2": 0.0001}
    return {
        name: np.where(values == NODATA, np.nan, values * scales[name]).astype(np.float32)
        for name, values in stored.items()
    }


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
    environment: dict[str, str],
    run: Run,
    patches: dict[str, np.ndarray],
    expected: np.ndarray,
    tmp_path: Path,
) -> None:
    with served(environment, tmp_path) as address:
        np.testing.assert_array_equal(predictions(post(address, request_of(patches))), expected)
        one = {name: values[:1] for name, values in patches.items()}
        np.testing.assert_array_equal(predictions(post(address, request_of(one))), trainers(run, one))
        floats = physical({name: values[..., :-3] for name, values in patches.items()})
        odd = predictions(post(address, request_of(floats).replace("NaN", "null")))
        assert odd.shape == expected[..., :-3].shape
        np.testing.assert_allclose(odd[..., :8], expected[..., :8], atol=0.2)
        short = patches | {"s2": patches["s2"][:, :, 1:]}
        with pytest.raises(urllib.error.HTTPError) as error:
            post(address, request_of(short))
        assert error.value.code == 400
        assert f"(2, 10, {MONTHS - 1}, 32, 32)" in error.value.read().decode()


CHECK = """
import numpy as np
assert list(names) == {names!r}
np.save("out.npy", probabilities)
np.save("class.npy", classes)
np.save("rows.npy", of_rows)
"""


def test_the_code_in_the_card_runs_as_written_without_this_project(
    environment: dict[str, str], run: Run, tmp_path: Path
) -> None:
    client = open_client(tracking_uri(run))
    (version,) = client.search_model_versions("name='cropray'")
    client.set_registered_model_alias("cropray", "champion", version.version)
    land = LANDS["test"][0]
    floats = physical({"s1": land.s1_cthw, "s2": land.s2_cthw})
    grid = Grid("EPSG:32631", 500_000.0, 5_600_000.0, 10.0, *land.truth_hw.shape)
    for name, cube_cthw in floats.items():
        for month in range(MONTHS):
            path = tmp_path / name / f"2022-{month + 4:02d}.tif"
            path.parent.mkdir(exist_ok=True)
            options = {"count": len(cube_cthw), "dtype": "float32", "nodata": np.nan}
            with create_tiled(path, grid, **options) as write:
                write(cube_cthw[:, month], Window(0, 0, *grid.shape))
    shard = tmp_path / "00000.parquet"
    shard.write_bytes(run.folder.read_bytes("shards/test/00000.parquet"))
    blocks = version.description.split("```python\n")[1:]
    assert len(blocks) == 2
    checkpoint = load_checkpoint(run.folder.child("models/finetune"))
    code = "".join(block.split("```")[0] for block in blocks) + CHECK.format(names=list(checkpoint.classes))
    script = tmp_path / "card.py"
    script.write_text(code)
    command = ["python", "-W", "ignore", str(script)]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, timeout=250)
    predictor = Predictor(checkpoint)
    mapped = predictor.probabilities(land.s1_cthw[None], land.s2_cthw[None])[0]
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), mapped)
    np.testing.assert_array_equal(np.load(tmp_path / "class.npy"), decide(mapped, predictor.thresholds))
    (batch,) = ShardReader([str(shard)], batch_size=1000, shuffle=False).epoch(0)
    rows = predictor.probabilities(batch.s1_bcthw, batch.s2_bcthw)
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), rows)
