"""Settings of imagery, labels, patches and shards."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cropray.config.earthengine import EarthEngineConfig
from cropray.config.section import Section
from cropray.types import CompositeRecipe


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
