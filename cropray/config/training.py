"""Settings of networks, trainings and evaluation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from cropray.config.section import Section

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


_HEAD = "^[A-Za-z0-9_-]+$"


class ModelConfig(Section):
    """The dual 3-D U-Net; width 64 is the published network."""

    width: int = Field(64, ge=2, multiple_of=2)
    stem: int | None = Field(None, ge=1, description="channels that all months become; None: width / 2")
    normalisation: Literal["fixed", "seed"] = "fixed"


class AlsoConfig(Section):
    """A further label set on the same body: the shards of another run, into a head of its own.

    `weight` is how many steps it takes for each step of the training's own labels.
    """

    run: str = Field(min_length=1, description="run folder; run:PATH from the run folder of the training")
    head: str = Field(pattern=_HEAD)
    weight: float = Field(0.3, gt=0, le=10)


class TrainConfig(Section):
    """One training; `unlabelled` says what pixels without a label are to the loss.

    `recipe` names values (`recipes.RECIPES`) for all settings that are not given.
    """

    recipe: RecipeName | None = None
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
    balance: float | None = Field(
        None,
        ge=0,
        le=1,
        description="1: crops equally frequent; 0: as they are, by labelled share; None: off",
    )
    threshold: float | None = Field(
        None, gt=0, lt=1, description="of every class; None: chosen by class on val"
    )
    init: str = Field("", description="checkpoint folder or models:/ URI whose body to start from")
    keep_heads: str | None = Field(
        None,
        pattern=_HEAD,
        description="name under which the head of init stays beside the new one; None: it does not",
    )
    also: tuple[AlsoConfig, ...] = Field((), description="further label sets to learn beside")
    accumulate: int = Field(1, ge=1, description="parts of a worker's share of a step, gone through in turn")
    clip_norm: float | None = Field(None, gt=0, description="highest norm of the gradients; None: any")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay a step of the weights' moving average, which is kept then"
    )
    batch_norm: Literal["local", "sync", "frozen"] = Field(
        "local",
        description="over a worker's samples, over all workers' (GPUs), or by the statistics of init",
    )
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where the device gains by it; tf32: of GPUs"
    )
    max_nonfinite: int = Field(10, ge=0, description="steps without finite loss and gradients; more end it")
    store_every: int = Field(1, ge=1, description="epochs between validations and checkpoints")
    store_every_s: float = Field(600, gt=0, description="seconds between states within an epoch")
    workers: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (
        Field(1, description="how many, or [fewest, most]: as many as there is room for")
    )
    gpus: float | None = Field(
        None,
        ge=0,
        le=1,
        description="of a worker, asked for and waited for; None: one where Ray has enough now, else none",
    )
    threads: int = Field(0, ge=0, description="torch threads a worker; 0: its share of the CPUs")
    processes: int = Field(0, ge=0, description="of a worker, that read local shards; 0: threads read them")
    compile: bool = Field(
        default=False, description="torch.compile: minutes at the start, faster steps on a GPU"
    )
    max_failures: int = Field(2, ge=0, description="deaths of workers or nodes after which it ends")

    @property
    def fewest(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @model_validator(mode="after")
    def _workers_are_a_range(self) -> TrainConfig:
        if self.fewest > self.most:
            raise ValueError(f"workers: fewest ({self.fewest}) is more than most ({self.most})")
        return self

    @model_validator(mode="after")
    def _a_share_of_a_gpu_is_for_one(self) -> TrainConfig:
        if self.gpus and self.gpus < 1 and self.most > 1:
            raise ValueError(
                f"gpus {self.gpus:g} is a share, and workers {self.most}: several workers of one training "
                "cannot use the same GPU (NCCL); wanted gpus 1, or one worker"
            )
        return self


OPERATIONAL = (
    *("workers", "gpus", "threads", "processes", "compile"),
    *("store_every_s", "max_nonfinite", "max_failures"),
)
"""Settings of a training that may change while it goes on: it stays the same one, but for rounding."""


def filled_by_recipe(stage: Stage) -> WrapValidator:
    """Gives a stage's settings the values of its recipe where they are not given.

    What a recipe gave does not count as set, so that a copy with another recipe follows that one.
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
    model: str = Field("", description="checkpoint or models:/ URI; empty: the run's own last one")
    head: str | None = Field(None, description="of a model with several class lists; None: the main one")
    baselines: bool = True
    forest_trees: int = Field(100, ge=1)
    forest_pixels: int = Field(50_000, ge=100)
    bootstrap: int = Field(1000, ge=0)


class Dimension(Section):
    """The values of one setting: from a range, both ends included, or of a list.

    Exactly one of the four: `loguniform` and `uniform` draw numbers, `integers` whole ones, `choice`
    values of any kind.
    """

    loguniform: tuple[FiniteFloat, FiniteFloat] | None = None
    uniform: tuple[FiniteFloat, FiniteFloat] | None = None
    integers: tuple[int, int] | None = None
    choice: tuple[Any, ...] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"wanted one of loguniform, uniform, integers, choice; got {', '.join(given) or 'none'}"
            )
        if self.choice is None:
            low, high = getattr(self, given[0])
            wanted = "[low, high], low below high"
            if self.loguniform is not None:
                wanted += " and above 0, for it draws by the logarithm"
            if not low < high or (self.loguniform is not None and low <= 0):
                raise ValueError(f"{given[0]} [{low:g}, {high:g}] is no range: wanted {wanted}")
        return self

    @property
    def kind(self) -> Literal["loguniform", "uniform", "integers", "choice"]:
        for name in ("loguniform", "uniform", "integers"):
            if getattr(self, name) is not None:
                return name
        return "choice"

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values between which, or of which, all others are."""
        values: tuple[Any, ...] = getattr(self, self.kind)
        return values


class TuneConfig(Section):
    """A sweep over settings of one training stage, judged on the validation split.

    `space`: by dotted key, as `finetune.lr: {loguniform: [1.0e-5, 1.0e-2]}`. `optuna` proposes by what
    earlier trials found (tree-structured Parzen estimators), `random` draws, `grid` takes every
    combination of the choices. `asha` ends trials that fall behind: of each `reduction` one goes on, first
    after `grace_epochs` (Li et al. 2018). A command begins no trial after `budget_s`, and those under way
    keep their states and leave. A worker asks for `cpus` of a CPU: by less than one, more trials find room
    at a time. The `name` is that of the folder, `tune/<name>`.
    """

    name: str = Field("sweep", pattern=r"^[\w-]+$")
    stage: Literal["pretrain", "finetune"] = "finetune"
    space: dict[str, Dimension] = Field(default_factory=dict)
    search: Literal["optuna", "random", "grid"] = "optuna"
    scheduler: Literal["asha", "none"] = "asha"
    trials: int = Field(20, ge=1)
    concurrent: int = Field(1, ge=1)
    cpus: float = Field(1, gt=0)
    budget_s: float | None = Field(None, gt=0)
    grace_epochs: int = Field(1, ge=1)
    reduction: int = Field(3, ge=2)
    evaluate: bool = Field(True, description="read the test split once, for the best trial")
