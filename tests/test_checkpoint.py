import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cropray.errors import InputError
from cropray.models.checkpoint import (
    Checkpoint,
    LabelSet,
    check_classes,
    load_checkpoint,
    save_checkpoint,
    weights_checksum,
)
from cropray.models.dual_unet3d import HeadSpec, NetworkSpec
from cropray.models.heads import with_head
from cropray.models.normalisation import SeedNormalisation
from cropray.storage import Folder


def make_checkpoint() -> Checkpoint:
    spec = NetworkSpec(2, width=4, months=3, head="conv", heads=(HeadSpec("europe", 3),))
    return Checkpoint(
        classes=("maize", "onion"),
        network=spec,
        normalisation=SeedNormalisation(),
        window={"anchor": "harvest", "months": 3, "lead_months": 1, "as_of": None},
        s1_quantity="sigma0",
        weights=spec.build().state_dict(),
        recipe={"stage": "finetune", "lr": 1e-5},
        thresholds=(0.25, 0.75),
        heads={"europe": LabelSet(("rye", "oats", "maize"), (0.5, 0.25, 0.75))},
        periods=(("2022-02-01", "2022-03-01"), ("2022-03-01", "2022-04-01"), ("2022-04-01", "2022-05-01")),
        data_fingerprint="ab12",
    )


@pytest.fixture
def saved(tmp_path: Path) -> Folder:
    folder = Folder(str(tmp_path / "model"))
    save_checkpoint(make_checkpoint(), folder)
    return folder


def test_what_is_saved_is_what_is_loaded(saved: Folder) -> None:
    loaded, made = load_checkpoint(saved), make_checkpoint()
    assert replace(loaded, weights={}) == replace(made, weights={})
    again = Folder(f"{saved.uri}-again")
    save_checkpoint(loaded, again)
    for name in saved.names():
        assert again.read_bytes(name) == saved.read_bytes(name)
    assert loaded.months == 3


def test_the_built_network_has_the_weights_and_is_in_evaluation_mode(saved: Folder) -> None:
    loaded = load_checkpoint(saved)
    network = loaded.build()
    assert not network.training
    assert all(torch.equal(x, loaded.weights[name]) for name, x in network.state_dict().items())


def test_a_checkpoint_is_json_and_safetensors_and_nothing_else(saved: Folder) -> None:
    assert saved.names() == ["checkpoint.json", "weights.safetensors"]
    json.loads(saved.read_text("checkpoint.json"))


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _emptied(_data: bytes) -> bytes:
    return b""


def _not_text(_data: bytes) -> bytes:
    return b"\xff\xfe"


def _a_list(_data: bytes) -> bytes:
    return b"[]"


@pytest.mark.parametrize("damage", [_cut, _flipped, _emptied])
def test_damaged_weights_are_refused_by_name(saved: Folder, damage: Callable[[bytes], bytes]) -> None:
    saved.write_bytes("weights.safetensors", damage(saved.read_bytes("weights.safetensors")))
    with pytest.raises(InputError, match=r"weights\.safetensors is damaged"):
        load_checkpoint(saved)


@pytest.mark.parametrize("damage", [_cut, _emptied, _not_text, _a_list])
def test_a_damaged_description_is_refused_by_name(saved: Folder, damage: Callable[[bytes], bytes]) -> None:
    saved.write_bytes("checkpoint.json", damage(saved.read_bytes("checkpoint.json")))
    for read in (load_checkpoint, weights_checksum):
        with pytest.raises(InputError, match=r"checkpoint\.json is"):
            read(saved)


def edit(folder: Folder, **changes: object) -> None:
    data = json.loads(folder.read_text("checkpoint.json"))
    data.update(changes)
    folder.write_text("checkpoint.json", json.dumps({k: v for k, v in data.items() if v != "absent"}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 99}, "format version 99, this cropray reads 1"),
        ({"format": "other"}, "is not a cropray-checkpoint"),
        ({"classes": "absent"}, "lacks or mistypes 'classes'"),
        ({"network": {"depth": 3}}, "lacks or mistypes"),
        ({"network": {"n_classes": 2, "width": 8, "months": 3, "head": "conv"}}, "do not fit"),
        ({"classes": ["maize"]}, "do not fit"),
        ({"thresholds": [0.5]}, "1 thresholds for 2 classes"),
        ({"heads": {}}, "do not fit"),
        ({"heads": {"europe": {"classes": ["rye"], "thresholds": None}}}, "do not fit"),
        (
            {"heads": {"europe": {"classes": ["a", "b", "c"], "thresholds": [0.5]}}},
            "1 thresholds for 3 classes",
        ),
        ({"heads": {"europe": {"classes": ["a", "b", "c"]}}}, "lacks or mistypes 'thresholds'"),
        ({"normalisation": {"kind": "other"}}, "normalisation .* is unknown"),
    ],
)
def test_a_description_that_does_not_hold_is_refused(
    saved: Folder, changes: dict[str, object], said: str
) -> None:
    edit(saved, **changes)
    with pytest.raises(InputError, match=said):
        load_checkpoint(saved)


def test_a_checkpoint_from_before_there_were_several_heads_is_read(tmp_path: Path) -> None:
    one = with_head(make_checkpoint(), "main", "x")
    folder = Folder(str(tmp_path))
    save_checkpoint(replace(one, periods=()), folder)
    edit(folder, heads="absent", periods="absent", network={**vars(one.network), "heads": []})
    assert load_checkpoint(folder).describe() == replace(one, periods=()).describe()


def test_a_missing_file_is_named(saved: Folder) -> None:
    saved.delete("weights.safetensors")
    with pytest.raises(InputError, match=r"no weights\.safetensors in"):
        load_checkpoint(saved)


def test_a_checkpoint_of_another_class_list_is_refused() -> None:
    checkpoint = make_checkpoint()
    check_classes(checkpoint, ["maize", "onion"], "models/x")
    for other in (["onion", "maize"], ["maize"], ["maize", "onion", "pea"]):
        with pytest.raises(InputError, match=r"models/x is of another class list: maize, onion"):
            check_classes(checkpoint, other, "models/x")
