"""Settings of the regions: parcels, calendar, splits, months, grid."""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import Field, model_validator

from cropray.config.section import Section


class SeasonConfig(Section):
    """One sheet of the calendar for one crop; `where` keeps parcels by attribute values."""

    name: str = ""
    sheet: str = ""
    where: dict[str, str] = Field(default_factory=dict)


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
    named: dict[str, Literal["train", "val", "test"]] = Field(default_factory=dict)

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
