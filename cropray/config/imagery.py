"""Settings of imagery, labels, patches and shards."""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from cropray.bands import S1_NAMES, S2_NAMES
from cropray.config.section import Section
from cropray.types import CompositeRecipe


def _address(value: str, example: str) -> str:
    if value and not re.fullmatch(r"https?://[^/\s]+/?", value):
        raise ValueError(f"{value!r} is not an address like {example}, without a path")
    return value.rstrip("/")


class EarthEngineConfig(Section):
    """Access to Earth Engine. A project's published quota is 40 requests in flight and 100 per second."""

    project: str = Field("", description="Google Cloud project. Empty: EE_PROJECT or GOOGLE_CLOUD_PROJECT.")
    service_account_key: str = ""
    """Path of a service account's key. Empty: EE_SERVICE_ACCOUNT_KEY, else the default credentials."""
    endpoint: Literal["standard", "high_volume"] = "standard"
    """Endpoint of the service; high_volume suits many small requests."""
    url: str = Field("", description="Other address of the service. A loopback address needs no credentials.")
    in_flight: int = Field(20, ge=1, le=1000, description="Requests in flight, over all workers.")
    per_second: float = Field(50.0, gt=0, description="Requests per second, over all workers.")
    deadline_s: float = Field(360.0, gt=0, description="Seconds to wait for an answer.")
    attempts: int = Field(8, ge=1, description="Attempts at a request before its tile fails.")
    workload_tag: str = Field("cropray", pattern=r"^[a-z0-9]([-_a-z0-9]{0,61}[a-z0-9])?$")
    """Label in the Cloud console."""
    eucropmap_year: Literal[2018, 2022] = Field(2018, description="Year of the class map source:eucropmap.")
    assumed_eecu_s: float = Field(20.0, gt=0, description="EECU-seconds per megapixel and month, for plans.")
    assumed_latency_s: float = Field(2.0, ge=0, description="Seconds of the smallest request, for plans.")
    assumed_request_s: float = Field(20.0, gt=0, description="Seconds more for 48 MiB, for plans.")

    @property
    def lease_s(self) -> float:
        """Seconds after which a request that was not reported counts as lost with its worker."""
        return self.deadline_s + 60

    @property
    def is_loopback(self) -> bool:
        return urlsplit(self.url).hostname in ("127.0.0.1", "::1", "localhost")

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        return _address(value, "http://127.0.0.1:8080")

    @field_validator("service_account_key", mode="before")
    @classmethod
    def _is_a_path(cls, value: Any) -> Any:
        if isinstance(value, dict) or "{" in str(value):
            raise ValueError("give the path of the key's file, not the key")
        return value


class CompositeConfig(Section):
    """How scenes become one image per month."""

    scl_invalid: tuple[int, ...] = CompositeRecipe.scl_invalid
    """Classes of the Sentinel-2 scene classification (SCL) that are masked."""
    s1_passes: tuple[Literal["ascending", "descending"], ...] = Field(
        ("ascending", "descending"), min_length=1
    )
    """Sentinel-1 passes in order of preference."""
    cloud_score: float | None = Field(None, gt=0, le=1)
    """Mask by Cloud Score+ below this (cs_cdf, 1 is clear) instead of SCL; Earth Engine only. null: SCL."""
    s1_orbit_rule: Literal["season", "monthly"] = "season"
    """Choose Sentinel-1's orbits once per ROI and season, by valid pixels; or by month, as published."""
    sensors: tuple[Literal["s2", "s1"], ...] = Field(("s2", "s1"), min_length=1)
    """Sensors to read. Pixels of the other count as missing."""
    max_impossible: float = Field(0.5, gt=0, le=1)
    """Share of impossible values in a band above which a scene is left out, or a tile refused."""

    def recipe(self, max_lost: float = CompositeRecipe.max_lost) -> CompositeRecipe:
        """What a source is told; `max_lost` is `source.max_lost`."""
        return CompositeRecipe(**self.model_dump(), max_lost=max_lost)


class SimulatedConfig(Section):
    """The built-in world: sites with some annotated fields, and regions with dense labels."""

    seed: int = Field(0, description="Which world; another seed gives other fields and weather.")
    year: int = Field(2022, ge=2000, le=2100, description="Year of the harvest.")
    sites_per_crop: int = Field(6, ge=1, le=60, description="Sites per crop, for fine-tuning.")
    site_size_m: float = Field(1280.0, ge=640, le=10_000, description="Side of a site, in metres.")
    annotated_fraction: float = Field(0.3, gt=0, le=1, description="Annotated share of a crop's fields.")
    regions: int = Field(8, ge=1, le=40, description="Regions with dense labels, for pretraining.")
    region_size_m: float = Field(3200.0, ge=640, le=20_000, description="Side of a region, in metres.")


class StacS3Config(Section):
    """How s3:// assets are read. Keys are no settings: name a profile, or set the variables of AWS."""

    endpoint: str = ""
    """URL of the service, such as https://eodata.dataspace.copernicus.eu. Empty: Amazon's."""
    profile: str = ""
    """Profile of ~/.aws/credentials. Empty: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, else the default."""
    unsigned: bool = Field(False, description="Whether to read public buckets without keys.")
    requester_pays: bool = Field(False, description="Whether you pay for requests, where a bucket asks that.")

    @field_validator("endpoint")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        return _address(value, "https://eodata.dataspace.copernicus.eu")

    @model_validator(mode="after")
    def _unsigned_has_no_keys(self) -> StacS3Config:
        if self.unsigned and (self.profile or self.requester_pays):
            raise ValueError("unsigned requests have no profile and no payer; leave out `unsigned`")
        return self


