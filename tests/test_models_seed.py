import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from cropray.cli import main
from cropray.errors import InputError
from cropray.models.checkpoint import describe_checkpoint, load_checkpoint
from cropray.models.dual_unet3d import NetworkSpec
from cropray.models.inference import Predictor
from cropray.models.normalisation import SeedNormalisation
from cropray.models.seed import EUROPE_CLASSES, IRAN_CLASSES, from_seed, import_seed
from cropray.storage import Folder
from tests.conftest import ROOT
from tests.seed_network import drawn, finetuned_layout, layout, preprocess, probabilities

Tensors = dict[str, torch.Tensor]
KINDS = {"pretrained": layout, "finetuned": finetuned_layout}


def tensors(kind: str = "pretrained", width: int = 4) -> Tensors:
    shapes = KINDS[kind](width=width, stem=width, months=6)
    return {name: torch.from_numpy(x) for name, x in drawn(shapes).items()}


def saved(tmp_path: Path, content: Any, **how: Any) -> str:
    path = tmp_path / "weights.pth"
    torch.save(content, path, **how)
    return str(path)


def patch(size: int = 32) -> tuple[Any, Any]:
    """Stored integers beyond every clipping limit, with gaps of whole months and single pixels."""
    rng = np.random.default_rng(3)
    s1 = rng.integers(-3500, 1800, (2, 6, size, size)).astype(np.int16)
    s2 = rng.integers(-200, 12_000, (10, 6, size, size)).astype(np.int16)
    s1[:, 2, : size // 2] = s1[:, 4] = -32768
    s1[0, 4, 0, 0] = s1[1, 4, 0, 0] = -2000  # else the month would be constant
    s2[:, 0, 5:9, 3] = s2[:, 3] = -32768
    return s1, s2


def test_the_layout_of_these_tests_is_the_published_one(shared_data: Path) -> None:
    pretrained, finetuned = json.loads((shared_data / "seed_checkpoint_layout.json").read_text()).values()
    for published, ours in ((pretrained, layout()), (finetuned, finetuned_layout())):
        assert {name: tuple(shape) for name, shape in published.items()} == ours


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_imported_network_computes_what_the_description_says(kind: str, tmp_path: Path) -> None:
    state = tensors(kind)
    import_seed(saved(tmp_path, state), str(tmp_path / "model"))
    s1, s2 = patch()
    ours = Predictor(load_checkpoint(Folder(str(tmp_path / "model")))).probabilities(s1[None], s2[None])[0]
    arrays = {name: x.numpy() for name, x in state.items()}
    theirs = probabilities(arrays, *preprocess(s1, s2), finetuned=kind == "finetuned")
    assert theirs.std(axis=(1, 2)).max() > 0.05  # else a network that looks at nothing would pass
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_the_description_is_sensitive_to_the_order_of_what_is_joined() -> None:
    arrays = drawn(layout(width=4, stem=4))
    s1, s2 = preprocess(*patch())
    before = probabilities(arrays, s1, s2, finetuned=False)
    weight = arrays["final_conv.weight"]
    arrays["final_conv.weight"] = np.concatenate([weight[:, 4:], weight[:, :4]], axis=1)
    assert np.abs(probabilities(arrays, s1, s2, finetuned=False) - before).max() > 0.01


def test_at_full_width_all_62134293_parameters_are_taken_over() -> None:
    state = {name: torch.zeros(shape) for name, shape in layout().items()}
    checkpoint = from_seed(state, "weights.pth")
    network = checkpoint.build()
    assert sum(p.numel() for p in network.parameters()) == 62_134_293
    assert checkpoint.network == NetworkSpec(21)  # what a fine-tuning of width 64 can start from


@pytest.mark.parametrize(
    ("kind", "classes", "thresholds"),
    [("pretrained", EUROPE_CLASSES, None), ("finetuned", IRAN_CLASSES, (0.35,) * 8)],
)
def test_the_checkpoint_says_all_that_is_known_of_the_published_network(
    kind: str, classes: tuple[str, ...], thresholds: tuple[float, ...] | None
) -> None:
    checkpoint = from_seed(tensors(kind), "weights.pth")
    assert checkpoint.classes == classes
    assert checkpoint.thresholds == thresholds
    assert checkpoint.normalisation == SeedNormalisation()
    assert checkpoint.window == {"anchor": "harvest", "months": 6, "lead_months": 1, "as_of": None}
    assert checkpoint.s1_quantity == "sigma0"
    assert checkpoint.recipe["recipe"] == "seed"


@pytest.mark.parametrize(("file", "classes"), [("europe", EUROPE_CLASSES), ("iran", IRAN_CLASSES)])
def test_classes_and_imagery_are_those_of_the_shipped_configurations(
    file: str, classes: tuple[str, ...]
) -> None:
    config = yaml.safe_load((ROOT / f"configs/{file}.yaml").read_text())
    imagery = from_seed(tensors(), "weights.pth").imagery
    assert tuple(config["classes"]) == classes
    assert config["composite"]["scl_invalid"] == imagery["composite"]["scl_invalid"]
    assert config["grid"]["crs"] == imagery["grid"]["crs"]


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: {"epoch": 4, "state_dict": state},
        lambda state: {"model_state_dict": state, "optimizer": {}},
        lambda state: {f"module.{name}": x for name, x in state.items()},
        lambda state: {"state_dict": {f"_orig_mod.module.{name}": x for name, x in state.items()}},
        lambda state: {name.replace("dualunet3d.", "dualunet3d.module."): x for name, x in state.items()},
        lambda state: {name: x.double() if x.is_floating_point() else x for name, x in state.items()},
    ],
)
def test_what_training_loops_wrap_around_the_weights_is_taken_off(
    kind: str, wrapped: Callable[[Tensors], Any]
) -> None:
    plain = from_seed(tensors(kind), "weights.pth").weights
    found = from_seed(wrapped(tensors(kind)), "weights.pth").weights
    assert plain.keys() == found.keys()
    assert all(torch.equal(x, found[name]) and x.dtype == found[name].dtype for name, x in plain.items())


