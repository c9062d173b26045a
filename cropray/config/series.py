"""Settings of tables of labelled point series."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from cropray.bands import S1_NAMES, S2_NAMES
from cropray.config.section import Section

ROLES = ("sample_id", "timestamp", "lat", "lon", "label", "region", "year")
"""What a table says of a sample beside its bands."""


class SeriesConfig(Section):
    """Tables of point series that `cropray shards import-series` reads."""

    codes: dict[str, tuple[int | str, ...]] = Field({})
    """Codes of each class. 33010* means all that begin so; the longest code that fits decides."""
    others: Literal["ignore", "background"] = "ignore"
    """Samples of other codes: left out, or known to be none of the classes."""
    unlabelled: tuple[int | str, ...] = Field((0,), description="Codes of samples without a crop label.")
    keep_unlabelled: bool = Field(False, description="Whether they are kept, for a teacher to label.")
    columns: dict[str, str] = Field({})
    """Column of a band (B02 … VH) or of sample_id, timestamp, lat, lon, label, region, year, where the names
    of WorldCereal do not fit. In wide tables {t} is the number of the month, and timestamp the first one."""
    bands: tuple[str, ...] = Field((), description="Bands to take. Empty: all that hold a value.")
    s2_scale: float = Field(1e-4, gt=0, description="Reflectance = scale × value + s2_offset.")
    s2_offset: float = Field(0.0, description="Added to the scaled value.")
    s1_unit: Literal["amplitude", "dB", "power"] = "amplitude"
    """Unit of backscatter. amplitude: integers with dB = 20 log10(value) - 83."""
    s1_quantity: Literal["sigma0", "gamma0"] = Field("sigma0", description="Quantity of backscatter.")
    nodata: float = Field(65535, description="Value that stands for none; so do empty cells.")
    max_impossible: float = Field(0.01, ge=0, le=1, description="Tolerated share of impossible values.")
    block_m: float = Field(50_000, gt=0)
    """Side of the square blocks that are split by the shares of rois.split, in metres."""

    @field_validator("columns", "bands")
    @classmethod
    def _are_known(cls, value: dict[str, str] | tuple[str, ...]) -> dict[str, str] | tuple[str, ...]:
        known = (*S2_NAMES, *S1_NAMES, *(ROLES if isinstance(value, dict) else ()))
        if unknown := [name for name in value if name not in known]:
            raise ValueError(f"{', '.join(unknown)} is none of {', '.join(known)}")
        return value
