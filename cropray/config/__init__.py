"""Every setting of the system, with its bounds; `cropray.config.load` reads them from YAML."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any

import yaml
from pydantic import Field, field_validator, model_validator

from cropray.config.imagery import (
    ClassMapConfig,
    CompositeConfig,
    LabelsConfig,
    PatchConfig,
    ShardsConfig,
    SourceConfig,
)
from cropray.config.rois import GridConfig, RoisConfig, WindowConfig
from cropray.config.section import Section
from cropray.config.training import EvaluateConfig, ModelConfig, TrainConfig, TuneConfig, filled_by_recipe
from cropray.types import BACKGROUND

CHAMPION = "champion"
"""The alias of the model that is in use."""


class PredictConfig(Section):
    """`area`: "min_lon,min_lat,max_lon,max_lat", a vector file, or "rois:SPLIT"."""

    model: str = ""
    head: str | None = Field(None, description="of a model with several class lists; None: the main one")
    area: str = "rois:test"
    as_of: date | None = None
    assume_harvest: date | None = None
    tile_size: int = Field(512, ge=64, multiple_of=64)
    overlap: int = Field(16, ge=0)
    probabilities: bool = True
    batch_size: int = Field(16, ge=1)
    name: str = "map"


class TrackingConfig(Section):
    """MLflow. An empty URI is SQLite under the run folder (which must then be local)."""

    uri: str = ""
    experiment: str = "cropray"
    model_name: str = "cropray"
    alias: str = Field("candidate", description="of a model that was trained or registered just now")
    promotion_margin: float = Field(
        0.02, ge=0, description="by which a candidate's score may be worse than the champion's"
    )

    @field_validator("alias")
    @classmethod
    def _no_one_is_champion_untested(cls, alias: str) -> str:
        if alias == CHAMPION:
            raise ValueError(f"{CHAMPION!r} is given by cropray models promote alone; wanted another alias")
        return alias


class RayConfig(Section):
    """An empty address starts a local Ray, unless RAY_ADDRESS or a job says otherwise.

    `export_resources`: custom resources that every process of an export asks of its node, by name,
    as `{ee: 1}`. It then runs on none that does not offer them: nodes with a GPU stay free, and
    `ray start --resources '{"ee": 4}'` holds a node to four. A local Ray offers what is asked.
    """

    address: str = ""
    num_cpus: int | None = Field(None, ge=1)
    concurrency: int = Field(2, ge=1, description="processes of export, compaction and prediction")
    max_failures: int = Field(20, ge=1, description="failed tiles after which export or predict stops")
    export_resources: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)

    @field_validator("export_resources")
    @classmethod
    def _custom_ones(cls, resources: dict[str, float]) -> dict[str, float]:
        own = sorted(resources.keys() & {"CPU", "GPU", "memory", "object_store_memory"})
        if own:
            raise ValueError(f"{', '.join(own)} is Ray's own; wanted custom resources, as {{ee: 1}}")
        return resources


class DemoConfig(Section):
    """Overrides (dotted keys) of the demonstration's pretraining run."""

    pretraining: dict[str, Any] = Field(default_factory=dict)


class Config(Section):
    """The whole configuration. `classes` are the names of class 0..n-1, everywhere."""

    seed: int = Field(0, ge=0, lt=2**32)
    classes: tuple[str, ...] = ()
    rois: RoisConfig = RoisConfig()
    window: WindowConfig = WindowConfig()
    grid: GridConfig = GridConfig()
    source: SourceConfig = SourceConfig()
    composite: CompositeConfig = CompositeConfig()
    labels: LabelsConfig = LabelsConfig()
    patch: PatchConfig = PatchConfig()
    shards: ShardsConfig = ShardsConfig()
    model: ModelConfig = ModelConfig()
    pretrain: Annotated[TrainConfig, filled_by_recipe("pretrain")] = TrainConfig()
    finetune: Annotated[TrainConfig, filled_by_recipe("finetune")] = TrainConfig()
    tune: TuneConfig = TuneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    predict: PredictConfig = PredictConfig()
    tracking: TrackingConfig = TrackingConfig()
    ray: RayConfig = RayConfig()
    demo: DemoConfig = DemoConfig()

    @model_validator(mode="after")
    def _classes_have_numbers(self) -> Config:
        twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if twice:
            raise ValueError(f"classes has {', '.join(twice)} more than once")
        if len(self.classes) > BACKGROUND:
            raise ValueError(f"{len(self.classes)} classes; labels have numbers for {BACKGROUND}")
        return self

    @model_validator(mode="after")
    def _codes_match(self) -> Config:
        for name in ("class_map", "truth"):
            source: ClassMapConfig | None = getattr(self.labels, name)
            if source is not None and len(source.codes) != len(self.classes):
                raise ValueError(
                    f"labels.{name}.codes has {len(source.codes)} codes for {len(self.classes)} classes"
                )
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
