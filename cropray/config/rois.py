"""Settings of the regions of interest (ROIs): parcels, calendar, splits, months, grid."""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import Field, model_validator

from cropray.config.section import Section


class SeasonConfig(Section):
    """One season of a crop: a sheet of the calendar, and the parcels that belong to it."""

    name: str = Field("", description="Name of the season in tables and samples.")
    sheet: str = Field("", description="Sheet of the calendar. Empty: the only sheet of the file.")
    where: dict[str, str] = Field({}, description="Keep parcels with these attribute values.")


class CropConfig(Section):
    """The parcels of one crop."""

    crop: str = Field(description="Name of the crop, one of `classes`.")
    path: str = Field(description="Vector file, or a glob of several, relative to `rois.data_root`.")
    seasons: tuple[SeasonConfig, ...] = (SeasonConfig(),)
    """Seasons, each with a calendar sheet."""


class CalendarConfig(Section):
    """Planting and harvest dates by province and crop."""

    path: str = ""
    """An xlsx with a sheet per crop and season, or a csv with a column `sheet`. Empty: no dates."""
    system: Literal["jalali", "gregorian"] = Field("gregorian", description="Calendar of the dates.")
    agricultural_years: tuple[int, int] = Field(
        (2021, 2022), description="Years of the season, in that calendar."
    )


class ProvincesConfig(Section):
    """Boundaries of the provinces that the calendar names."""

    path: str = Field("", description="Polygons, relative to `rois.data_root`. Empty: none.")
    name_field: str = Field("province", description="Column with the name of the province.")


class SplitConfig(Section):
    """How ROIs are divided into train, val and test."""

    val: float = Field(0.15, ge=0, lt=1, description="Share of the ROIs for validation.")
    test: float = Field(0.15, ge=0, lt=1, description="Share of the ROIs for the test.")
    buffer_m: float = Field(1000.0, ge=0, description="ROIs closer than this, in metres, stay together.")
    named: dict[str, Literal["train", "val", "test"]] = Field({})
    """For `rois.kind: table`: the split of each row, by its uuid or country. Empty: use the shares."""

    @model_validator(mode="after")
    def _train_is_left(self) -> SplitConfig:
        if self.val + self.test >= 1:
            raise ValueError("rois.split.val + rois.split.test must be below 1, to leave ROIs for training")
        return self


class RoisConfig(Section):
    """Where to look: parcels clustered into ROIs, or rectangles from a table."""

    kind: Literal["parcels", "table"] = Field("parcels", description="What ROIs are made from.")
    data_root: str = Field(".", description="Folder that the paths below are relative to.")
    parcels: tuple[CropConfig, ...] = Field((), description="Parcels of each crop.")
    table: str = Field("", description="A csv or xlsx of rectangles, for `kind: table`.")
    calendar: CalendarConfig = CalendarConfig()
    provinces: ProvincesConfig = ProvincesConfig()
    country: str = Field("", description="Country noted with every ROI, unless the table names one.")
    crs: str = Field("utm", description="CRS for clustering and boxes. utm: the zone of the data.")
    eps_m: float = Field(2000.0, gt=0)
    """Largest distance between neighbouring parcels of a cluster (DBSCAN), in metres of `crs`."""
    min_samples: int = Field(1, ge=1)
    """Parcels within `eps_m` that start a cluster (DBSCAN). 1: every parcel is in a cluster."""
    min_size_m: float = Field(640.0, gt=0)
    """Smallest side of an ROI, in metres of `crs`; smaller boxes are padded."""
    split: SplitConfig = SplitConfig()


class WindowConfig(Section):
    """Which months the network sees."""

    anchor: Literal["harvest", "as_of"] = "harvest"
    """harvest: months end `lead_months` before the harvest starts. as_of: they end on `as_of`, inclusive."""
    months: int = Field(6, ge=1, le=24, description="Number of months.")
    lead_months: int = Field(1, ge=0, description="Months between the last one seen and the harvest.")
    as_of: date | None = Field(None, description="Last day whose scenes may be used, for `anchor: as_of`.")

    @model_validator(mode="after")
    def _as_of_is_set(self) -> WindowConfig:
        if self.anchor == "as_of" and self.as_of is None:
            raise ValueError("window.anchor is as_of, but window.as_of is not set")
        return self


class GridConfig(Section):
    """The pixel grid of imagery and labels."""

    crs: str = Field("utm", description="CRS of the pixels. utm: the zone of each ROI.")
    resolution: float = Field(10.0, gt=0, description="Pixel size, in units of the CRS.")
    snap: float = Field(20.0, gt=0, description="Corners lie on multiples of this, in units of the CRS.")

    @model_validator(mode="after")
    def _whole_pixels(self) -> GridConfig:
        pixels = self.snap / self.resolution
        if round(pixels) < 1 or abs(pixels - round(pixels)) > 1e-9:
            raise ValueError(f"grid.snap {self.snap} is not a multiple of grid.resolution {self.resolution}")
        return self
