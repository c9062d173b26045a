"""Settings of networks, trainings, sweeps and evaluation."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from cropray.config.section import Name, Section

Stage = Literal["pretrain", "finetune"]
RecipeName = Literal["seed", "modern"]
Calibration = Literal["none", "temperature", "bias"]
Baseline = Literal["forest", "logistic", "boosting", "majority"]
ThresholdRule = Literal["common", "shrunk", "class"]

_SEED = {
    "batch_size": 16,
    "optimizer": "adam",
    "schedule": "constant",
    "warmup_fraction": 0.0,
    "weight_decay": 0.0,
    "augment": False,
    "unlabelled": "negative",
    "min_labelled_fraction": 0.0,
    "calibration": "none",
    "threshold_rule": "class",
}
_MODERN = {
    "batch_size": 16,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "schedule": "cosine",
    "warmup_fraction": 0.05,
    "augment": True,
    "ema": 0.99,
    "unlabelled": "ignore",
}
RECIPES: dict[RecipeName, dict[Stage, dict[str, Any]]] = {
    "seed": {
        "pretrain": {**_SEED, "epochs": 11, "lr": 1e-4},
        "finetune": {**_SEED, "epochs": 5, "lr": 1e-5, "head_lr": 1e-4, "threshold": 0.35},
    },
    "modern": {
        "pretrain": {**_MODERN, "epochs": 11, "lr": 4e-3},
        "finetune": {**_MODERN, "epochs": 5, "lr": 4e-4, "head_lr": 2e-3},
    },
}

_HEAD = "^[A-Za-z0-9_-]+$"


class ModelConfig(Section):
    """The network."""

    kind: Literal["dual_unet3d", "temporal"] = "dual_unet3d"
    """dual_unet3d: the published one, with spatial context. temporal: attention over months, per pixel."""
    width: int = Field(64, ge=2, multiple_of=2, description="Channels of the first level. 64: as published.")
    members: int = Field(1, ge=1, le=16, description="Networks that are averaged; temporal only.")
    places: bool = Field(False, description="Whether it is told longitude and latitude; temporal only.")
    stem: int | None = Field(None, ge=1, description="Channels of the temporal stem. null: width / 2.")
    normalisation: Literal["fixed", "seed"] = "fixed"
    """fixed: the same constants for all data. seed: min-max per patch and month, for published weights."""
    clip: float = Field(6.0, gt=0, le=25)
    """Standard deviations at which `fixed` clips. 6 is 0.23 of reflectance in B02: snow needs 15."""


class AuxiliaryConfig(Section):
    """An auxiliary task: a head of its own, trained on another run's shards."""

    run: str = Field(min_length=1)
    """Run folder; run:PATH is relative to the run folder of the training."""
    head: str = Field(pattern=_HEAD, description="Name of the head.")
    weight: float = Field(0.3, gt=0, le=10, description="Steps of this task per step of the main task.")


