"""The stage `export` as a whole: months that are not over, what is gone, and where nothing is seen."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Self

import pytest

from cropray.config.load import updated
from cropray.errors import InputError
from cropray.pipeline.compact import compact
from cropray.pipeline.export import dry_run, export
from cropray.rois.store import write_parcels, write_rois
from cropray.run import Run, Summary
from cropray.shards.ledger import read_ledger
from cropray.storage import Folder
from tests.export_inputs import PlainSource, make_config, make_parcels, make_roi

pytestmark = pytest.mark.usefixtures("without_ray", "clock")

TODAY = date(2026, 6, 15)
NOT_OVER = {"window.anchor": "as_of", "window.as_of": TODAY.isoformat()}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day that doesn't end while the tests run."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls(TODAY.year, TODAY.month, TODAY.day, 12, tzinfo=tz)

    monkeypatch.setattr("cropray.pipeline.export.datetime", Clock)


def new_run(path: Path, **changes: Any) -> Run:
    run = Run(Folder(str(path)), make_config(**changes))
    write_rois(run.folder, [make_roi()])
    write_parcels(run.folder, make_parcels())
    run.finish("rois", {})
    return run


def changed(run: Run, **changes: Any) -> Run:
    return Run(run.folder, updated(run.config, changes))


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> PlainSource:
    source = PlainSource()
    monkeypatch.setattr("cropray.pipeline.export.open_source", lambda *_: source)
    return source


def times(run: Run) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in run.folder.local("parts").iterdir()}


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("stage", [dry_run, export])
def test_months_that_are_not_over_are_refused_with_the_day_on_which_they_are(
    tmp_path: Path, stage: Any
) -> None:
    run = new_run(tmp_path, **NOT_OVER)
    with pytest.raises(InputError, match="--partial") as refused:
        stage(run)
    day = TODAY + timedelta(days=1 + 3)  # the month ends today, and takes three days to come in
    assert all(fact in str(refused.value) for fact in ("1 of 1 ROIs", "maize-1", day.isoformat()))
    assert not run.folder.exists("parts")


@pytest.mark.usefixtures("source")
def test_a_month_is_over_when_its_scenes_are_in_the_catalogue(tmp_path: Path) -> None:
    """Each of the remedies that the message names."""
    run = new_run(tmp_path, **NOT_OVER)
    earlier = changed(run, **{"window.as_of": (TODAY - timedelta(days=4)).isoformat()})
    assert dry_run(earlier)["tiles_left"] == 2
    assert (
        dry_run(changed(run, **{"source.ingestion_days": 0, "window.as_of": "2022-06-30"}))["tiles_left"] == 2
    )
    with pytest.raises(InputError, match="not over"):
        dry_run(changed(earlier, **{"source.ingestion_days": 9}))
    assert dry_run(run, partial=True)["tiles_left"] == 2
    assert dry_run(changed(run, **{"source.kind": "simulated"}))["tiles_left"] == 2  # its world is made


@pytest.mark.usefixtures("source")
def test_a_provisional_export_says_so_and_is_done_again_when_its_months_are_over(tmp_path: Path) -> None:
    day = (TODAY - timedelta(days=2)).isoformat()
    run = new_run(tmp_path, **NOT_OVER | {"window.as_of": day, "source.ingestion_days": 9})
    summary = export(run, partial=True)
    assert summary["provisional_tiles"] == 2
    assert "provisional" in summary["warnings"][0]
    assert {row.provisional for row in read_ledger(run.folder)} == {TODAY.isoformat()}
    before = times(run)
    assert export(run, partial=True) == summary  # on the same day nothing can have changed
    assert times(run) == before
    compact(run)
    with pytest.raises(InputError, match="not over"):  # a finished stage does not hide it
        export(run)
    later = changed(run, **{"source.ingestion_days": 0})
    assert export(later)["provisional_tiles"] == 0
    after = times(run)
    assert after.keys() == before.keys()
    assert all(after[name] > before[name] for name in before)
    assert {row.provisional for row in read_ledger(run.folder)} == {""}
    assert compact(later)["samples"] == {"train": 6}


def run_export(tmp_path: Path) -> tuple[Run, Summary]:
    run = new_run(tmp_path)
    return run, export(run)


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("gone", ["parts/maize-1-000-001.parquet", "ledger.parquet", "parts"])
def test_what_was_deleted_is_exported_again_and_nothing_else(tmp_path: Path, gone: str) -> None:
    run, summary = run_export(tmp_path)
    before, parts = times(run), {p.name: p.read_bytes() for p in run.folder.local("parts").iterdir()}
    if gone == "parts":
        run.folder.delete_folder(gone)
    else:
        run.folder.delete(gone)
        with pytest.raises(InputError, match="run export again"):
            compact(run)
    assert export(run) == summary
    kept = {name for name, time in times(run).items() if time == before[name]}
    assert kept == {name for name in before if gone != "parts" and name not in gone}
    assert {p.name: p.read_bytes() for p in run.folder.local("parts").iterdir()} == parts
    assert compact(run)["samples"] == {"train": 6}


@pytest.mark.usefixtures("source")
def test_a_damaged_part_that_is_deleted_as_advised_is_made_again(tmp_path: Path) -> None:
    run, summary = run_export(tmp_path)
    part = run.folder.local("parts/maize-1-000-001.parquet")
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"maize-1-000-001\.parquet .*delete the file"):
        compact(run)
    part.unlink()
    assert export(run) == summary
    compact(run)


def test_an_area_outside_all_imagery_fails_and_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, source = new_run(tmp_path), PlainSource(blind=True)
    monkeypatch.setattr("cropray.pipeline.export.open_source", lambda *_: source)
    with pytest.raises(InputError, match="no scene covers") as refused:
        export(run)
    # The UTM zone of the ROI has its central meridian, x 500 km, at 51° E.
    assert all(fact in str(refused.value) for fact in ("longitude 51.002", "latitude 36.1", "2022-05-01"))
    assert run.summary("export") is None
    object.__setattr__(source, "blind", False)  # its catalogue is complete now
    assert export(run)["patches"] == 6


@pytest.mark.usefixtures("source")
def test_the_progress_counts_rois_as_they_are_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path)
    bounds = (600_000.0, 4_000_000.0, 600_400.0, 4_000_320.0)
    write_rois(run.folder, [make_roi(), replace(make_roi("maize-2"), bounds=bounds)])
    notes: list[str] = []
    monkeypatch.setattr(
        "cropray.progress.Progress.advance", lambda _self, _steps=1, note="": notes.append(note)
    )
    export(run)
    assert notes == [f"{count} of 2 ROIs" for count in (0, 1, 1, 2)]


def test_the_window_of_a_harvest_counts_too(tmp_path: Path, source: PlainSource) -> None:
    assert source
    run = new_run(tmp_path)
    write_rois(run.folder, [replace(make_roi(), harvest_start=date(TODAY.year + 1, 8, 1))])
    with pytest.raises(InputError, match=rf"{TODAY.year + 1}-0[67]-"):
        dry_run(run)


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("stage", [dry_run, export])
def test_rois_without_a_harvest_are_named_before_anything_is_exported(tmp_path: Path, stage: Any) -> None:
    run = new_run(tmp_path)
    write_rois(run.folder, [replace(make_roi(), harvest_start=None)])
    with pytest.raises(InputError, match=r"1 of 1 ROIs .*maize-1.*window\.as_of"):
        stage(run)
    as_advised = changed(run, **{"window.anchor": "as_of", "window.as_of": "2022-06-30"})
    assert stage(as_advised)["tiles"] == 2


@pytest.mark.usefixtures("source")
def test_parts_of_other_settings_may_be_deleted_as_advised(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    export(run)
    run.folder.delete("stages/export.json")  # as if it had not ended
    other = changed(run, **{"window.months": 3})
    with pytest.raises(InputError, match=r"delete .*/parts"):
        export(other)
    run.folder.delete_folder("parts")
    assert export(other)["patches"] == 6
