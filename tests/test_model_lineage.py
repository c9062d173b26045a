"""Lineage, STAC item, example and requirements of a registered model."""

import json
import os
import re
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import torch
from jsonschema import Draft7Validator
from pystac.extensions.mlm import MLMExtension
from pystac.validation.stac_validator import JsonSchemaSTACValidator

from cropray.bands import NODATA
from cropray.config import Config
from cropray.config.load import updated
from cropray.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, weights_checksum
from cropray.models.inference import stored_inputs
from cropray.models.normalisation import SeedNormalisation
from cropray.run import Run
from cropray.shards.file import fingerprint, shard_uris
from cropray.storage import Folder
from cropray.tracking.documents import model_card, model_item
from cropray.tracking.lineage import checkpoint_id, git_state, lineage, tags
from cropray.tracking.packaging import example, requirements
from tests.lands import ready_run, small_checkpoint

NOW = datetime(2026, 5, 4, tzinfo=UTC)
RECIPE = {
    "stage": "finetune",
    "init": "models:/cropray-pretrained@candidate",
    "unlabelled": "ignore",
    "epochs": 5,
}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return replace(small_checkpoint((0.25, 0.5)), recipe=RECIPE, data_fingerprint="d1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint) -> Run:
    """A run that was trained: its record names the shards and the weights that it started from."""
    run = ready_run(str(tmp_path_factory.mktemp("run")))
    save_checkpoint(checkpoint, run.folder.child("models/finetune"))
    uris = shard_uris(run.folder, "train") + shard_uris(run.folder, "val")
    run.finish("finetune", {}, {"shards": fingerprint(uris), "the checkpoint to start from": "w0"})
    return run


def facts_of(run: Run, folder: str = "models/finetune") -> dict[str, Any]:
    place = run.folder.child(folder)
    return lineage(run, "finetune", place, load_checkpoint(place))


def test_lineage_names_data_shards_settings_parent_and_code(run: Run) -> None:
    facts = facts_of(run)
    folder = run.folder.child("models/finetune")
    assert facts["data_fingerprint"] == "d1"
    assert facts["recipe"] == RECIPE
    assert facts["weights_xxh3"] == weights_checksum(folder)
    assert facts["parent"] == {"reference": RECIPE["init"], "weights_xxh3": "w0"}
    assert {split: list(files) for split, files in facts["shards"].items()} == {
        "train": ["00000.parquet"],
        "val": ["00000.parquet"],
    }
    assert facts["shards"]["train"] != facts["shards"]["val"]
    known = tags(facts)
    assert known["cropray.parent"] == RECIPE["init"]
    assert known["cropray.shards.train"].startswith("1: ")
    assert json.loads(known["cropray.recipe"]) == RECIPE
    assert all(known.values())
    assert json.loads(json.dumps(facts)) == facts


def test_the_configuration_of_a_model_comes_from_its_records(run: Run) -> None:
    config = facts_of(Run(run.folder, Config()))["config"]
    settings = run.config.model_dump(mode="json")
    sections = {"rois", "source", "window", "labels", "shards", "model", "finetune"}
    assert {name: config[name] for name in sections} == {name: settings[name] for name in sections}
    assert config["source"]["kind"] == "simulated" != Config().source.kind
    assert (config["classes"], config["seed"]) == (["maize", "pea"], 0)
    assert config.keys().isdisjoint({"tracking", "ray", "evaluate", "predict"})  # no model comes of these


def test_a_model_of_a_sweep_comes_from_its_best_trial(tmp_path: Path, checkpoint: Checkpoint) -> None:
    run = ready_run(str(tmp_path))
    settings = {
        "tune.name": "first",
        "tune.space": {"finetune.lr": {"choice": [0.1, 0.2]}, "model.width": {"choice": [2, 8]}},
        "finetune.init": RECIPE["init"],
    }
    sweeping = Run(run.folder, updated(run.config, settings))
    uris = shard_uris(run.folder, "train") + shard_uris(run.folder, "val")
    sweeping.claim("tune", {"shards": fingerprint(uris), "the checkpoint to start from": "w0"})
    trials = [{"values": {"finetune.lr": 0.2, "model.width": 8}}, {"values": {"finetune.lr": 0.1}}]
    run.folder.write_text("tune/first/sweep.json", json.dumps({"trials": trials}))
    trained = replace(checkpoint, recipe=RECIPE | {"lr": 0.2})
    save_checkpoint(trained, run.folder.child("tune/first/model"))

    facts = facts_of(run, "tune/first/model")
    assert list(facts["shards"]) == ["train", "val"]
    assert facts["run"] == run.folder.uri
    assert facts["parent"] == {"reference": RECIPE["init"], "weights_xxh3": "w0"}
    assert (facts["config"]["finetune"]["lr"], facts["config"]["model"]["width"]) == (0.2, 8)
    assert facts["config"]["source"]["kind"] == "simulated"
    assert "simulated world" in model_card("cropray", trained, facts, [])

    save_checkpoint(replace(trained, recipe=RECIPE | {"init": "w1"}), run.folder.child("tune/first/model"))
    assert facts_of(run, "tune/first/model")["parent"] == {"reference": "w1", "weights_xxh3": None}
    run.folder.delete("tune/first/summary.json")
    assert facts_of(run, "tune/first/model")["config"] is None


def test_other_thresholds_make_another_checkpoint(run: Run, checkpoint: Checkpoint) -> None:
    other = run.folder.child("models/other")
    save_checkpoint(replace(checkpoint, thresholds=(0.3, 0.5)), other)
    assert weights_checksum(other) == weights_checksum(run.folder.child("models/finetune"))
    assert checkpoint_id(other) != checkpoint_id(run.folder.child("models/finetune"))
    facts = facts_of(run, "models/other")  # made elsewhere, for all that is known
    assert facts["shards"] is facts["config"] is facts["run"] is None
    assert "cropray.run" not in tags(facts)


def test_shards_that_a_model_was_not_trained_on_are_not_named(tmp_path: Path, checkpoint: Checkpoint) -> None:
    run = ready_run(str(tmp_path))
    save_checkpoint(checkpoint, run.folder.child("models/finetune"))
    run.finish("finetune", {}, {"shards": "those of before compaction ran again"})
    assert facts_of(run)["shards"] is None


def test_the_commit_is_read_from_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROPRAY_GIT_COMMIT", raising=False)
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert git_state(package) is None

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", *identity, "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert git_state(package) is None  # as an installed package in somebody's checkout
    git("add", ".")
    git("commit", "-q", "-m", "first")
    assert git_state(package) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (package / "__init__.py").write_text("changed = True")
    assert git_state(package) == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    monkeypatch.setenv("CROPRAY_GIT_COMMIT", "another")
    assert git_state(package) == {"commit": git("rev-parse", "HEAD"), "dirty": True}


def test_a_variable_names_the_commit_where_there_is_no_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for where in (os.environ["PATH"], ""):  # with git and without
        monkeypatch.setenv("PATH", where)
        monkeypatch.delenv("CROPRAY_GIT_COMMIT", raising=False)
        assert git_state(tmp_path) is None
        monkeypatch.setenv("CROPRAY_GIT_COMMIT", "0a1b2c3d")
        assert git_state(tmp_path) == {"commit": "0a1b2c3d", "dirty": False}
        monkeypatch.setenv("CROPRAY_GIT_COMMIT", "0a1b2c3d-dirty")
        assert git_state(tmp_path) == {"commit": "0a1b2c3d", "dirty": True}


# What versions 1.4.0 and 1.5.0 of the extension require of an item, written after their JSON schemas, which
# refer to others on the network. pystac brings the schema of the core.
_DIMENSIONS = {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"pattern": "^[a-z-_]+$"}}
_STRUCTURE = {
    "type": "object",
    "required": ["shape", "dim_order", "data_type"],
    "properties": {
        "shape": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": -1}},
        "dim_order": _DIMENSIONS,
        "data_type": {"enum": ["int16", "float32"]},
    },
}
_SCALING = {
    "oneOf": [
        {"required": ["mean", "stddev"], "properties": {"type": {"const": "z-score"}}},
        {"required": ["format", "expression"], "properties": {"type": {"const": "processing"}}},
    ]
}
_TASKS = {"type": "array", "uniqueItems": True, "items": {"enum": ["semantic-segmentation"]}}
_INPUT = {
    "required": ["name", "bands", "input"],
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "bands": {"type": "array", "items": {"type": "string", "minLength": 1}},
        "input": _STRUCTURE,
        "value_scaling": {"type": "array", "minItems": 1, "items": _SCALING},
        "resize_type": {"type": "null"},
    },
}
_CLASS = {
    "required": ["value", "name"],
    "properties": {"value": {"type": "integer"}, "name": {"pattern": "^[0-9A-Za-z-_]+$"}},
}
_OUTPUT = {
    "required": ["name", "tasks", "result"],
    "properties": {
        "tasks": _TASKS,
        "result": _STRUCTURE,
        "classification:classes": {"type": "array", "minItems": 1, "items": _CLASS},
    },
}
_MLM = {
    "required": ["mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"],
    "properties": {
        "mlm:name": {"type": "string", "pattern": r"^[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]$"},
        "mlm:architecture": {"type": "string"},
        "mlm:tasks": _TASKS,
        "mlm:framework": {"const": "PyTorch"},
        "mlm:framework_version": {"pattern": r"^\d+\.\d+\.\d+$"},
        "mlm:memory_size": {"type": "integer", "minimum": 0},
        "mlm:total_parameters": {"type": "integer", "minimum": 0},
        "mlm:pretrained": {"type": "boolean"},
        "mlm:pretrained_source": {"type": ["string", "null"]},
        "mlm:accelerator": {"type": "null"},
        "mlm:accelerator_constrained": {"type": "boolean"},
        "mlm:input": {"type": "array", "minItems": 1, "items": _INPUT},
        "mlm:output": {"type": "array", "minItems": 1, "items": _OUTPUT},
        "mlm:hyperparameters": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": False,
            "patternProperties": {"^[0-9a-zA-Z_.-]+$": {}},
        },
    },
    "patternProperties": {"^(?!mlm:)": {}},
    "additionalProperties": False,
}


