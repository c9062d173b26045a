"""Settings of networks, trainings and evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cropray.config.section import Section


class ModelConfig(Section):
    """The dual 3-D U-Net; width 64 is the published network."""

    width: int = Field(64, ge=2, multiple_of=2)
    stem: int | None = Field(None, ge=1, description="channels that all months become; None: width / 2")
    normalisation: Literal["fixed", "seed"] = "fixed"


class TrainConfig(Section):
    """One training; `unlabelled` says what pixels without a label are to the loss."""

    epochs: int = Field(11, ge=1)
    batch_size: int = Field(16, ge=1, description="samples a step, of all workers together")
    lr: float = Field(1e-3, gt=0)
    head_lr: float | None = Field(None, gt=0, description="of a new head; None: as lr")
    weight_decay: float = Field(0.0, ge=0)
    optimizer: Literal["adam", "adamw"] = "adamw"
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    unlabelled: Literal["negative", "ignore", "own_crop"] = "ignore"
    own_crop_weight: float = Field(0.3, ge=0)
    cross_negatives: bool = True
    augment: bool = True
    min_labelled_fraction: float = Field(0.0, ge=0, le=1)
    init: str = Field("", description="checkpoint folder or models:/ URI whose body to start from")
    workers: int = Field(1, ge=1)
    threads: int = Field(0, ge=0, description="torch threads a worker; 0: its share of the CPUs")
    store_every: int = Field(1, ge=1, description="epochs between validations and checkpoints")
    max_failures: int = Field(2, ge=0)


class EvaluateConfig(Section):
    model: str = Field("", description="checkpoint or models:/ URI; empty: the run's own last one")
    baselines: bool = True
    forest_trees: int = Field(100, ge=1)
    forest_pixels: int = Field(50_000, ge=100)
    bootstrap: int = Field(1000, ge=0)
