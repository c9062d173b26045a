"""Settings of imagery, labels, patches and shards."""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from cropray.config.section import Section
from cropray.types import CompositeRecipe


class EarthEngineConfig(Section):
    """On whose account Earth Engine is asked, and how much at a time.

    `project`: else EE_PROJECT or GOOGLE_CLOUD_PROJECT. `service_account_key`: path of a key file,
    else EE_SERVICE_ACCOUNT_KEY, else the default credentials. `url`: another address of the service;
    one of this machine needs no credentials. A request has `deadline_s` for its answer, and
    `attempts` at it; the service itself gives a computation up after five minutes. The published
    quota of a project is 40 requests in flight and 100 a second.

    `assumed_eecu_s` (EECU-seconds of a megapixel and month, both sensors) and `assumed_request_s`
    (seconds of a whole request) are guesses for what an export will take; what it took stands in the
    Cloud console by `workload_tag`.
    """

    project: str = ""
    service_account_key: str = ""
    endpoint: Literal["standard", "high_volume"] = "standard"
    url: str = ""
    in_flight: int = Field(20, ge=1, le=1000)
    per_second: float = Field(50.0, gt=0)
    deadline_s: float = Field(360.0, gt=0)
    attempts: int = Field(8, ge=1)
    workload_tag: str = Field("cropray", pattern=r"^[a-z0-9]([-_a-z0-9]{0,61}[a-z0-9])?$")
    eucropmap_year: Literal[2018, 2022] = 2018
    assumed_eecu_s: float = Field(20.0, gt=0)
    assumed_request_s: float = Field(20.0, gt=0)

    @property
    def lease_s(self) -> float:
        """After how long a request that was not reported is taken for lost with its worker."""
        return self.deadline_s + 60

    @property
    def is_loopback(self) -> bool:
        return urlsplit(self.url).hostname in ("127.0.0.1", "::1", "localhost")

    @field_validator("url")
    @classmethod
    def _an_address(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^/\s]+/?", value):
            raise ValueError(
                f"{value!r} is no address; wanted one like http://127.0.0.1:8080, without a path"
            )
        return value.rstrip("/")

    @field_validator("service_account_key", mode="before")
    @classmethod
    def _a_path(cls, value: Any) -> Any:
        """A key in place of its path is not repeated in a message."""
        return "<a key>" if isinstance(value, dict) or "{" in str(value) else value

    @field_validator("service_account_key")
    @classmethod
    def _no_key(cls, value: str) -> str:
        if value == "<a key>":
            raise ValueError("give the path of the key's file, not the key")
        return value


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