class StacCollectionConfig(Section):
    items: str = Field("", description="ItemCollection file, by path or URI. Give either `items` or `api`.")
    api: str = Field("", description="URL of a STAC API.")
    collection: str = ""
    """Collection to use. Required with `api`; with `items`, empty means all."""
    assets: dict[str, str] = Field({}, description="Asset keys by band, where cropray does not find them.")
    sign: Literal["", "planetary-computer"] = ""
    """Signs the URLs of assets. Empty: not signed."""
    s3: StacS3Config = StacS3Config()
    allow_outside: bool = False
    """Whether items may name any file and any host. Otherwise: files below the catalogue, public hosts."""


def _check_bands(assets: dict[str, str], known: tuple[str, ...]) -> dict[str, str]:
    unknown = sorted(set(assets) - set(known))
    if unknown:
        raise ValueError(f"no band is called {', '.join(unknown)}. The bands are {', '.join(known)}.")
    return assets


class StacSentinel2Config(StacCollectionConfig):
    """Sentinel-2 L2A items."""

    offset: float | None = None
    """Reflectance offset (-0.1 or 0) instead of what the items state. null: as the items state."""

    @field_validator("assets")
    @classmethod
    def _name_bands(cls, value: dict[str, str]) -> dict[str, str]:
        return _check_bands(value, (*S2_NAMES, "SCL"))


class StacSentinel1Config(StacCollectionConfig):
    """Calibrated, geocoded Sentinel-1 items."""

    quantity: Literal["", "gamma0", "sigma0"] = Field("", description="Quantity, if items do not state it.")
    unit: Literal["", "linear", "dB"] = Field("", description="Unit, if items do not state it.")

    @field_validator("assets")
    @classmethod
    def _name_bands(cls, value: dict[str, str]) -> dict[str, str]:
        return _check_bands(value, S1_NAMES)


class StacConfig(Section):
    """Items of each sensor, for `source.kind: stac`."""

    s2: StacSentinel2Config = StacSentinel2Config()
    s1: StacSentinel1Config = StacSentinel1Config()


class SourceConfig(Section):
    """Where imagery comes from."""

    kind: Literal["simulated", "stac", "earthengine"] = "stac"
    """Which of the sources below is used."""
    ingestion_days: float = Field(3.0, ge=0)
    """Days after the end of a month until its scenes are in the catalogue. Before that it is not over."""
    max_lost: float = Field(CompositeRecipe.max_lost, ge=0, le=1)
    """Share of a sensor's scenes that may be left out (impossible values, dead files) before a tile fails."""
    simulated: SimulatedConfig = SimulatedConfig()
    stac: StacConfig = StacConfig()
    earthengine: EarthEngineConfig = EarthEngineConfig()

    def whole_on(self, end: date) -> date:
        """The day on which the catalogue has all scenes before `end`. The built-in world always has them."""
        return date.min if self.kind == "simulated" else end + timedelta(days=self.ingestion_days)


class ClassMapConfig(Section):
    """A raster of codes."""

    path: str = Field(description="Raster file, or source:NAME for a map that the imagery source offers.")
    codes: tuple[int, ...] = Field(description="Codes in the order of `classes`; of land cover, any.")
    nodata: int = Field(0, description="Code of pixels without data.")

    @model_validator(mode="after")
    def _each_code_means_one_thing(self) -> ClassMapConfig:
        if self.nodata in self.codes:
            raise ValueError(
                f"code {self.nodata} cannot be in `codes` and mean no data. Set nodata to a code that the "
                "map does not have"
            )
        if self.path.startswith("source:") and self.nodata != 0:
            raise ValueError(f"the maps of a source mark pixels without data by 0, not {self.nodata}")
        repeated = sorted({code for code in self.codes if self.codes.count(code) > 1})
        if repeated:
            raise ValueError(f"codes has {', '.join(map(str, repeated))} more than once")
        return self


class LabelsConfig(Section):
    """Where labels come from. Parcels come first, then the class map, then land cover."""

    parcels: bool = Field(True, description="Whether parcels are labels.")
    class_map: ClassMapConfig | None = None
    """Map of the classes. Its other codes are background."""
    land_cover: ClassMapConfig | None = Field(None, description="Map whose `codes` are background.")
    truth: ClassMapConfig | None = None
    """Map of the true class of every pixel, for evaluation only. null: none."""


class PatchConfig(Section):
    """How tiles are cut into patches."""

    size: int = Field(64, ge=16, multiple_of=16, description="Side of a patch, in pixels.")
    max_overlap: int = Field(32, ge=0, description="Patches overlap by up to this, in pixels.")
    tile_patches: int = Field(8, ge=1, description="Patches per side of an exported tile.")

    @model_validator(mode="after")
    def _overlap_is_below_size(self) -> PatchConfig:
        if self.max_overlap >= self.size:
            raise ValueError(f"patch.max_overlap {self.max_overlap} must be below patch.size {self.size}")
        return self


class ShardsConfig(Section):
    """How shards are stored."""

    codec: Literal["none", "lz4", "compact"] = "lz4"
    """none is fastest to read, compact is smallest."""
    row_group_samples: int = Field(32, ge=1, description="Samples per Parquet row group.")
    shard_samples: int = Field(512, ge=1, description="Samples per shard.")