_MODEL_ASSET = {"properties": {"roles": {"contains": {"const": "mlm:model"}}}, "required": ["roles"]}
MLM_ITEM = {
    "required": ["type", "properties", "assets", "stac_extensions"],
    "properties": {
        "properties": {"allOf": [_MLM, {"required": ["bands"]}]},
        "assets": {
            "additionalProperties": {
                "if": _MODEL_ASSET,
                "then": {"required": ["mlm:artifact_type"]},
                "else": {"not": {"required": ["mlm:artifact_type"]}},
            }
        },
        "stac_extensions": {"contains": {"pattern": "/mlm/v1[.]4[.]0/schema[.]json$"}},
    },
}


@pytest.mark.parametrize("name", ["cropray", "farmer's crops", "2024", "x", "blé", "crops_", "é"])
@pytest.mark.parametrize("normalisation", [None, SeedNormalisation()])
def test_the_stac_item_is_valid_as_a_whole(checkpoint: Checkpoint, normalisation: object, name: str) -> None:
    made = checkpoint if normalisation is None else replace(checkpoint, normalisation=normalisation)
    made = replace(made, classes=('dry pulses, "vegetables"', "maïs & <soja>"))
    data = json.loads(json.dumps(model_item(made, name, NOW)))
    JsonSchemaSTACValidator().validate_core(data, pystac.STACObjectType.ITEM, data["stac_version"])
    Draft7Validator(MLM_ITEM).validate(data)
    assert data["properties"]["datetime"] == "2026-05-04T00:00:00Z"
    assert [asset for asset in data["assets"].values() if "mlm:model" in asset["roles"]]
    assert data["id"] == name
    titles = [entry["title"] for entry in data["properties"]["mlm:output"][0]["classification:classes"]]
    assert titles == list(made.classes)


