"""Settings of the regions of interest (ROIs): parcels, calendar, splits, months, grid."""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cropray.config.section import Section


def _text(value: Any) -> Any:
    """A number of YAML as text: codes are often written without quotes."""
    return str(value) if isinstance(value, int | float) else value


def _text_keys(mapping: Any) -> Any:
    return {_text(key): value for key, value in mapping.items()} if isinstance(mapping, dict) else mapping


class SeasonConfig(Section):
    """One season of a crop: a sheet of the calendar, and the parcels that belong to it."""

    name: str = Field("", description="Name of the season in tables and samples.")
    sheet: str = Field("", description="Sheet of the calendar. Empty: the only one, or that of the crop.")
    where: dict[str, str] = Field({}, description="Keep parcels with these attribute values.")

    @field_validator("where", mode="before")
    @classmethod
    def _values_are_text(cls, where: Any) -> Any:
        return {key: _text(value) for key, value in where.items()} if isinstance(where, dict) else where


class CropColumnConfig(Section):
    """The crops of a file with many crops."""

    column: str = Field(description="Column with a name or code of the crop.")
    map: dict[str, str] = Field(min_length=1)
    """Crop, one of `classes`, by value. 33010* is every value that begins with 33010; the longest wins."""

    @field_validator("map", mode="before")
    @classmethod
    def _codes_are_text(cls, crops: Any) -> Any:
        return _text_keys(crops)

    @field_validator("map")
    @classmethod
    def _end_in_a_star(cls, crops: dict[str, str]) -> dict[str, str]:
        wrong = [pattern for pattern in crops if "*" in pattern[:-1]]
        if wrong:
            raise ValueError(f"{wrong[0]!r} has a * that is not at its end; write 33010*")
        return crops


class CropConfig(Section):
    """Parcels or points of one crop, or of many that a column tells apart."""

    crop: str = Field("", description="Name of the crop, one of `classes`. Or set `crops`.")
    crops: CropColumnConfig | None = Field(None, description="For a file with many crops.")
    path: str = Field(description="Vector file, or a glob of several, relative to `rois.data_root`.")
    layer: str = Field("", description="Layer of the file. Empty: the only one with a geometry.")
    encoding: str = ""
    """Encoding of a shapefile's text. Empty: that of the .cpg, else UTF-8, else what the .dbf says."""
    radius_m: float = Field(0.0, ge=0, description="Radius of a point's label. 0: the pixel of the point.")
    seasons: tuple[SeasonConfig, ...] = (SeasonConfig(),)
    """Seasons, each with a calendar sheet."""

    @model_validator(mode="after")
    def _one_of_crop_and_crops(self) -> CropConfig:
        if bool(self.crop) == (self.crops is not None):
            raise ValueError(f"the entry for {self.path} needs either `crop` or `crops`")
        return self


class CalendarConfig(Section):
    """Planting and harvest dates by province and crop."""

    path: str = ""
    """An xlsx with a sheet per crop and season, or a csv with a column `sheet`. Empty: no dates."""
    system: Literal["jalali", "gregorian"] = Field("gregorian", description="Calendar of the dates.")
    agricultural_years: tuple[int, int] = Field(
        (2021, 2022), description="Years of the season, in that calendar."
    )
    day_first: bool | None = None
    """Whether days come before months, as in 31/10 and 31.10.2022. null: only MM-DD and YYYY-MM-DD."""

    @field_validator("agricultural_years")
    @classmethod
    def _follow_each_other(cls, years: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= years[1] - years[0] <= 1:
            raise ValueError(f"{years[0]} and {years[1]} are not the same year or one after the other")
        return years


class ProvincesConfig(Section):
    """Boundaries of the provinces that the calendar names."""

    path: str = Field("", description="Polygons, relative to `rois.data_root`. Empty: none.")
    name_field: str = Field("province", description="Column with the name of the province.")
    layer: str = Field("", description="Layer of the file. Empty: the only one with a geometry.")
    encoding: str = Field("", description="Encoding of a shapefile's text, as `parcels.N.encoding`.")


class SplitConfig(Section):
    """How ROIs are divided into train, val and test."""

    val: float = Field(0.15, ge=0, lt=1, description="Share of the ROIs for validation.")
    test: float = Field(0.15, ge=0, lt=1, description="Share of the ROIs for the test.")
    buffer_m: float = Field(1000.0, ge=0, description="ROIs closer than this, in metres, stay together.")
    named: dict[str, Literal["train", "val", "test"]] = Field({})
    """For `rois.kind: table`: the split of each row, by its uuid or country. Empty: use the shares."""
    left_out: tuple[str | int, ...] = Field(())
    """Provinces, countries or seasons (as in `rois/rois.parquet`, or the year of the harvest) whose ROIs are
    the test split, instead of a share of all. Others nearer than `buffer_m` to one are left out."""
    allow_empty: bool = Field(False, description="Whether val or test may have no ROI.")

    @model_validator(mode="after")
    def _train_is_left(self) -> SplitConfig:
        if self.named and self.left_out:
            raise ValueError("rois.split.named and rois.split.left_out exclude each other")
        if self.val + self.test >= 1:
            raise ValueError("rois.split.val + rois.split.test must be below 1, to leave ROIs for training")
        return self


class CellsConfig(Section):
    """Square ROIs on a lattice, for parcels that cover the land."""

    size_m: float = Field(1280.0, gt=0, description="Side of a cell, in metres of `rois.crs`.")
    block: int | None = Field(None, ge=1)
    """Side of the square blocks that are split, in cells. null: the largest of 16, 8, 4, 2 and 1 that gives
    nine blocks."""


class RoisConfig(Section):
    """Where to look: clusters of parcels, cells full of parcels, or rectangles from a table."""

    kind: Literal["parcels", "grid", "table"] = "parcels"
    """parcels: ROIs are clusters of parcels of a crop. grid: cells with parcels of any crop. table: rows."""
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
    """Parcels within `eps_m` that start a cluster (DBSCAN), or in a cell of `kind: grid`."""
    min_size_m: float = Field(640.0, gt=0)
    """Smallest side of an ROI, in metres of `crs`; smaller boxes are padded."""
    cells: CellsConfig = CellsConfig()
    max_parcel_km2: float = Field(100.0, gt=0, description="Larger parcels are mistakes and are left out.")
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
