"""A network that is told places: where they come from, what is unknown or far, maps and evaluations alike."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cropray.errors import InputError
from cropray.evaluation.classifiers import Network
from cropray.evaluation.mosaics import plan_tiles, read_tile
from cropray.grid import Grid, Window, lonlat, transformer
from cropray.models.blending import blended
from cropray.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cropray.models.dual_unet3d import CropNetwork, NetworkSpec
from cropray.models.inference import Predictor
from cropray.models.normalisation import FixedNormalisation
from cropray.pipeline.import_series import import_series
from cropray.shards.file import shard_uris
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from cropray.training.plan import make_plan
from cropray.training.step import Trainer
from tests.series_tables import long_table, run_in, write

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = NetworkSpec(3, width=16, months=2, validity=True, kind="temporal", places=((-80.0, 10.0), (45.0, 2.0)))


def network() -> CropNetwork:
    torch.manual_seed(0)
    return SPEC.build().eval()


def inputs(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.ones(n, 2, 2, 1, 1), torch.ones(n, 10, 2, 1, 1), torch.ones(n, 2, 2, 1, 1)


def test_a_place_matters_and_one_that_is_unknown_or_far_away_is_like_none_or_the_edge() -> None:
    nan = float("nan")
    places = torch.tensor([[-80.0, 45.0], [-60.0, 46.0], [nan, nan], [-50.0, 45.0], [0.0, 45.0]])
    here, there, unknown, edge, far = network()(*inputs(5), place_b2=places)
    assert not torch.allclose(here, there)
    assert not torch.allclose(here, unknown)
    torch.testing.assert_close(far, edge)
    torch.testing.assert_close(unknown, network()(*inputs(1))[0])


def test_training_tells_places_within_a_tenth_and_a_tenth_of_them_not_at_all() -> None:
    net = network()
    seen = []
    net.get_submodule("encoders.0").register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    net.train()
    net(*inputs(4000), place_b2=torch.tensor([[-70.0, 47.0]]).expand(4000, 2))
    lon, lat, known = seen[0][:, 0, 12:15].T
    assert known.mean().item() == pytest.approx(0.9, abs=0.02)
    assert (lon[known == 0] == 0).all()
    for axis in (lon, lat):
        told = axis[known == 1]
        assert told.mean().item() == pytest.approx(1.0, abs=0.01)
        assert told.std().item() == pytest.approx(0.1, abs=0.01)


def test_checkpoints_keep_what_places_are_measured_by(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    save_checkpoint(checkpoint(), folder)
    assert load_checkpoint(folder).network == SPEC


def checkpoint() -> Checkpoint:
    return Checkpoint(
        classes=("a", "b", "c"),
        network=SPEC,
        normalisation=FixedNormalisation(),
        window={"anchor": "as_of", "months": 2, "lead_months": 1, "as_of": "2022-06-30"},
        s1_quantity="gamma0",
        weights=network().state_dict(),
    )


def test_a_patch_has_the_place_of_its_centre_whatever_is_predicted_with_it() -> None:
    predictor = Predictor(checkpoint())
    rng = np.random.default_rng(0)
    s1 = rng.integers(-2000, -500, (2, 2, 8, 8)).astype(np.int16)
    s2 = rng.integers(100, 3000, (10, 2, 8, 8)).astype(np.int16)
    grid = Grid("EPSG:32617", 400_000.0, 4_900_000.0, 50_000.0, 8, 8)
    patches = [Window(0, 0, 4, 4), Window(4, 4, 4, 4)]
    together = blended(predictor, s1, s2, patches, 0, grid=grid)
    part = patches[1]
    alone = blended(
        predictor,
        s1[:, :, *part.slices],
        s2[:, :, *part.slices],
        [Window(0, 0, 4, 4)],
        0,
        grid=grid.window(part),
    )
    np.testing.assert_allclose(together[:, *part.slices], alone, rtol=1e-5)
    lon, lat = transformer(grid.crs, "EPSG:4326").transform(700_000.0, 4_600_000.0)
    given = predictor.probabilities(
        s1[None, :, :, *part.slices], s2[None, :, :, *part.slices], np.array([[lon, lat]])
    )
    np.testing.assert_allclose(given[0], alone, rtol=1e-5)
    assert not np.allclose(blended(predictor, s1, s2, patches, 0), together, equal_nan=True)


def test_points_in_several_zones_have_their_longitudes_and_latitudes() -> None:
    zones = ["EPSG:32617", "EPSG:32633", "EPSG:32617"]
    found = lonlat(zones, np.array([500_000.0, 500_000.0, 600_000.0]), np.array([0.0, 5_000_000.0, 0.0]))
    assert found[:2, 0] == pytest.approx([-81.0, 15.0])
    assert found[0, 1] == pytest.approx(0.0)
    assert found[2] == pytest.approx(transformer("EPSG:32617", "EPSG:4326").transform(600_000.0, 0.0))


def test_a_training_measures_places_by_its_samples_and_an_evaluation_tells_them(tmp_path: Path) -> None:
    settings = {"model.kind": "temporal", "model.width": 16, "model.places": True, "finetune.epochs": 1}
    run = run_in(tmp_path / "run", **settings)
    table = long_table(90)
    import_series([write(tmp_path / "a.parquet", table)], run)
    plan = make_plan(run, "finetune")
    spec = plan.checkpoint.network
    assert spec.places is not None
    reader = plan.train.reader(100, seed=0)
    mine = table[table.sample_id.isin(reader.table["sample_id"].to_pylist())].drop_duplicates("sample_id")
    assert np.ravel(spec.places) == pytest.approx(
        [mine.lon.mean(), mine.lon.std(ddof=0), mine.lat.mean(), mine.lat.std(ddof=0)], abs=1e-3
    )
    trainer = Trainer(spec.build(), plan.checkpoint.normalisation, plan.recipe, 1, torch.device("cpu"))
    batch = next(iter(reader.epoch(0)))
    places = mine.set_index("sample_id").loc[batch.rows["sample_id"], ["lon", "lat"]].to_numpy()
    np.testing.assert_allclose(batch.place_b2, places, atol=2e-4)
    expected = trainer.logits(batch)[0].sigmoid().numpy()
    classifier = Network(replace(plan.checkpoint, weights=trainer.published.state_dict()))
    by_id = {name: i for i, name in enumerate(batch.rows["sample_id"])}
    train = ShardReader(shard_uris(run.folder, "train"), batch_size=10, shuffle=False)
    for tile in plan_tiles(train, 16)[:5]:
        found = classifier.probabilities(read_tile(train, tile))
        np.testing.assert_allclose(found, expected[by_id[tile.roi_id]], rtol=1e-4)


def test_a_network_with_context_is_told_no_places(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", **{"model.places": True, "model.width": 4})
    import_series([write(tmp_path / "a.parquet", long_table(30))], run)
    with pytest.raises(InputError, match=r"model\.places"):
        make_plan(run, "finetune")
