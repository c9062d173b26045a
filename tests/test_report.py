"""The report: one page that contains everything, for any stages that a run has finished."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cropray.config import Config
from cropray.errors import InputError
from cropray.figures.charts import EVALUATION, Axis, sweep_chart
from cropray.report.pages import REPORT, report
from cropray.run import Run
from cropray.storage import Folder
from tests.finished import ROIS, finished_run

VOID = {"meta", "link", "img", "br", "wbr", "hr", "input", "line", "circle"}


class Page(HTMLParser):
    """The references, ids and text of a page. Asserts that its tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: set[str] = set()
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.references += [value or "" for key, value in attrs if key in ("src", "href", "srcset")]
        self.ids.add(named.get("id") or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "pre"):
            self.words.append(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = finished_run(str(tmp_path_factory.mktemp("run")))
    report(run)
    return run


def page_of(run: Run) -> Page:
    return Page(run.folder.read_text(REPORT))


def test_everything_is_inside_the_page(finished: Run) -> None:
    page = page_of(finished)
    assert not page.open
    pictures = [r for r in page.references if r.startswith("data:image/png;base64,")]
    links = [r for r in page.references if r.startswith("#")]
    # Maps, scores and confusion and calibration, regions, curves, validity.
    assert len(pictures) == 2 + 3 + 2 + 1 + 1
    assert len(pictures) + len(links) + 1 == len(page.references)  # the empty icon
    assert {link[1:] for link in links} <= page.ids
    assert "url(" not in finished.folder.read_text(REPORT)
    assert "@import" not in finished.folder.read_text(REPORT)


def test_the_page_of_a_run_rounds_the_numbers_that_the_page_of_a_map_does(tmp_path: Path) -> None:
    run = finished_run(str(tmp_path / "run"))
    record = json.loads(run.folder.read_text("maps/map/summary.json"))
    record["summary"]["maps"] = [{"name": "", "folder": "", "hectares": {"maize": 35.6512, "pea": 60.0}}]
    run.folder.write_text("maps/map/summary.json", json.dumps(record))
    report(run)
    shown = f"{35.65:.1f}"  # areas.csv has 35.65
    assert f"maize {shown} " in page_of(run).text


def test_the_figures_are_those_of_the_stages(finished: Run) -> None:
    text = page_of(finished).text
    result = json.loads(finished.folder.read_text(EVALUATION))
    for row in result["methods"].values():
        assert f"{row['score']:.3f}" in text
        assert f"{row['interval'][0]:.3f}–{row['interval'][1]:.3f}" in text
        for entry in row["per_class"]:
            assert f"{entry['f1']:.3f}" in text
    assert "60.5 60.5 %" in text  # pea: twice 30.25 of twice 50 hectares
    assert "100 ha" in text
    assert "5 dropped: no harvest date" in text
    assert "The split val has no region of pea" in text
    assert "The network is behind the random forest" in text
    assert "4.5" in text


def test_the_page_has_notes_on_the_figures(finished: Run) -> None:
    text = page_of(finished).text
    assert "The land is simulated" in text
    assert "test regions were read once" in text
    assert "With 2 regions they are rough" in text


def test_partly_labelled_truth_has_no_precision(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    run = finished_run(str(tmp_path_factory.mktemp("partial")), with_truth=False)
    report(run)
    page = page_of(run)
    assert "Only some parcels of these regions are annotated" in page.text
    assert "macro-recall, network" in page.text
    assert not [word for word in ("precision", "IoU", "macro-F1") if word in page.text]


def test_a_run_with_one_stage_has_a_page(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(Folder(str(tmp_path_factory.mktemp("begun"))), Config(classes=("maize", "pea")))
    run.finish("rois", ROIS)
    assert report(run)["stages"] == ["rois"]
    assert "report: 5/5" in capsys.readouterr().err
    page = page_of(run)
    assert "#accuracy" not in page.references
    assert "61 parcels" in page.text


def test_a_run_without_any_stage_is_an_error(tmp_path_factory: pytest.TempPathFactory) -> None:
    run = Run(Folder(str(tmp_path_factory.mktemp("empty"))), Config())
    with pytest.raises(InputError, match="finished no stage"):
        report(run)
    assert not run.folder.exists(REPORT)


def test_the_configuration_is_the_one_the_run_was_made_with(finished: Run) -> None:
    before = finished.folder.read_text(REPORT)
    report(Run(finished.folder, Config()))
    assert finished.folder.read_text(REPORT) == before


def test_names_are_text_and_not_markup() -> None:
    run = Run(Folder("memory://report/run<i>"), Config(classes=("<script>alert(1)</script>",)))
    run.finish("rois", {**ROIS, "by_crop": {"<script>alert(1)</script>": 7}})
    report(run)
    text = run.folder.read_text(REPORT)
    assert "<script" not in text
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize(
    ("bounds", "verdict"),
    [
        ([0.01, 0.2], "is ahead of"),
        ([-0.2, -0.01], "is behind"),
        ([-0.1, 0.2], "not statistically significant"),
    ],
)
def test_a_method_is_ahead_only_if_the_interval_excludes_0(
    finished: Run, bounds: list[float], verdict: str
) -> None:
    original = finished.folder.read_text(EVALUATION)
    result = json.loads(original)
    result["differences"]["forest"] = {"score": sum(bounds) / 2, "interval": bounds}
    finished.folder.write_text(EVALUATION, json.dumps(result))
    report(finished)
    text = page_of(finished).text
    finished.folder.write_text(EVALUATION, original)
    interval = f"{sum(bounds) / 2:+.3f} (95 % interval {bounds[0]:+.3f} to {bounds[1]:+.3f})"
    before, found, _ = text.partition(interval)
    assert found
    assert verdict in before[-100:]


def test_a_sweep_shows_its_best_trials(finished: Run) -> None:
    def trial(number: int, end: str, problem: str = "") -> dict[str, Any]:
        reached = {"score": 0.8 - 0.1 * number, "best_epoch": 1, "epochs": 4 - number}
        values = {"finetune.lr": 10.0**-number}
        return {"id": f"{number:04d}", "values": values, "end": end, "problem": problem} | reached

    failed = trial(4, "failed", "no memory") | {"score": None, "best_epoch": 0, "epochs": 0}
    trials = [trial(1, "finished"), trial(2, "pruned"), trial(3, "open"), failed]
    folder = finished.folder.child("tune/rates")
    folder.write_text("sweep.json", json.dumps({"stage": "finetune", "trials": trials}))
    folder.write_bytes("sweep.png", sweep_chart([Axis("finetune.lr", True, ())], [], "score"))
    report(finished)
    text = page_of(finished).text
    assert "rates: 4 trials of finetune" in text
    assert "0001 0.700 0.1 1 3 finished 0002 0.600 0.01 1 2 pruned" in text
    assert "0003 0.500 0.001 1 1 out of time 0004 – 0.0001 – 0 failed: no memory" in text
    assert "sweeps" in page_of(finished).ids
    finished.folder.delete_folder("tune")
    report(finished)
    assert "sweeps" not in page_of(finished).ids
