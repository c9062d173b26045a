"""The stage `predict` where something is wrong: nothing is seen, a tile is damaged, a map is gone."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

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
def test_a_map_that_was_deleted_is_made_again(run: Run) -> None:
    summary = predict(run)
    before = run.folder.local("maps/map/map.tif").read_bytes()
    run.folder.delete("maps/map/map.tif")
    assert predict(run) == summary
    assert run.folder.local("maps/map/map.tif").read_bytes() == before


@pytest.mark.usefixtures("source")
def test_scenes_that_may_still_be_missing_are_a_warning(run: Run) -> None:
    today = datetime.now(UTC).date()
    early = Run(run.folder, updated(run.config, {"predict.as_of": today.isoformat(), "source.kind": "stac"}))
    assert f"scenes until {today} may be missing" in (predict(early)["warning"] or "")
    later = updated(early.config, {"predict.as_of": "2022-06-15", "predict.name": "other"})
    assert "may be missing" not in (predict(Run(run.folder, later))["warning"] or "")


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
