"""Settings of sweeps: what is searched, how, and how much of it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, FiniteFloat, model_validator

from cropray.config.section import Section


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
