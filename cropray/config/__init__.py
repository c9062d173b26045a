"""Every setting of the system, with its bounds; `cropray.config.load` reads them from YAML."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

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
from cropray.config.section import Name, Section
from cropray.config.series import SeriesConfig
from cropray.config.training import EvaluateConfig, ModelConfig, TrainConfig, TuneConfig, filled_by_recipe
from cropray.types import UNSURE, Precision

CHAMPION = "champion"
"""The alias of the model in use."""


class PredictConfig(Section):
    """A map of an area as of a date."""

    model: str = Field("", description="Checkpoint folder or models:/ URI. Empty: the run's own model.")
    head: str | None = Field(None, description="Head to predict with. null: the main head.")
    area: str = "rois:test"
    """min_lon,min_lat,max_lon,max_lat (across 180°: min_lon > max_lon), a vector file, or rois:SPLIT."""
    layer: str = Field("", description="Layer of the file in `area`. Empty: the only one with a geometry.")
    as_of: date | None = Field(None, description="Last day whose scenes may be used. Required.")
    assume_harvest: date | None = Field(None, description="Harvest start, for models anchored on it.")
    tile_size: int = Field(512, ge=64, multiple_of=64, description="Side of a tile, in pixels.")
    overlap: int = Field(16, ge=0, description="Least overlap of patches, in pixels; evaluation too.")
    scores: bool = Field(True, description="Whether a raster of the scores of all classes is written too.")
    sure: bool = Field(False, description="Whether a map is written too that shows only what is sure.")
    batch_size: int = Field(16, ge=1, description="Patches per forward pass.")
    precision: Precision = "auto"
    """Number format of the network; evaluation too. auto: bfloat16 on a GPU that has it, else float32."""
    name: Name = Field("map", description="Name of the map's folder, maps/<name>.")
    fields: str = ""
    """Vector file of fields to classify from the map. auto: regions of similar scores. Empty: none."""
    fields_layer: str = Field("", description="Layer of `fields`. Empty: the only one with a geometry.")
    field_id: str = Field("", description="Column of `fields` with unique names. Empty: they get numbers.")
    declared: str = Field("", description="Column of `fields` with the declared crop. Empty: none.")


class ReportConfig(Section):
    """The page of a map, and what its files state of their makers."""

    language: Literal["en", "es", "fa", "fr"] = Field("en", description="Language of the page and summary.")
    title: str = Field("", description="Name of the mapped area for readers. Empty: its coordinates.")
    producer: str = Field("", description="Who publishes the map. Empty: not stated.")
    licence: str = Field("", description="Licence of the map as SPDX identifier. Empty: not stated.")
    citation: str = Field("", description="How to cite the map. Empty: not stated.")


class TrackingConfig(Section):
    """MLflow."""

    uri: str = ""
    """MLflow server or database; ${VARIABLE} replaces a password. Empty: SQLite in a local run folder."""
    experiment: str = Field("cropray", description="MLflow experiment of the runs.")
    model_name: str = Field("cropray", description="Name of the registered model.")
    alias: str = Field("candidate", description="Alias of a newly registered model.")
    promotion_margin: float = Field(0.02, ge=0, description="Allowed loss of score against the champion.")

    @field_validator("alias")
    @classmethod
    def _is_not_champion(cls, alias: str) -> str:
        if alias == CHAMPION:
            raise ValueError(f"only `cropray models promote` sets {CHAMPION!r}; choose another alias")
        return alias


class RayConfig(Section):
    """The Ray that stages run on."""

    address: str = ""
    """Ray to join. Empty: the job's, or that of RAY_ADDRESS, else a local Ray for this command."""
    num_cpus: int | None = Field(None, ge=1, description="CPUs of a local Ray. null: all.")
    concurrency: int = Field(2, ge=1, description="Processes of export, compaction and prediction.")
    max_failures: int = Field(20, ge=1, description="Failed tiles after which export or prediction stops.")
    export_resources: dict[str, Annotated[float, Field(gt=0)]] = Field({})
    """Custom resources that an export process requests, such as {ee: 1}, to run on certain nodes only."""

    @field_validator("export_resources")
    @classmethod
    def _are_custom(cls, resources: dict[str, float]) -> dict[str, float]:
        own = sorted(resources.keys() & {"CPU", "GPU", "memory", "object_store_memory"})
        if own:
            raise ValueError(f"{', '.join(own)} belongs to Ray; name a custom resource, such as {{ee: 1}}")
        return resources


class DemoConfig(Section):
    """The demonstration."""

    pretraining: dict[str, Any] = Field({})
    """Settings, by dotted key, that differ in its pretraining run."""


class Config(Section):
    """The whole configuration."""

    seed: int = Field(0, ge=0, lt=2**32, description="Seed of all random choices but the simulated world.")
    classes: tuple[str, ...] = Field((), description="Names of the classes 0 to n-1, in this order.")
    rois: RoisConfig = RoisConfig()
    window: WindowConfig = WindowConfig()
    grid: GridConfig = GridConfig()
    source: SourceConfig = SourceConfig()
    composite: CompositeConfig = CompositeConfig()
    labels: LabelsConfig = LabelsConfig()
    patch: PatchConfig = PatchConfig()
    shards: ShardsConfig = ShardsConfig()
    series: SeriesConfig = SeriesConfig()
    model: ModelConfig = ModelConfig()
    pretrain: Annotated[TrainConfig, filled_by_recipe("pretrain")] = TrainConfig()
    """Training on densely labelled ROIs."""
    finetune: Annotated[TrainConfig, filled_by_recipe("finetune")] = TrainConfig()
    """Training on partly annotated parcels."""
    tune: TuneConfig = TuneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    predict: PredictConfig = PredictConfig()
    report: ReportConfig = ReportConfig()
    tracking: TrackingConfig = TrackingConfig()
    ray: RayConfig = RayConfig()
    demo: DemoConfig = DemoConfig()

    @model_validator(mode="after")
    def _check_classes(self) -> Config:
        problems = []
        repeated = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if repeated:
            problems.append(f"classes names {', '.join(repeated)} more than once")
        if len(self.classes) > UNSURE:
            problems.append(f"classes has {len(self.classes)} names; at most {UNSURE} are possible")
        for name in ("class_map", "truth"):
            source: ClassMapConfig | None = getattr(self.labels, name)
            if source is not None and len(source.codes) != len(self.classes):
                codes = len(source.codes)
                problems.append(f"labels.{name}.codes has {codes} codes for {len(self.classes)} classes")
        if problems:
            raise ValueError("\n  ".join(problems))
        return self

    @model_validator(mode="after")
    def _read_sensors_of_the_source(self) -> Config:
        """With a STAC catalogue for one sensor alone, `composite.sensors` is that one."""
        stac = self.source.stac
        named = [name for name, each in (("s2", stac.s2), ("s1", stac.s1)) if each.items or each.api]
        if self.source.kind == "stac" and len(named) == 1:
            kept = [name for name in self.composite.sensors if name in named]
            if not kept:
                wanted = ", ".join(self.composite.sensors)
                raise ValueError(f"composite.sensors is {wanted}, but source.stac has {named[0]} alone")
            object.__setattr__(self, "composite", self.composite.model_copy(update={"sensors": tuple(kept)}))
        return self

    @property
    def simulates_inputs(self) -> bool:
        """Whether the built-in world supplies parcels, calendar and table."""
        return self.source.kind == "simulated" and not (self.rois.parcels or self.rois.table)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