class TrainConfig(Section):
    """A training."""

    recipe: RecipeName | None = None
    """Named values for the settings that are not given: seed (as published) or modern. null: none."""
    epochs: int = Field(11, ge=1, description="Passes over the training shards.")
    batch_size: int = Field(16, ge=1, description="Samples per step, over all workers.")
    lr: float = Field(1e-3, gt=0, description="Learning rate of the trained layers.")
    head_lr: float | None = Field(None, gt=0, description="Learning rate of a new head. null: as `lr`.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of the optimizer.")
    optimizer: Literal["adam", "adamw"] = Field("adamw", description="Optimizer.")
    schedule: Literal["constant", "cosine"] = Field("cosine", description="Learning rates after warm-up.")
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="Share of the steps for warm-up.")
    unlabelled: Literal["negative", "ignore", "own_crop"] = "ignore"
    """Unlabelled pixels: negatives of all classes, ignored, or weak negatives of their ROI's crop."""
    own_crop_weight: float = Field(0.3, ge=0, description="Weight of the weak negatives of own_crop.")
    cross_negatives: bool = Field(True, description="Annotated pixels are negatives of other classes.")
    teacher: float = Field(0.0, ge=0, description="Weight of a mean teacher's labels; needs `ema`. 0: none.")
    """The moving average labels what is unlabelled, for a network that lacks some months (drop_months)."""
    teacher_confidence: float = Field(0.7, gt=0, lt=1, description="Probability from which it is heard.")
    unlabelled_share: float = Field(0.0, ge=0, le=0.9)
    """Share of samples without any label in an epoch, for the teacher. 0: they are skipped."""
    any_date: bool = False
    """Train on windows that end at random months, so that the network serves any date in its window."""
    min_months: int = Field(3, ge=1, description="Months that such a window has at least.")
    whole_windows: float = Field(0.0, ge=0, le=1, description="Share of windows that do not end early.")
    drop_months: float = Field(0.1, ge=0, lt=1, description="Share of a sensor's months dropped from it.")
    drop_sensors: float = Field(0.05, ge=0, le=0.5, description="Chance that it lacks a whole sensor.")
    augment: bool = Field(True, description="Whether samples are flipped and turned at random.")
    min_labelled_fraction: float = Field(0.0, ge=0, le=1, description="Skip samples labelled up to this.")
    balance: float | None = Field(None, ge=0, le=1)
    """Draw samples by labelled share; crops as frequent as they are (0) to equally frequent (1)."""
    threshold: float | None = Field(None, gt=0, lt=1, description="Decision threshold. null: chosen on val.")
    threshold_rule: ThresholdRule = "shrunk"
    """How val chooses it: common to all classes, by class, or shrunk: between these, by its blocks."""
    calibration: Calibration = "bias"
    """What val fits to make scores probabilities: a temperature, or a bias for each class too (bias)."""
    coverage: float = Field(0.9, gt=0.5, lt=1, description="Share of pixels whose sets hold their class.")
    init: str = ""
    """Checkpoint folder, run:PATH or models:/ URI whose body to start from. Empty: random weights."""
    keep_heads: str | None = Field(None, pattern=_HEAD, description="Name to keep the head of `init` by.")
    also: tuple[AuxiliaryConfig, ...] = Field((), description="Auxiliary tasks, trained on the same body.")
    accumulate: int = Field(1, ge=1, description="Parts of a worker's share of a step, to save memory.")
    clip_norm: float | None = Field(None, gt=0, description="Largest norm of the gradients.")
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay per step of a moving average of the weights, which is then published."""
    batch_norm: Literal["local", "sync", "frozen"] = "local"
    """Batch statistics per worker, over all workers (GPUs only), or frozen as in `init`."""
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    """auto: bfloat16 on GPUs that support it, else float32. tf32: on GPUs."""
    max_nonfinite: int = Field(10, ge=0, description="Tolerated steps with a non-finite loss or gradient.")
    store_every: int = Field(1, ge=1, description="Epochs between validations and checkpoints.")
    store_every_s: float = Field(600, gt=0, description="Seconds between states saved within an epoch.")
    workers: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = 1
    """Number of workers, or [min, max]: as many as there is room for."""
    gpus: float | None = Field(None, ge=0, le=1, description="GPUs per worker. null: 1 if enough, else 0.")
    threads: int = Field(0, ge=0, description="Torch threads per worker. 0: its share of the CPUs.")
    compile: bool = Field(False, description="Whether to use torch.compile, for GPUs.")
    max_failures: int = Field(20, ge=0, description="Restarts after a worker or node died.")

    @property
    def min_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @model_validator(mode="after")
    def _check_teacher(self) -> TrainConfig:
        if self.teacher and self.ema is None:
            raise ValueError("teacher is the moving average of the weights: set ema too, as to 0.99")
        if self.teacher and self.unlabelled == "negative":
            raise ValueError("unlabelled: negative leaves nothing for a teacher to label; set teacher to 0")
        if self.unlabelled_share and not self.teacher:
            raise ValueError("unlabelled_share needs a teacher: nothing else learns from such samples")
        return self

    @model_validator(mode="after")
    def _check_workers(self) -> TrainConfig:
        if self.min_workers > self.max_workers:
            raise ValueError(f"workers: min {self.min_workers} is above max {self.max_workers}")
        if self.gpus and self.gpus < 1 and self.max_workers > 1:
            raise ValueError("workers of one training cannot share a GPU (NCCL); set gpus or workers to 1")
        return self


OPERATIONAL = (
    *("workers", "gpus", "threads", "compile"),
    *("store_every_s", "max_nonfinite", "max_failures"),
)
"""Settings that may change when a training resumes: the result stays the same, but for rounding."""


def filled_by_recipe(stage: Stage) -> WrapValidator:
    """Gives a stage's settings the values of its recipe where they are not given.

    Values of a recipe do not count as set, so a copy with another recipe follows that one.
    """

    def fill(value: Any, handler: ValidatorFunctionWrapHandler) -> TrainConfig:
        given = value.model_dump(exclude_unset=True) if isinstance(value, TrainConfig) else value
        name = given.get("recipe") if isinstance(given, dict) else None
        if name not in RECIPES:  # none, or one that the field itself refuses
            plain: TrainConfig = handler(value)
            return plain
        filled: TrainConfig = handler({**RECIPES[name][stage], **given})
        filled.model_fields_set.intersection_update(given)
        return filled

    return WrapValidator(fill)


class EvaluateConfig(Section):
    """The evaluation on held-out ROIs."""

    model: str = Field("", description="Checkpoint folder or models:/ URI. Empty: the run's own model.")
    head: str | None = Field(None, description="Head to evaluate. null: the main head.")
    baselines: bool | tuple[Baseline, ...] = True
    """Which are scored too: forest, logistic, boosting, majority. true: all. false: none."""
    tune_baselines: bool = Field(True, description="Whether val chooses a setting of each baseline.")
    forest_trees: int = Field(100, ge=1, description="Trees of the random forest.")
    forest_pixels: int = Field(50_000, ge=100, description="Pixels to train each baseline on, at most.")
    as_of: tuple[date, ...] = ()
    """Dates as of which an any-date network, and baselines fitted anew, are scored too."""
    confidence: float = Field(0.8, gt=0, lt=1, description="Probability from which a pixel is decided.")
    bootstrap: int = Field(1000, ge=0, description="Bootstrap draws for intervals. 0: no intervals.")

    @property
    def wanted_baselines(self) -> tuple[str, ...]:
        if isinstance(self.baselines, bool):
            return get_args(Baseline) if self.baselines else ()
        return self.baselines


class Dimension(Section):
    """The values of one searched setting; exactly one of the four is given."""

    loguniform: tuple[float, float] | None = Field(
        None, description="Numbers from [low, high], by logarithm."
    )
    uniform: tuple[float, float] | None = Field(None, description="Numbers of [low, high].")
    integers: tuple[int, int] | None = Field(None, description="Integers from [low, high], both included.")
    choice: tuple[Any, ...] | None = Field(None, min_length=1, description="Values of any kind.")

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"give one of {known}; got {', '.join(given) or 'none'}")
        if self.choice is None:
            low, high = self.extremes
            if not low < high or (self.loguniform is not None and low <= 0):
                positive = " and low > 0" if self.loguniform is not None else ""
                raise ValueError(f"{given[0]} [{low:g}, {high:g}] needs low < high{positive}")
        return self

    @property
    def kind(self) -> str:
        """Name of the one that is given."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The bounds of a range, or all values of a choice."""
        values: tuple[Any, ...] = getattr(self, self.kind)
        return values


