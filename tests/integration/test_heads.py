"""Several class lists on one body, through the stages: kept from a checkpoint, learnt beside, chosen."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cropray.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cropray.models.dual_unet3d import MAIN
from cropray.storage import Folder
from cropray.training.driver import finetune
from cropray.training.plan import make_plan
from tests.training_data import CLASSES, make_run, write_split

pytestmark = pytest.mark.usefixtures("ray_local")
EUROPE = ("rye", "oats")


def pretrained(folder: Folder) -> Checkpoint:
    """A checkpoint of other classes than the shards'."""
    plan = make_plan(make_run(folder), "pretrain")
    spec = replace(plan.checkpoint.network, n_classes=len(EUROPE))
    torch.manual_seed(0)
    weights = spec.build().state_dict()
    return replace(plan.checkpoint, classes=EUROPE, network=spec, weights=weights, thresholds=(0.2, 0.4))


def test_a_head_is_kept_another_learns_beside_and_a_threshold_that_is_set_holds(tmp_path: Path) -> None:
    folder, beside, init = (Folder(str(tmp_path / name)) for name in ("run", "beside", "init"))
    for split, samples in (("train", 16), ("val", 6)):
        write_split(folder, split, samples)
    write_split(beside, "train", 8, seed=1)
    first = pretrained(folder)
    save_checkpoint(first, init)
    run = make_run(
        folder,
        epochs=1,
        init=init.uri,
        keep_heads="europe",
        threshold=0.35,
        also=[{"run": "run:../beside", "head": "fields", "weight": 0.5}],
    )
    finetune(run)
    made = load_checkpoint(folder.child("models/finetune"))
    lists = {name: labels.classes for name, labels in made.label_sets.items()}
    assert lists == {MAIN: CLASSES, "europe": EUROPE, "fields": CLASSES}
    assert made.decision().score_thresholds == pytest.approx((0.35, 0.35, 0.35))  # whatever the calibration
    assert made.heads["europe"].thresholds == (0.2, 0.4)
    assert torch.equal(made.weights["heads.europe.weight"], first.weights["final_conv.weight"])
    body = "unet3d_s2.unet.downs.0.conv.0.weight"
    assert not torch.equal(made.weights[body], first.weights[body])
