"""Named recipes of training: sets of values that stand in for the settings that a configuration leaves out.

`seed` are the values of the published system, as far as they are known; batch size and rate of its
pretraining are not, and are those of its fine-tuning. With it goes `model.normalisation: seed`.

`modern` takes decoupled weight decay (Loshchilov and Hutter 2019), a warm-up and half a cosine
(Loshchilov and Hutter 2017), symmetries of the square, a moving average of the weights, higher rates, and
learns nothing from unlabelled pixels. `benchmarks/recipes.py` compares them, and its table says what else
was tried: rare crops shown more often, and weak negatives, which `unlabelled` and `balance` still give.
Its rates are those of a narrow network (width 8) and small batches.
"""

from __future__ import annotations

from typing import Any, Literal

Stage = Literal["pretrain", "finetune"]
RecipeName = Literal["seed", "modern"]

_SEED = {
    "batch_size": 16,
    "optimizer": "adam",
    "schedule": "constant",
    "warmup_fraction": 0.0,
    "weight_decay": 0.0,
    "augment": False,
    "unlabelled": "negative",
    "min_labelled_fraction": 0.0,
}
_MODERN = {
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "schedule": "cosine",
    "warmup_fraction": 0.05,
    "augment": True,
    "ema": 0.99,
}
RECIPES: dict[RecipeName, dict[Stage, dict[str, Any]]] = {
    "seed": {
        "pretrain": {**_SEED, "epochs": 11, "lr": 1e-4},
        "finetune": {**_SEED, "epochs": 5, "lr": 1e-5, "head_lr": 1e-4, "threshold": 0.35},
    },
    "modern": {
        "pretrain": {**_MODERN, "epochs": 11, "batch_size": 16, "lr": 4e-3, "unlabelled": "ignore"},
        "finetune": {
            **_MODERN,
            "epochs": 5,
            "batch_size": 16,
            "lr": 4e-4,
            "head_lr": 2e-3,
            "unlabelled": "ignore",
        },
    },
}