class TuneConfig(Section):
    """A search over settings of one training stage, judged on the validation split."""

    name: Name = Field("sweep", description="Name of the sweep's folder, tune/<name>.")
    stage: Stage = Field("finetune", description="Stage that is searched.")
    space: dict[str, Dimension] = Field({})
    """Values by dotted key, such as finetune.lr: {loguniform: [1.0e-5, 1.0e-2]}."""
    search: Literal["optuna", "random", "grid"] = "optuna"
    """optuna learns from earlier trials (TPE), random draws, grid takes every combination of choices."""
    scheduler: Literal["asha", "none"] = Field("asha", description="asha stops trials that fall behind.")
    trials: int = Field(20, ge=1, description="Number of trials. A grid takes all its combinations instead.")
    concurrent: int = Field(1, ge=1, description="Trials that run at a time.")
    cpus: float = Field(1, gt=0, description="CPUs per worker. Below 1, more trials fit at a time.")
    budget_s: float | None = Field(None, gt=0, description="Seconds until trials save and stop.")
    grace_epochs: int = Field(1, ge=1, description="Epochs that every trial may run before ASHA compares it.")
    reduction: int = Field(3, ge=2, description="ASHA continues one in this many trials at each comparison.")
    evaluate: bool = Field(True, description="Whether the best trial is evaluated on the test split, once.")
