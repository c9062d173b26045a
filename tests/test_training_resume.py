"""A training is taken up only where it was begun: on the same data, with the same settings."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.train

from cropray.models.checkpoint import Checkpoint, save_checkpoint
from cropray.models.dual_unet3d import NetworkSpec
from cropray.models.normalisation import FixedNormalisation
from cropray.storage import Folder
from cropray.training.driver_worker import _resume
from cropray.types import InputError

SPEC = NetworkSpec(n_classes=2, width=2, months=2)


def checkpoint(fingerprint: str, lr: float) -> Checkpoint:
    return Checkpoint(
        classes=("maize", "pea"),
        network=SPEC,
        normalisation=FixedNormalisation(),
        window={"anchor": "harvest", "months": 2, "lead_months": 1, "as_of": None},
        s1_quantity="gamma0",
        weights=SPEC.build().state_dict(),
        recipe={"stage": "finetune", "lr": lr},
        data_fingerprint=fingerprint,
    )


@pytest.mark.parametrize(
    "wanted", [checkpoint("other", 0.1), checkpoint("data", 0.2)], ids=["data", "settings"]
)
def test_a_training_of_other_data_or_settings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: Checkpoint
) -> None:
    save_checkpoint(checkpoint("data", 0.1), Folder(str(tmp_path)))

    @contextmanager
    def as_directory() -> Iterator[str]:
        yield str(tmp_path)

    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: SimpleNamespace(as_directory=as_directory))
    with pytest.raises(InputError, match=r"checkpoints/finetune .* other data or"):
        _resume(SimpleNamespace(), replace(wanted, weights={}))
