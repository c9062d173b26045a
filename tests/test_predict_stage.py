"""The stage `predict` where something is wrong: nothing is seen, a tile is damaged, a map is gone."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import shapely

from cropray.config.load import updated
from cropray.errors import InputError
from cropray.pipeline import predict as predict_module
from cropray.pipeline.area_estimate import estimate_areas
from cropray.pipeline.area_sample import sample_areas
from cropray.pipeline.predict import predict
from cropray.run import Run
from cropray.types import Composite, ImageRequest
from tests.integration.test_predict import random_model, run_in

pytestmark = pytest.mark.usefixtures("without_ray")


class Source:
    """Noise that is seen everywhere, or nowhere."""

    blind = False

    def identity(self) -> dict[str, str]:
        return {"kind": "noise", "s1_quantity": "gamma0"}

    def composite(self, request: ImageRequest) -> Composite:
        size = (len(request.periods), *request.grid.shape)
        rng = np.random.default_rng(0)
        values = rng.random((size[0], 12, *size[1:]), dtype=np.float32)
        valid = np.full(size, not self.blind)
        return Composite(request.grid, request.periods, values[:, :10], values[:, 10:], valid, valid)


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> type[Source]:
    monkeypatch.setattr(predict_module, "open_source", lambda *_: Source())
    monkeypatch.setattr(Source, "blind", False)
    return Source


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return run_in(tmp_path / "run", random_model(tmp_path / "model"), area="4.33,50.44,4.3365,50.4445")


def test_an_area_without_any_scene_fails_and_can_be_tried_again(
    run: Run, source: type[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "blind", True)
    with pytest.raises(InputError, match="no scene covers") as refused:
        predict(run)
    assert all(fact in str(refused.value) for fact in ("longitude 4.333", "latitude 50.442", "2022-06-16"))
    assert run.folder.child("maps").names() == []
    monkeypatch.setattr(source, "blind", False)
    assert predict(run)["maps"]


def test_a_damaged_tile_is_named_and_made_again_when_it_is_deleted_as_advised(
    run: Run, source: type[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not source.blind

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predict_module, "_publish_maps", stop)
        with pytest.raises(KeyboardInterrupt):
            predict(run)
    (part, *_) = sorted(run.folder.local("maps/map/parts").rglob("*.npz"))
    whole = part.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:200] + bytes(50) + whole[250:]):
        part.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{part.name} is damaged .*Delete it"):
            predict(run)
    part.unlink()
    assert predict(run)["maps"]


@pytest.mark.usefixtures("source")
def test_a_file_of_a_map_that_was_deleted_is_made_again(run: Run) -> None:
    summary = predict(run)
    for name in ("map.tif", "item.json", "areas.csv"):
        before = run.folder.read_bytes(f"maps/map/{name}")
        run.folder.delete(f"maps/map/{name}")
        assert predict(run) == summary
        assert run.folder.read_bytes(f"maps/map/{name}") == before


def as_of(run: Run, day: date, **changes: object) -> Run:
    settings = {"predict.as_of": day.isoformat(), "source.kind": "stac"} | changes
    return Run(run.folder, updated(run.config, settings))


def item_of(run: Run) -> dict[str, Any]:
    properties: dict[str, Any] = json.loads(run.folder.read_text("maps/map/item.json"))["properties"]
    return properties


@pytest.mark.usefixtures("source")
def test_a_map_of_a_version_with_fewer_files_is_made_again(run: Run) -> None:
    predict(run)
    record = json.loads(run.folder.read_text("maps/map/summary.json"))
    for made in record["summary"]["maps"]:
        del made["files"]
    run.folder.write_text("maps/map/summary.json", json.dumps(record))
    run.folder.delete("maps/map/confidence.tif")
    predict(run)
    assert run.folder.exists("maps/map/confidence.tif")
    assert all(made["files"] for made in (run.summary("predict") or {})["maps"])


@pytest.mark.usefixtures("source")
def test_months_that_are_not_over_are_refused_or_make_a_provisional_map(run: Run) -> None:
    """Each of the remedies that the message names."""
    today = datetime.now(UTC).date()
    early = as_of(run, today)
    with pytest.raises(InputError, match="--partial") as refused:
        predict(early)
    assert (today + timedelta(days=1 + 3)).isoformat() in str(refused.value)
    assert not run.folder.exists("maps")
    assert predict(as_of(run, today - timedelta(days=4), **{"predict.name": "earlier"}))["provisional"] == ""

    summary = predict(early, partial=True)
    assert summary["provisional"] == item_of(run)["cropray:provisional"] == today.isoformat()
    assert f"provisional: made on {today}" in summary["warning"]
    written = run.folder.local("maps/map/item.json").stat().st_mtime_ns
    assert predict(early, partial=True) == summary  # on the same day nothing can have changed
    assert run.folder.local("maps/map/item.json").stat().st_mtime_ns == written
    with pytest.raises(InputError, match="--partial"):
        predict(early)  # a finished map does not hide it


@pytest.mark.usefixtures("source")
def test_a_provisional_map_is_made_again_when_its_months_are_over(run: Run) -> None:
    day = datetime.now(UTC).date() - timedelta(days=2)
    assert predict(as_of(run, day), partial=True)["provisional"]
    over = as_of(run, day, **{"source.ingestion_days": 0})
    assert predict(over)["provisional"] == ""
    assert "cropray:provisional" not in item_of(run)
    assert predict(as_of(run, day), partial=True)["provisional"] == ""  # a whole one is not lost again


def test_scenes_that_could_not_be_used_are_counted_and_named(
    run: Run, source: type[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = ("S2A_1: 80% of B02 lies outside", "S2A_1: 90% of B02 lies outside", "S2B_2: gone")
    plain = source.composite
    monkeypatch.setattr(source, "composite", lambda self, req: replace(plain(self, req), lost=lost))
    summary = predict(run)
    assert summary["scenes_lost"] == 2
    assert "2 scenes could not be used, such as S2A_1" in summary["warning"]
    assert item_of(run)["cropray:scenes_lost"] == ["S2A_1", "S2B_2"]


def test_other_fields_are_classified_on_the_map_that_is_there(
    run: Run, source: type[Source], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    boxes = [shapely.box(4.331, 50.441, 4.333, 50.443), shapely.box(4.334, 50.441, 4.335, 50.443)]
    files = [tmp_path / "one.gpkg", tmp_path / "two.gpkg"]
    for number, file in enumerate(files, start=1):
        gpd.GeoDataFrame(geometry=boxes[:number], crs="EPSG:4326").to_file(file)
    one, two = (Run(run.folder, updated(run.config, {"predict.fields": str(file)})) for file in files)
    assert predict(one)["fields"] == 1
    written = run.folder.local("maps/map/map.tif").stat().st_mtime_ns
    monkeypatch.setattr(source, "composite", None)  # no imagery is asked for
    assert predict(two)["fields"] == 2
    assert run.folder.local("maps/map/map.tif").stat().st_mtime_ns == written
    assert len(gpd.read_parquet(run.folder.local("maps/map/fields.parquet"))) == 2


def test_a_predicted_map_can_be_sampled_and_estimated(run: Run, source: type[Source]) -> None:
    hectares = predict(run)["maps"][0]["hectares"]
    drawn = sample_areas(run, size=60)
    assert list(drawn["crops"]) == list(hectares)
    points = pyogrio.read_dataframe(run.folder.local("areas/map/points.gpkg"))
    crop = next(iter(hectares))
    points.assign(crop=crop).to_file(run.folder.local("checked.gpkg"))
    found = estimate_areas(run, points=str(run.folder.local("checked.gpkg")))["hectares"]
    assert found[crop]["estimate"] == pytest.approx(sum(hectares.values()), rel=0.01)
    assert predict(run)["maps"]  # is reused, and leaves the estimates alone
    assert "stratified sample" in run.folder.read_text("maps/map/areas.csv")
