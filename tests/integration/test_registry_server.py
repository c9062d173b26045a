"""The registry on a real MLflow server, and behind a proxy that asks for credentials."""

import base64
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from cropray.config.load import updated
from cropray.doctor import examine_tracking
from cropray.errors import InputError
from cropray.evaluation.evaluate import evaluate
from cropray.evaluation.promotion import promote
from cropray.models.checkpoint import load_checkpoint, save_checkpoint
from cropray.models.inference import Predictor
from cropray.report.pages import report
from cropray.run import Run
from cropray.shards.file import shard_uris
from cropray.shards.reader import ShardReader
from cropray.tracking.registry import register_checkpoint, resolve_model
from cropray.tracking.versions import find, list_versions
from tests.finished import finished_run
from tests.lands import ready_run, small_checkpoint
from tests.mlflow_server import Proxy, mlflow_server, proxy

NAME, PASSWORD, TOKEN = "analyst", "sesame", "t0ken"
# Installed here, but not among the requirements of a registered model.
_NOT_REQUIRED = {"ray", "rasterio", "geopandas", "ee", "typer", "pyproj", "jdatetime", "pystac"}
BASIC = "Basic " + base64.b64encode(f"{NAME}:{PASSWORD}".encode()).decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as uri:
        yield uri


@pytest.fixture(scope="module")
def run(server: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Version 1 is champion, measured and promoted through the server."""
    run = at(ready_run(str(tmp_path_factory.mktemp("run"))), server)
    register_checkpoint(run)
    evaluate(run)
    promote(run)
    return run


@pytest.fixture
def guarded(run: Run) -> Iterator[Proxy]:
    with proxy(run.config.tracking.uri, {BASIC, f"Bearer {TOKEN}"}) as there:
        yield there


def at(run: Run, uri: str) -> Run:
    return Run(run.folder, updated(run.config, {"tracking.uri": uri, "evaluate.baselines": False}))


def test_a_model_goes_to_the_server_and_comes_back(run: Run) -> None:
    assert not run.folder.exists("mlflow/mlflow.db")
    assert "can be read; writing was not tried" in examine_tracking(run.config, None).found
    found = load_checkpoint(resolve_model("models:/cropray@champion", run))
    assert found.describe() == small_checkpoint((0.5, 0.5)).describe()
    version = find(run, "models:/cropray@champion")
    assert version.aliases == ("candidate", "champion")
    assert version.evaluation["score"] == "macro_f1"
    assert version.card == Path(download(run, "README.md")).read_text()
    assert (
        json.loads(Path(download(run, "stac-item.json")).read_text())["properties"]["mlm:name"] == "cropray"
    )


def download(run: Run, name: str) -> str:
    from mlflow.artifacts import download_artifacts

    from cropray.tracking.connection import open_client

    client = open_client(run.config.tracking.uri)
    source = client.get_model_version_download_uri("cropray", "1")
    return download_artifacts(f"{source}/{name}", tracking_uri=run.config.tracking.uri)


def test_the_champion_predicts_where_only_its_requirements_are(run: Run, tmp_path: Path) -> None:
    uri = shard_uris(run.folder, "test")[0]
    script = f"""
import sys
sys.path.append({sysconfig.get_path("purelib")!r})
import json, mlflow, numpy as np, pyarrow.parquet as pq
from pathlib import Path
model = mlflow.pyfunc.load_model("models:/cropray@champion")
import cropray
assert Path(cropray.__file__).parts[-3] == "code", cropray.__file__
assert not {_NOT_REQUIRED!r} & set(sys.modules)
table = pq.read_table(sys.argv[1], columns=["s1", "s2"])
columns = {{name: table[name].to_numpy(zero_copy_only=False) for name in ("s1", "s2")}}
of_rows = model.predict(columns, params={{"metadata": table.schema.metadata[b"cropray"].decode()}})
of_example = model.predict(model.input_example)  # numbers of JSON
example = {{name: np.array(x.tolist(), np.int16) for name, x in model.input_example.items()}}
np.savez(sys.argv[2], rows=of_rows, example=of_example, **{{f"in_{{k}}": v for k, v in example.items()}})
dark = np.where(example["s2"] > 0, example["s2"] // 200, example["s2"])
for wrong in ({{"s1": example["s2"], "s2": example["s1"]}}, {{**example, "s2": example["s2"] / 10000}},
              {{**example, "s2": example["s2"][:, :, 1:]}}, {{**example, "s2": dark}},
              {{"s1": example["s1"]}}):
    try: model.predict(wrong)
    except Exception as error: print(str(error).replace(chr(10), " ")[-300:])
"""
    out = tmp_path / "out.npz"
    done = subprocess.run(
        # Without `site` no .pth file is read: the interpreter has the packages, but not this checkout.
        [sys.executable, "-I", "-S", "-c", script, uri, str(out)],
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_TRACKING_URI": run.config.tracking.uri},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    got = np.load(out)
    reader = ShardReader([uri], batch_size=8, shuffle=False)
    batch = reader.take(np.arange(len(reader.table)))
    predictor = Predictor(small_checkpoint((0.5, 0.5)))
    expected = predictor.probabilities(batch.s1_bcthw, batch.s2_bcthw)
    np.testing.assert_array_equal(got["rows"], expected)
    np.testing.assert_array_equal(got["example"], predictor.probabilities(got["in_s1"], got["in_s2"]))
    messages = done.stdout.splitlines()
    wanted = (
        r"s1 is \(1, 10, 2, 16, 16\), the model expects \(samples, 2 bands, 2 months, H, W\)",
        "s2 has 50% of its values outside",  # -32768 as a float is no missing view
        r"s1 is \(1, 2, 2, .*s2 \(1, 10, 1, .*months",
        "s2 lies within",
        r"issing inputs \['s2'\]",
    )
    assert len(messages) == len(wanted)
    for message, pattern in zip(messages, wanted, strict=True):
        assert re.search(pattern, message), message


def test_name_and_password_come_from_the_environment(
    run: Run, guarded: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", NAME)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    inside = at(run, guarded.uri)
    assert [version.uri for version in list_versions(inside)] == ["models:/cropray/1"]
    save_checkpoint(small_checkpoint((0.4, 0.4)), run.folder.child("models/other"))
    assert register_checkpoint(inside, "run:models/other")["registered"] == "models:/cropray/2"
    assert load_checkpoint(resolve_model("models:/cropray/2", inside)).thresholds == (0.4, 0.4)
    record = promote(inside, "models:/cropray/2", force="to see who did it")
    assert record["by"] == NAME
    promote(inside, "models:/cropray/1", force="as before")
    assert guarded.seen == {BASIC}  # runs, registry and files alike


def test_a_token_comes_from_the_environment(
    run: Run, guarded: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    assert find(at(run, guarded.uri), "models:/cropray@champion").number == "1"
    assert guarded.seen == {f"Bearer {TOKEN}"}


def test_an_unknown_user_learns_which_variables_to_set(run: Run, guarded: Proxy) -> None:
    for act in (list_versions, register_checkpoint, promote):
        with pytest.raises(InputError, match=r"\(401\); .*MLFLOW_TRACKING_USERNAME.*MLFLOW_TRACKING_TOKEN"):
            act(at(run, guarded.uri))


def test_a_reader_can_use_models_but_change_none(
    run: Run, guarded: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    guarded.read_only = True
    reader = at(run, guarded.uri)
    assert load_checkpoint(resolve_model("models:/cropray@champion", reader)).classes == ("maize", "pea")
    save_checkpoint(small_checkpoint((0.3, 0.3)), run.folder.child("models/third"))
    for act in (
        lambda: register_checkpoint(reader, "run:models/third"),
        lambda: promote(reader, "models:/cropray/2", force="no matter what"),
    ):
        with pytest.raises(InputError, match=r"does not permit this; .*MLFLOW_TRACKING_TOKEN"):
            act()
    assert find(run, "models:/cropray@champion").number == "1"


def test_the_password_of_a_variable_is_written_nowhere(
    run: Run, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "se/s@me: 5%"
    header = "Basic " + base64.b64encode(f"{NAME}:{secret}".encode()).decode()
    monkeypatch.setenv("THE_PASSWORD", secret)
    with proxy(server, {header}) as there:
        uri = f"http://{NAME}:${{THE_PASSWORD}}@{there.uri.removeprefix('http://')}"
        other = finished_run(str(tmp_path / "run"))
        settings = {"tracking.uri": uri, "tracking.model_name": "other"}
        inside = Run(other.folder, updated(other.config, settings))
        inside.claim("evaluate")
        registered = register_checkpoint(inside)["registered"]
        evaluate(inside)
        promote(inside, registered, force="a test")
        assert load_checkpoint(resolve_model(registered, inside)).thresholds == (0.5, 0.5)
        report(inside)
        assert there.seen == {header}
    monkeypatch.setenv("THE_PASSWORD", f"{secret} no more")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError) as error:
        list_versions(inside)
    out, err = capfd.readouterr()
    texts = [out, err, str(error.value)]
    server_folder = next(tmp_path.parent.glob("server*"))
    files = [path for folder in (tmp_path, server_folder) for path in folder.rglob("*") if path.is_file()]
    assert {"config.yaml", "register.json", "report.html", "server.db"} <= {path.name for path in files}
    for spelling in (secret, quote(secret, safe=""), header.removeprefix("Basic ")):
        assert not [text for text in texts if spelling in text]
        assert not [path for path in files if spelling.encode() in path.read_bytes()]
    monkeypatch.delenv("THE_PASSWORD")
    with pytest.raises(InputError, match="THE_PASSWORD, which is not set"):
        list_versions(inside)


def test_a_run_elsewhere_gets_its_own_copy(run: Run, tmp_path: Path) -> None:
    elsewhere = at(ready_run(str(tmp_path)), run.config.tracking.uri)
    folder = resolve_model("models:/cropray@champion", elsewhere)
    assert folder.uri == str(tmp_path / "models/registry/cropray/1")
    assert load_checkpoint(folder).thresholds == (0.5, 0.5)
