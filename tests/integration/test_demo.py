"""The whole path on the built-in world, small: parcels in, map and report out, and again."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from cropray.config.load import load_config
from cropray.demo import demo
from cropray.run import Run, Summary
from cropray.storage import Folder
from tests.conftest import ROOT

SMALL = (
    "source.simulated.sites_per_crop=3",
    "source.simulated.regions=3",
    "source.simulated.region_size_m=640",
    "model.width=4",
    "finetune.epochs=2",
    "evaluate.forest_trees=10",
    "evaluate.forest_pixels=2000",
    "evaluate.bootstrap=50",
    "evaluate.as_of=[2022-05-10, 2022-06-10]",
    "predict.area='4.34,50.58,4.36,50.59'",
    "demo.pretraining.pretrain={epochs: 2, workers: 2, batch_size: 4}",
)


def as_of_the_demo(folder: Path) -> Run:
    return Run(Folder(str(folder)), load_config(ROOT / "configs" / "demo.yaml", SMALL))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> tuple[Run, Summary]:
    run = as_of_the_demo(tmp_path_factory.mktemp("demo"))
    return run, demo(run)


def test_it_ends_with_a_map_of_the_area(finished: tuple[Run, Summary]) -> None:
    run, summary = finished
    with rasterio.open(summary["map"]) as source:
        classes = source.read(1)
        assert source.crs.to_epsg() == 32631
        assert source.nodata == 255
        assert source.profile["tiled"]
    allowed = {*range(len(run.config.classes)), 254, 255}
    assert set(np.unique(classes).tolist()) <= allowed
    # 0.02 x 0.01 degrees at 50.6 N are 1416 m x 1112 m; the grid's box in UTM is a little wider.
    assert (classes != 255).sum() == pytest.approx(142 * 111, rel=0.1)
    assert Path(summary["picture"]).read_bytes().startswith(b"\x89PNG")
    assert "data:image/png" in Path(summary["report"]).read_text()


def test_the_body_of_the_pretraining_is_where_the_fine_tuning_began(finished: tuple[Run, Summary]) -> None:
    run, _ = finished
    recipe = json.loads(run.folder.read_text("finetuning/models/finetune/checkpoint.json"))["recipe"]
    second = Run(run.folder.child("finetuning"), run.config)
    assert second.place(recipe["init"]) == run.folder.child("pretraining/models/pretrain")
    assert run.folder.uri not in recipe["init"]  # it holds where the run is moved


def test_every_method_is_scored_on_the_same_pixels(finished: tuple[Run, Summary]) -> None:
    run, _ = finished
    result = json.loads(run.folder.read_text("finetuning/evaluation/evaluation.json"))
    assert set(result["methods"]) == {"network", "forest", "logistic", "boosting", "majority"}
    assert {int(np.sum(row["confusion"])) for row in result["methods"].values()} == {result["pixels"]}
    assert result["scope"] == "truth"
    # Six months of both sensors tell more than nothing.
    assert result["methods"]["forest"]["score"] > 3 * result["methods"]["majority"]["score"]


def test_a_second_run_reuses_all_and_says_so(
    finished: tuple[Run, Summary], capsys: pytest.CaptureFixture[str]
) -> None:
    run, first = finished
    stamps = {name: run.folder.local(name).stat().st_mtime_ns for name in run.folder.names(".parquet")}
    start = time.monotonic()
    again = demo(as_of_the_demo(run.folder.local()))
    assert time.monotonic() - start < first["seconds"]["finetuning/finetune"]
    assert again["map"] == first["map"]
    assert {name: run.folder.local(name).stat().st_mtime_ns for name in stamps} == stamps
    said = capsys.readouterr().err
    for stage in ("rois", "export", "compact", "pretrain", "finetune", "evaluate", "predict"):
        assert f"{stage}: reused" in said


def test_the_notebook_runs_on_it_and_draws(finished: tuple[Run, Summary], tmp_path: Path) -> None:
    made = tmp_path / "executed.ipynb"
    execute = "from nbclient.cli import main; main()"
    environment = os.environ | {"CROPRAY_NOTEBOOK_RUN": finished[0].folder.uri, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", execute, str(ROOT / "docs/python.ipynb"), f"--output={made}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    cells = [cell for cell in json.loads(made.read_text())["cells"] if cell["cell_type"] == "code"]
    data = [output["data"] for cell in cells for output in cell["outputs"] if "data" in output]
    pictures = [base64.b64decode(each["image/png"]) for each in data if "image/png" in each]
    assert len(pictures) == 4
    for picture in pictures:
        assert np.ptp(np.asarray(Image.open(io.BytesIO(picture)).convert("L"))) > 100  # it is not blank


def listed() -> list[re.Pattern[str]]:
    """The files in the tables of two pages. A name without a folder is beside the one before it."""
    found, cells = [], list[tuple[str, str]]()
    for page, inside in (("run-folder", ""), ("maps", "maps/<name>/")):
        text = (ROOT / f"docs/{page}.md").read_text()
        cells += [(inside, cell) for cell in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)]
    for inside, cell in cells:
        folder = inside
        for name in re.findall(r"`([^`]+)`", cell):
            path = name if "/" in name.rstrip("/") or not folder else folder + name
            folder = path[: path.rstrip("/").rfind("/") + 1]
            pattern = re.sub(r"<\w+>|\\\*", "[^/]+", re.escape(path).replace(r"\<", "<").replace(r"\>", ">"))
            found.append(re.compile(f"{pattern}.*" if path.endswith("/") else pattern))
    return found


def test_every_file_of_a_run_is_in_the_documentation(finished: tuple[Run, Summary]) -> None:
    patterns = listed()
    assert any(pattern.fullmatch("models/finetune/weights.safetensors") for pattern in patterns)
    assert not any(pattern.fullmatch("models.txt") for pattern in patterns)
    for stage in ("pretraining", "finetuning"):
        folder = finished[0].folder.local(stage)
        files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        assert {"config.yaml", "report.html"} & set(files)
        unknown = [file for file in files if not any(pattern.fullmatch(file) for pattern in patterns)]
        assert unknown == []
