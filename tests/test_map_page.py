"""The page and the summary of a map: figures from its files, nothing from elsewhere, in any language."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cropray.config import Config
from cropray.figures.crops import class_colours, hexadecimal
from cropray.grid import Grid
from cropray.report.language import LANGUAGES, language
from cropray.report.map_page import PAGE, SUMMARY, publish_pages
from cropray.report.pages import REPORT, report
from cropray.run import Run
from tests.lands import CLASSES
from tests.mapped_run import GRID, digest, item_of, mapped_run, with_estimates, with_fields
from tests.test_report import Page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = mapped_run(str(tmp_path_factory.mktemp("run")), title="Two <crops>", licence="CC-BY-4.0")
    publish_pages(made)
    return made


def text_of(run: Run) -> str:
    return run.folder.read_text(f"maps/map/{PAGE}")


def words_of(run: Run) -> str:
    """What a reader sees, without scripts."""
    return Page(re.sub(r"<script.*?</script>", "", text_of(run), flags=re.DOTALL)).text


def data_of(run: Run) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', text_of(run), re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


def test_the_page_is_one_file_and_links_only_what_lies_beside_it(run: Run) -> None:
    page = Page(text_of(run))
    assert not page.open
    beside = {path.name for path in Path(run.folder.local("maps/map")).iterdir()}
    links = [link for link in page.references if not link.startswith(("#", "data:"))]
    assert set(links) <= beside
    assert {"map.tif", "scores.tif", "confidence.tif", "areas.csv", "summary.pdf"} <= set(links)
    assert {link[1:] for link in page.references if link.startswith("#")} <= page.ids
    assert "url(" not in text_of(run)
    assert not re.search(r"https?://", text_of(run))


def test_headline_and_lead_say_what_the_files_say(run: Run) -> None:
    words = words_of(run)
    # Half of 192 ha (on the ellipsoid) is maize, an eighth pea. Its harvest begins 36 days later.
    headline = "Maize is the largest crop: 96.1 of 120 hectares under crops, mapped 36 days before the first"
    assert headline in words
    assert "counts of mapped pixels, not estimates" in words
    assert "before the harvest of pea begins (6 July)" in words
    assert "from 1 April to 30 April 2022, 25 % of the land was never seen without cloud" in words
    assert "simulated world" in words
    assert "CC-BY-4.0" in words
    assert "Two <crops>" in words


def test_trust_is_that_of_the_evaluation_of_this_model(run: Run, tmp_path: Path) -> None:
    result = json.loads(run.folder.read_text("evaluation/evaluation.json"))
    network = result["methods"]["network"]
    words = words_of(run)
    assert f"{100 * network['accuracy']:.0f} of 100 pixels are right" in words
    for entry in network["per_class"]:
        assert f"{entry['f1']:.3f}" in words
    other = mapped_run(str(tmp_path / "other"))
    other.finish("predict", (other.summary("predict") or {}) | {"checkpoint": "another"})
    publish_pages(other)
    words = words_of(other)
    assert "The model of this map was not tested in this run" in words
    assert "How far to trust it" not in words
    assert "not alone" not in words


def test_the_viewer_has_the_classes_scores_and_months_of_the_rasters(run: Run) -> None:
    import base64
    import io

    page = data_of(run)
    data = page["data"]

    def values(layer: dict[str, Any]) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(layer["png"]))))

    assert (data["width"], data["height"]) == (160, 120)
    crop = values(data["crop"])
    assert np.unique(crop[:, :80]).tolist() == [0]
    assert np.unique(crop[:30, 80:]).tolist() == [1]
    assert np.unique(crop[30:, 80:]).tolist() == [2]  # none of the classes
    assert np.unique(values(data["confidence"])).tolist() == [80]  # of none of them: 100 - 2 x 10
    assert values(data["scores"]).shape == (240, 160)
    assert len(data["months"]) == 2
    assert page["names"] == ["maize", "pea", "none of the classes"]
    assert data["colours"][:2] == [hexadecimal(rgb) for rgb in class_colours(CLASSES)]
    assert data["metres"] == pytest.approx(10, rel=0.01)
    west, north = data["degrees"][0][0][0], data["degrees"][1][0][0]
    assert (west, north) == pytest.approx((9, 45.15), abs=0.01)
    assert len(data["sites"]) == 2


def test_a_large_map_is_shown_by_overviews_of_a_few_megabytes(tmp_path: Path) -> None:
    large = Grid(GRID.crs, GRID.x0, GRID.y0, 10, 2600, 2600)
    made = mapped_run(str(tmp_path), large)
    publish_pages(made)
    data = data_of(made)["data"]
    assert (data["width"], data["height"]) == (2600, 2600)
    assert (data["crop"]["width"], data["crop"]["height"]) == (1300, 1300)
    assert data["scores"]["width"] <= 1118  # two classes of 2.5 million values
    assert len(text_of(made)) < 1_000_000


def test_fields_are_listed_with_flags_and_their_names_are_no_markup(tmp_path: Path) -> None:
    made = mapped_run(str(tmp_path))
    table = with_fields(made)
    publish_pages(made)
    fields = {row[0]: row for row in data_of(made)["data"]["fields"]}
    assert fields.keys() == set(table["field"])
    assert fields["a"][1] == 0
    assert fields["a"][2] == pytest.approx(7.0, abs=0.02)
    assert "declared otherwise" in fields['c <"d">'][8]
    assert '<"d">' not in text_of(made)
    assert "#fields" in Page(text_of(made)).references
    assert "fields.gpkg" in words_of(made)


def test_regions_are_not_passed_off_as_fields_of_a_file(tmp_path: Path) -> None:
    made = mapped_run(str(tmp_path))
    with_fields(made, auto=True)
    publish_pages(made)
    assert "no cadastre" in words_of(made)
    assert "the file that was given" not in words_of(made)


def test_estimates_come_with_intervals_also_by_unit(tmp_path: Path) -> None:
    made = mapped_run(str(tmp_path))
    with_estimates(made)
    publish_pages(made)
    words = words_of(made)
    assert "estimates from 300 checked points of this land" in words
    assert "90.5 82.7–98.3" in words
    assert "Maize is the largest crop: 90.5 of 118 hectares" in words
    assert "north 74.0 maize 48.0 (40.1–55.9) · pea 24.0 150" in words


def test_pages_of_the_same_map_are_the_same_bytes_and_noted_in_its_item(run: Run) -> None:
    before = [digest(run, name) for name in (PAGE, SUMMARY, "item.json")]
    publish_pages(run)
    assert [digest(run, name) for name in (PAGE, SUMMARY, "item.json")] == before
    item = item_of(run)
    assert item["assets"][PAGE]["file:checksum"] == f"1220{digest(run, PAGE)}"
    assert item["properties"]["license"] == "CC-BY-4.0"


def test_the_report_stage_writes_the_pages_of_all_maps_in_the_wanted_language(tmp_path: Path) -> None:
    made = mapped_run(str(tmp_path))
    settings = made.config.model_copy(
        update={"report": made.config.report.model_copy(update={"language": "fr"})}
    )
    report(Run(made.folder, settings))
    assert '<html lang="fr" dir="ltr">' in text_of(made)
    assert f"maps/map/{PAGE}" in Page(made.folder.read_text(REPORT)).references
    assert made.folder.exists(f"maps/map/{SUMMARY}")


def test_the_summary_is_one_page_with_the_headline(run: Run) -> None:
    data = run.folder.read_bytes(f"maps/map/{SUMMARY}")
    assert data.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type /Page\b", data)) == 1


@pytest.mark.parametrize("code", sorted(LANGUAGES))
def test_numbers_and_dates_are_those_of_the_language(code: str) -> None:
    from datetime import date

    lang = language(code)
    wanted = {
        "en": ("12\u202f345.6", "10 June 2022", "ltr"),
        "es": ("12\u202f345,6", "10 junio 2022", "ltr"),
        "fr": ("12\u202f345,6", "10 juin 2022", "ltr"),
        "fa": ("۱۲\u202f۳۴۵٫۶", "۲۰ خرداد ۱۴۰۱", "rtl"),
    }
    assert (lang.number(12345.6, 1), lang.day(date(2022, 6, 10)), lang.direction) == wanted[code]
    assert lang.number(None) == lang.percent(None) == lang.interval(None, 1) == "–"
    assert Config().report.language == "en"