def without(state: Tensors, name: str) -> Tensors:
    return {key: x for key, x in state.items() if key != name}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            lambda s: without(s, "unet3d_s1.unet.ups.6.bias"),
            r"Missing.*unet3d_s1\.unet\.ups\.6\.bias",
        ),
        (lambda s: without(s, "final_conv.weight"), r"Missing.*final_conv\.weight"),
        (lambda s: s | {"extra.weight": torch.zeros(3)}, r"Unexpected.*extra\.weight"),
        (
            lambda s: s | {"unet3d_s1.unet.ups.6.bias": torch.zeros(3)},
            r"unet3d_s1\.unet\.ups\.6\.bias.*\[3\].*\[4\]",
        ),
        (
            lambda s: s | {"final_conv.weight": torch.zeros(5, 8, 1, 1)},
            r"final_conv\.weight.*\[5,.*\[21,",
        ),
        (lambda s: s | {"final_conv.bias": torch.full((21,), torch.nan)}, "not finite: final_conv.bias"),
        (lambda s: s | {"epoch": 4}, "'epoch' is "),
        (lambda s: {"weights": s}, "'weights' is dict"),
        (lambda s: s | {"module.final_conv.bias": torch.zeros(21)}, "names occur twice"),
        (lambda _: [1, 2], "holds no tensors of a network by name .*list"),
        (lambda _: {}, "holds no tensors of a network by name"),
    ],
)
def test_what_is_not_the_published_layout_is_refused_by_name(
    content: Callable[[Tensors], Any], said: str
) -> None:
    with pytest.raises(InputError, match=rf"^weights\.pth.*{said}"):
        from_seed(content(tensors()), "weights.pth")


class Harmful:
    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Harmful, "ran", True))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_needs_code_is_refused_and_nothing_of_it_runs(tmp_path: Path, legacy: bool) -> None:
    for content in ({"state_dict": tensors(), "args": Harmful()}, torch.nn.Linear(2, 2)):
        file = saved(tmp_path, content, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(InputError, match=r"is refused: .*would run code \(Unsupported"):
            import_seed(file, str(tmp_path / "model"))
    assert not Harmful.ran
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_file_cut_short_is_refused(tmp_path: Path, share: float, legacy: bool) -> None:
    file = Path(saved(tmp_path, tensors(), _use_new_zipfile_serialization=not legacy))
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(
        InputError, match=r"weights\.pth (is damaged|is not a file of torch\.save|is refused)"
    ):
        import_seed(str(file), str(tmp_path / "model"))


def test_a_file_that_is_not_there_or_no_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the weights .*none\.pth: No such file"):
        import_seed(str(tmp_path / "none.pth"), str(tmp_path / "model"))
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(InputError, match=r"not a file of torch\.save: it begins with b'<htm'"):
        import_seed(str(tmp_path / "page.pth"), str(tmp_path / "model"))


def test_a_checkpoint_is_not_written_over(tmp_path: Path) -> None:
    file, out = saved(tmp_path, tensors()), str(tmp_path / "model")
    import_seed(file, out)
    with pytest.raises(InputError, match="holds a checkpoint already; give another --out"):
        import_seed(file, out)


def test_the_commands_import_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = saved(tmp_path, tensors("finetuned")), str(tmp_path / "model")
    outputs = []
    for arguments in (["import-seed", file, "--out", out], ["show", out]):
        with pytest.raises(SystemExit) as end:
            main(["checkpoint", *arguments])
        assert not end.value.code
        outputs.append(json.loads(capsys.readouterr().out))
    assert outputs[0] == outputs[1] == json.loads(json.dumps(describe_checkpoint(out)))
    assert outputs[0]["classes"] == list(IRAN_CLASSES)
    assert outputs[0]["recipe"]["file"] == "weights.pth"
    assert outputs[0]["parameters"] == sum(
        p.numel() for p in load_checkpoint(Folder(out)).build().parameters()
    )
