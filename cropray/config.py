"""Every setting of the system, with its bounds; `cropray.overrides` reads them from YAML."""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cropray.config_earthengine import EarthEngineConfig
from cropray.types import BACKGROUND, CompositeRecipe


class Section(BaseModel):
    """Base of all sections: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SeasonConfig(Section):
    """One sheet of the calendar for one crop; `where` keeps parcels by attribute values."""

    name: str = ""
    sheet: str = ""
    where: dict[str, str] = {}


class CropConfig(Section):
    """The parcels of one crop. `path` may be a glob, relative to `rois.data_root`."""

    crop: str
    path: str
    seasons: tuple[SeasonConfig, ...] = (SeasonConfig(),)


class CalendarConfig(Section):
    """Planting and harvest by province: an xlsx with sheets, or a csv with a `sheet` column."""

    path: str = ""
    system: Literal["jalali", "gregorian"] = "gregorian"
    agricultural_years: tuple[int, int] = (2021, 2022)


class ProvincesConfig(Section):
    path: str = ""
    name_field: str = "province"


class SplitConfig(Section):
    """Shares of the ROIs; ROIs nearer than `buffer_m` are never parted.

    `named` gives the split of each row of a table by its `uuid` or its `country` instead of shares.
    """

    val: float = Field(0.15, ge=0, lt=1)
    test: float = Field(0.15, ge=0, lt=1)
    buffer_m: float = Field(1000.0, ge=0)
    named: dict[str, Literal["train", "val", "test"]] = {}

    @model_validator(mode="after")
    def _train_is_left(self) -> SplitConfig:
        if self.val + self.test >= 1:
            raise ValueError("split.val and split.test together must leave a share for training")
        return self


class RoisConfig(Section):
    """Where to look: parcels clustered into ROIs, or rectangles from a table."""

    kind: Literal["parcels", "table"] = "parcels"
    data_root: str = "."
    parcels: tuple[CropConfig, ...] = ()
    table: str = ""
    calendar: CalendarConfig = CalendarConfig()
    provinces: ProvincesConfig = ProvincesConfig()
    country: str = ""
    crs: str = "utm"
    eps_m: float = Field(2000.0, gt=0)
    min_samples: int = Field(1, ge=1)
    min_size_m: float = Field(640.0, gt=0)
    split: SplitConfig = SplitConfig()


class WindowConfig(Section):
    """Which months are seen.

    `harvest`: with h the start of the harvest, `months` whole months that end `lead_months` before
    h. `as_of`: `months` months of which the last ends on the as-of date (that day included).
    """

    anchor: Literal["harvest", "as_of"] = "harvest"
    months: int = Field(6, ge=1, le=24)
    lead_months: int = Field(1, ge=0)
    as_of: date | None = None

    @model_validator(mode="after")
    def _as_of_given(self) -> WindowConfig:
        if self.anchor == "as_of" and self.as_of is None:
            raise ValueError("window.anchor is as_of, but window.as_of is not set")
        return self


class GridConfig(Section):
    """`crs: utm` takes the UTM zone of each ROI; lengths in units of the CRS."""

    crs: str = "utm"
    resolution: float = Field(10.0, gt=0)
    snap: float = Field(20.0, gt=0)

    @model_validator(mode="after")
    def _whole_pixels(self) -> GridConfig:
        pixels = self.snap / self.resolution
        if round(pixels) < 1 or abs(pixels - round(pixels)) > 1e-9:
            raise ValueError(f"grid.snap {self.snap} is no multiple of grid.resolution {self.resolution}")
        return self


class CompositeConfig(Section):
    """Scenes to one image a month.

    `scl_invalid`: classes of the Sentinel-2 scene classification that are no clear view.
    `s1_passes`: Sentinel-1 passes in order of preference. `cloud_score`: instead of by the scene
    classification, a view is clear where Cloud Score+ (`cs_cdf`, 0 clouded to 1 clear) is at least
    this; Earth Engine alone has it.
    """

    scl_invalid: tuple[int, ...] = CompositeRecipe.scl_invalid
    s1_passes: tuple[Literal["ascending", "descending"], ...] = Field(
        ("ascending", "descending"), min_length=1
    )
    cloud_score: float | None = Field(None, gt=0, le=1)

    def recipe(self) -> CompositeRecipe:
        return CompositeRecipe(self.scl_invalid, tuple(self.s1_passes), self.cloud_score)


class SimulatedConfig(Section):
    """The built-in world; its science stands in `imagery.simulated`, these choose a place in it.

    Sites: squares in which a part of the fields of one crop are annotated. Regions: squares with
    dense labels for pretraining, far from the sites. `year` is that of the harvest.
    """

    seed: int = 0
    year: int = Field(2022, ge=2000, le=2100)
    sites_per_crop: int = Field(6, ge=1, le=60)
    site_size_m: float = Field(1280.0, ge=640, le=10_000)
    annotated_fraction: float = Field(0.3, gt=0, le=1)
    regions: int = Field(8, ge=1, le=40)
    region_size_m: float = Field(3200.0, ge=640, le=20_000)


class StacCollectionConfig(Section):
    """Items from a file (an ItemCollection, path or URI) or from an API; of one collection if named."""

    items: str = ""
    api: str = ""
    collection: str = ""


class StacSentinel2Config(StacCollectionConfig):
    """Sentinel-2 L2A. `offset`: reflectance to add after scaling (-0.1 or 0), instead of what the
    items say; only for a catalogue whose metadata are silent or known to be wrong.
    """

    offset: float | None = None


class StacSentinel1Config(StacCollectionConfig):
    """Calibrated, geocoded Sentinel-1. `quantity` and `unit`: where the items do not say."""

    quantity: Literal["", "gamma0", "sigma0"] = ""
    unit: Literal["", "linear", "dB"] = ""


class StacConfig(Section):
    s2: StacSentinel2Config = StacSentinel2Config()
    s1: StacSentinel1Config = StacSentinel1Config()


class SourceConfig(Section):
    kind: Literal["simulated", "stac", "earthengine"] = "stac"
    simulated: SimulatedConfig = SimulatedConfig()
    stac: StacConfig = StacConfig()
    earthengine: EarthEngineConfig = EarthEngineConfig()


class ClassMapConfig(Section):
    """A raster of codes: a file, or `source:NAME` for a map that the imagery source offers."""

    path: str
    codes: tuple[int, ...]
    nodata: int = 0


class LabelsConfig(Section):
    """Where labels come from, in this order: parcels, then the class map, then land cover.

    `class_map`: dense labels, `codes` in the order of `classes`; other codes are background.
    `land_cover`: `codes` are known to be no crop, background where nothing else is known.
    `truth`: labels of every pixel, for evaluation only; `codes` in the order of `classes`.
    """

    parcels: bool = True
    class_map: ClassMapConfig | None = None
    land_cover: ClassMapConfig | None = None
    truth: ClassMapConfig | None = None


class PatchConfig(Section):
    size: int = Field(64, ge=16, multiple_of=16)
    max_overlap: int = Field(32, ge=0)
    tile_patches: int = Field(8, ge=1, description="patches a side of one exported tile")

    @model_validator(mode="after")
    def _patches_move_on(self) -> PatchConfig:
        if self.max_overlap >= self.size:
            raise ValueError(f"patch.max_overlap {self.max_overlap} must be below patch.size {self.size}")
        return self


class ShardsConfig(Section):
    codec: Literal["none", "lz4", "compact"] = "lz4"
    row_group_samples: int = Field(32, ge=1)
    shard_samples: int = Field(512, ge=1)


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


class PredictConfig(Section):
    """`area`: "min_lon,min_lat,max_lon,max_lat", a vector file, or "rois:SPLIT"."""

    model: str = ""
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
    alias: str = "candidate"


class RayConfig(Section):
    """An empty address starts a local Ray, unless RAY_ADDRESS or a job says otherwise."""

    address: str = ""
    num_cpus: int | None = Field(None, ge=1)
    concurrency: int = Field(2, ge=1, description="processes of export and prediction")
    max_failures: int = Field(20, ge=1, description="failed tiles after which export stops")


class DemoConfig(Section):
    """Overrides (dotted keys) of the demonstration's pretraining run."""

    pretraining: dict[str, Any] = {}


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
    pretrain: TrainConfig = TrainConfig()
    finetune: TrainConfig = TrainConfig()
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