def test_the_item_describes_the_inputs_and_outputs_of_the_model(checkpoint: Checkpoint) -> None:
    named = replace(checkpoint, classes=("dry pulses, vegetables", "maize"))
    item = pystac.Item.from_dict(model_item(named, "farmer's crops", NOW))
    mlm = MLMExtension.ext(item)
    described = {band["name"] for band in item.properties["bands"]}
    s1, s2 = mlm.input
    for given, example_values, bands in (
        (s1, example(named)["s1"], named.s1_bands),
        (s2, example(named)["s2"], named.s2_bands),
    ):
        assert given.properties["bands"] == list(bands)
        assert set(bands) <= described
        shape = given.input.shape
        assert [a == b or a == -1 for a, b in zip(shape, example_values.shape, strict=True)] == [True] * 5
        assert given.input.dim_order == ["batch", "bands", "time", "height", "width"]
        assert len(given.properties["value_scaling"]) == len(bands)
    assert mlm.output[0].result.shape == [-1, 2, -1, -1]
    classes = item.properties["mlm:output"][0]["classification:classes"]
    assert [entry["title"] for entry in classes] == list(named.classes)
    # The scaling is that of the normalisation, on stored values, wherever it does not clip.
    values = np.array([500, 900, 1100, 1500, 2000, 2500, 3000, 3100, 2000, 1500], np.int16)
    scaling = s2.properties["value_scaling"]
    wanted = [(v - s["mean"]) / s["stddev"] for v, s in zip(values, scaling, strict=True)]
    patch = torch.from_numpy(np.broadcast_to(values[None, :, None, None, None], (1, 10, 2, 16, 16)).copy())
    normalised = named.normalisation.apply(torch.zeros(1, 2, 2, 16, 16, dtype=torch.int16), patch)[1]
    np.testing.assert_allclose(normalised[0, :, 0, 0, 0], wanted, atol=1e-4)
    total = sum(parameter.numel() for parameter in named.build().parameters())
    assert mlm.total_parameters == total
    assert re.fullmatch("[a-zA-Z0-9_.\\- ]+", mlm.mlm_name)


def test_the_model_accepts_the_example(checkpoint: Checkpoint) -> None:
    given = example(checkpoint)
    s1, s2 = stored_inputs(checkpoint, given)
    assert s1.shape == (1, 2, 2, 16, 16)
    assert (s2[:, :, 0] == NODATA).all()
    assert not (s2[:, :, 1:] == NODATA).any()


def test_requirements_are_exact_and_on_an_index() -> None:
    assert all(re.fullmatch(r"[a-z0-9]+==[0-9][0-9a-z.]*", line) for line in requirements())


def test_a_checkpoint_by_uri_has_an_id(checkpoint: Checkpoint) -> None:
    folder = Folder("memory://lineage/models/finetune")
    save_checkpoint(checkpoint, folder)
    assert len(checkpoint_id(folder)) == 16
