"""A model as an ONNX file, run by onnxruntime where neither torch nor this project can be imported."""

import json
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from cropray.bands import NODATA
from cropray.cli import main
from cropray.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cropray.models.dual_unet3d import NetworkSpec
from cropray.models.inference import Predictor
from cropray.models.normalisation import FixedNormalisation, SeedNormalisation
from cropray.storage import Folder
from tests.lands import CLASSES, small_checkpoint

MONTHS = 3
SIZES = [(1, 16, 16), (2, 17, 65), (3, 5, 48)]  # samples, rows, columns


def saved(folder: Path, *, floats: bool, temporal: bool = False) -> Checkpoint:
    """A network of either kind, whose output varies."""
    torch.manual_seed(3)
    normalisation = SeedNormalisation() if floats else FixedNormalisation()
    network = NetworkSpec(len(CLASSES), width=4, months=MONTHS, validity=normalisation.validity)
    if temporal:
        network = replace(network, kind="temporal", members=2, places=((4.0, 50.0), (1.0, 1.0)))
    weights = network.build().state_dict()
    weights["final_conv.weight"] *= 300
    parts = {"network": network, "normalisation": normalisation, "weights": weights}
    made = replace(small_checkpoint((0.25, 0.5)), **parts)
    save_checkpoint(made, Folder(str(folder)))
    return load_checkpoint(Folder(str(folder)))


def stored(samples: int, height: int, width: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(height)
    s1 = rng.integers(-3500, 1800, (samples, 2, MONTHS, height, width)).astype(np.int16)
    s2 = rng.integers(-200, 12_000, (samples, 10, MONTHS, height, width)).astype(np.int16)
    s1[:, :, 1, : height // 2] = s2[:, :, 0] = s2[..., 3] = NODATA
    return {"s1": s1, "s2": s2}


def physical(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    scales = {"s1": 0.01, "s2": 0.0001}
    return {
        name: np.where(x == NODATA, np.nan, x * scales[name]).astype(np.float32) for name, x in values.items()
    }


ALONE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import numpy as np, onnxruntime
for name in ("torch", "cropray", "mlflow"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} can be imported")
session = onnxruntime.InferenceSession(sys.argv[2])
facts = session.get_modelmeta().custom_metadata_map
with np.load("in.npz") as given:
    (probabilities,) = session.run(["probabilities"], dict(given))
np.save("out.npy", probabilities)
print(json.dumps(facts))
"""


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("floats", "temporal"), [(False, False), (True, False), (False, True)])
def test_an_onnx_file_gives_the_probabilities_of_torch_without_torch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], floats: bool, temporal: bool
) -> None:
    checkpoint = saved(tmp_path / "model", floats=floats, temporal=temporal)
    options = ["--floats"] if floats else []
    folder, file = str(tmp_path / "model"), str(tmp_path / "crops.onnx")
    with pytest.raises(SystemExit) as ended:
        main(["models", "export", folder, "--format", "onnx", "--out", file, *options])
    assert ended.value.code in (0, None)
    assert json.loads(capsys.readouterr().out)["classes"] == list(CLASSES)
    session, predictor = onnxruntime.InferenceSession(file), Predictor(checkpoint)
    for size in SIZES:
        given = stored(*size)
        expected = predictor.probabilities(given["s1"], given["s2"])
        assert expected.std() > 0.02  # else a graph that looks at nothing would pass
        inputs = physical(given) if floats else given
        (got,) = session.run(["probabilities"], inputs)
        np.testing.assert_allclose(got, expected, atol=1e-4)

    packages, installed = tmp_path / "packages", Path(sysconfig.get_path("purelib"))
    packages.mkdir()
    for name in ("numpy", "numpy.libs", "onnxruntime"):
        if (installed / name).exists():
            (packages / name).symlink_to(installed / name)
    np.savez(tmp_path / "in.npz", **inputs)
    command = [sys.executable, "-I", "-S", "-c", ALONE, str(packages), file]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), got)
    facts = json.loads(done.stdout.splitlines()[-1])
    assert json.loads(facts["classes"]) == list(CLASSES)
    assert json.loads(facts["thresholds"]) == [0.25, 0.5]
    assert json.loads(facts["s1"]) == ["VV", "VH"]
    assert facts["months"] == str(MONTHS)
    assert facts["input"].startswith("float32" if floats else "int16")


def test_an_export_that_cannot_be_made_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path / "model", floats=False)
    (tmp_path / "there.onnx").write_text("a file")
    command = ["models", "export", str(tmp_path / "model"), "--out"]
    for out, fact in (("there.onnx", "exists"), ("crops.pt", "onnx")):
        with pytest.raises(SystemExit) as ended:
            main([*command, str(tmp_path / out)])
        assert ended.value.code == 2
        assert fact in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(SystemExit) as ended:
        main([*command, str(tmp_path / "new.onnx")])
    assert ended.value.code == 2
    assert "cropray[onnx]" in capsys.readouterr().err
    assert (tmp_path / "there.onnx").read_text() == "a file"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "there.onnx"]
