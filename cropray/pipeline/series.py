"""Tables of labelled point series: one row a sample and month (long), or one row a sample (wide).

The column names of ESA WorldCereal's extractions are known, others are a setting. Shape suffixes: N samples,
C bands, T months (oldest first).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cropray.bands import S1_BANDS, S1_NAMES, S2_BANDS, S2_NAMES, Band
from cropray.config.series import ROLES, SeriesConfig
from cropray.errors import InputError, listed, nearest
from cropray.shards.schema import quantise
from cropray.types import BoolArray, DoubleArray, IntArray

# Names in ESA WorldCereal's extractions, the more telling ones first.
_KNOWN: dict[str, tuple[str, ...]] = {
    "sample_id": ("sample_id",),
    "timestamp": ("timestamp",),
    "lat": ("lat",),
    "lon": ("lon",),
    "label": ("ewoc_code", "CROPTYPE_LABEL"),
    "region": ("region", "h3_l3_cell", "ref_id"),
    "year": ("year", "valid_time", "valid_date"),
    **{name: (f"S2-L2A-{name}",) for name in S2_NAMES},
    **{name: (f"S1-SIGMA0-{name}",) for name in S1_NAMES},
}
_OPTIONAL = ("region", "year")
_WIDE = re.compile(rf"(?:OPTICAL|SAR)-({'|'.join((*S2_NAMES, *S1_NAMES))})-ts(\d+)-\d+m")
_EARLY = pd.Timedelta(hours=14)
"""A month that starts in another time zone: 2016-12-31 23:00 is January 2017."""
# Atmospheric correction leaves water and shadows a little below 0.
_RANGES = {"s2": (-0.2, S2_BANDS[0].range[1]), "s1": S1_BANDS[0].range}
_FAINT = 0.01  # reflectance that no table of land stays below


@dataclass(frozen=True)
class Series:
    """Samples with their months. `months` counts from year 0: 12 × year + month - 1.

    `impossible` counts values outside the range of their band, which are no data.
    """

    samples: pd.DataFrame  # N rows: sample_id, lat, lon, label (text), region (text), year
    months: npt.NDArray[np.int64]  # (N, T) of each sample
    s2_nct: IntArray
    s1_nct: IntArray
    s2_bands: tuple[str, ...]
    s1_bands: tuple[str, ...]
    impossible: dict[str, int]


def _month(number: int) -> str:
    return f"{number // 12}-{number % 12 + 1:02d}"


def month_number(when: Any) -> Any:
    """12 × year + month - 1 of a date or of a column of dates."""
    return 12 * when.year + when.month - 1


def read_series(files: Sequence[str], settings: SeriesConfig, as_of: pd.Timestamp, months: int) -> Series:
    """The samples of tables, each with the `months` that end with the month of `as_of` in its own year.

    Raises InputError for files that cannot be read, lack columns, have a month of a sample twice, or values
    that are impossible.
    """
    rows = pd.concat([_long_rows(Path(file), settings) for file in files], ignore_index=True)
    _check_samples(rows)
    twice = rows.duplicated(["sample_id", "month"])
    if twice.any():
        row = rows[twice].iloc[0]
        raise InputError(
            f"sample {row.sample_id} has {_month(row.month)} more than once ({int(twice.sum())} such rows): "
            "give each file once, and one row a sample and month"
        )
    samples = rows.drop_duplicates("sample_id")[["sample_id", "lat", "lon", "label", "region", "year"]]
    samples = samples.sort_values("sample_id").reset_index(drop=True)
    last = month_number(as_of) + 12 * (samples["year"].fillna(as_of.year).to_numpy(np.int64) - as_of.year)
    samples["year"] = samples["year"].fillna(as_of.year).astype(int)
    wanted_nt = last[:, None] + np.arange(1 - months, 1)
    at = samples["sample_id"].searchsorted(rows["sample_id"].to_numpy(), sorter=None)
    place = rows["month"].to_numpy(np.int64) - wanted_nt[at, 0]
    inside = (place >= 0) & (place < months)
    if not inside.any():
        first, end = rows["month"].min(), rows["month"].max()
        raise InputError(
            f"the tables have months from {_month(first)} to {_month(end)}, "
            f"none of them among the {months} that end with {as_of.date()} (window.months, window.as_of)"
        )
    impossible: dict[str, int] = {}
    cubes, names = [], []
    for bands in (S2_BANDS, S1_BANDS):
        found = _bands_of(rows, bands, settings.bands, settings.nodata)
        values = np.full((len(samples), len(found), months), np.nan)
        for c, band in enumerate(found):
            physical, outside = _physical(rows[band.name].to_numpy(np.float64), band, settings)
            if outside:
                impossible[band.name] = outside
            values[at[inside], c, place[inside]] = physical[inside]
        # A month without one of its bands has no view: the network is told of whole sensors.
        valid_n1t = np.isfinite(values).all(axis=1, keepdims=True) & bool(found)
        cubes.append(quantise(values, valid_n1t, bands[0].scale))
        names.append(tuple(band.name for band in found) or tuple(band.name for band in bands))
        if not found:
            cubes[-1] = np.full((len(samples), len(bands), months), np.int16(-32768))
    return Series(samples, wanted_nt, cubes[0], cubes[1], names[0], names[1], impossible)


def match_codes(codes: Sequence[str], settings: SeriesConfig) -> tuple[list[str | None], Counter[str]]:
    """The class of each code, "" if unlabelled, None if of no class; and how often codes of no class occur.

    The longest pattern that fits decides. Raises InputError if two classes have the same one.
    """
    patterns: dict[str, str] = {}
    for name, wanted in [*settings.codes.items(), ("", settings.unlabelled)]:
        for pattern in map(_code, wanted):
            if patterns.setdefault(pattern, name) != name:
                raise InputError(
                    f"series.codes has {pattern} in {name} and in {patterns[pattern] or 'unlabelled'}"
                )
    patterns.setdefault("", "")  # no code at all
    by_length = sorted(patterns, key=len, reverse=True)

    def find(code: str) -> str | None:
        for pattern in by_length:
            if code == pattern or (pattern.endswith("*") and code.startswith(pattern[:-1])):
                return patterns[pattern]
        return None

    class_of = {code: find(code) for code in set(codes)}
    return [class_of[code] for code in codes], Counter(code for code in codes if class_of[code] is None)


def _code(value: Any) -> str:
    """A code as text: 1200, 1200.0 and "12-00" are the same. Empty for a missing one."""
    return "" if pd.isna(value) else str(value).strip().removesuffix(".0").replace("-", "")


def _long_rows(path: Path, settings: SeriesConfig) -> pd.DataFrame:
    """The rows of one file: the roles (with `month` for the timestamp) and the bands under their names."""
    names = _column_names(path)
    wide = {match[0]: (match[1], int(match[2])) for name in names if (match := _WIDE.fullmatch(name))}
    for band in (*S2_NAMES, *S1_NAMES):
        if "{t}" in (template := settings.columns.get(band, "")):
            pattern = re.compile(re.escape(template).replace(r"\{t\}", r"(\d+)"))
            wide |= {match[0]: (band, int(match[1])) for name in names if (match := pattern.fullmatch(name))}
    known = _KNOWN | {"timestamp": ("start_date",)} if wide else _KNOWN
    chosen = _chosen(path, names, known, settings)
    table = _read(path, [*chosen.values(), *wide])
    rows = pd.DataFrame({role: table[column] for role, column in chosen.items()})
    for role in _OPTIONAL:
        rows[role] = rows.get(role, pd.Series(None, index=rows.index, dtype=object))
    rows["sample_id"], rows["label"] = (
        rows["sample_id"].astype(str),
        rows["label"].map({x: _code(x) for x in rows["label"].unique()}),
    )
    rows["region"] = rows["region"].fillna("").astype(str)
    rows["year"] = _years(rows["year"], path)
    rows["month"] = _months(rows.pop("timestamp"), path)
    if not wide:
        return rows
    parts = []
    for t in sorted({t for _, t in wide.values()}):
        part = rows.assign(month=rows["month"] + t)
        for column, (band, number) in wide.items():
            if number == t:
                part[band] = table[column]
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _column_names(path: Path) -> list[str]:
    try:
        if path.suffix in (".parquet", ".geoparquet"):
            return list(pq.read_schema(path).names)
        return list(pd.read_csv(path, nrows=0).columns)
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read ({reason}): give a .parquet or a .csv file") from error


def _read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    if path.suffix in (".parquet", ".geoparquet"):
        table: pd.DataFrame = pq.read_table(path, columns=list(dict.fromkeys(columns))).to_pandas()
        return table
    return pd.read_csv(path, usecols=list(dict.fromkeys(columns)))


def _chosen(
    path: Path, names: Sequence[str], known: Mapping[str, tuple[str, ...]], settings: SeriesConfig
) -> dict[str, str]:
    """The column of each role and band that the file has. Raises InputError if a necessary one is missing."""
    chosen = {}
    for role, candidates in known.items():
        given = settings.columns.get(role, "")
        if given and "{t}" not in given and given not in names:
            raise InputError(f"{path} has no column {given} (series.columns.{role}).{nearest(given, names)}")
        found = [name for name in ((given,) if given else candidates) if name in names]
        if found:
            chosen[role] = found[0]
        elif role in ROLES and role not in _OPTIONAL:
            raise InputError(
                f"{path} has no column for {role} ({' or '.join(candidates)}). Name it: --set "
                f"series.columns.{role}=…\nIts columns: {', '.join(names)}"
            )
    return chosen


def _months(values: pd.Series[Any], path: Path) -> pd.Series[int]:
    when = pd.to_datetime(values, errors="coerce", utc=True, format="ISO8601")
    if when.isna().any():
        raise InputError(f"{path}: {values[when.isna()].iloc[0]!r} is no date of a month (timestamp)")
    numbers: pd.Series[int] = month_number((when + _EARLY).dt)
    return numbers


def _years(values: pd.Series[Any], path: Path) -> pd.Series[Any]:
    """Years, from numbers or dates; missing ones stay so."""
    numbers = pd.to_numeric(values, errors="coerce") if values.dtype.kind != "M" else values
    if numbers.dtype.kind == "M" or numbers.isna().any():
        numbers = pd.to_datetime(values, errors="coerce", utc=True, format="ISO8601").dt.year
    if (numbers.isna() & values.notna()).any():
        raise InputError(f"{path}: {values[numbers.isna()].iloc[0]!r} is no year (series.columns.year)")
    return numbers


def _check_samples(rows: pd.DataFrame) -> None:
    """Raise InputError if a sample has two places or labels, or a place that is none on Earth."""
    for name in ("lat", "lon", "label", "year", "region"):
        several = rows.groupby("sample_id")[name].nunique()
        if (several > 1).any():
            first = several[several > 1].index[0]
            values = rows.loc[rows["sample_id"] == first, name].unique()[:3]
            raise InputError(f"sample {first} has several values of {name}: {', '.join(map(str, values))}")
    wrong = ~(rows["lat"].between(-90, 90) & rows["lon"].between(-180, 180))
    if wrong.any():
        row = rows[wrong].iloc[0]
        raise InputError(f"sample {row.sample_id} lies at lat {row.lat}, lon {row.lon}: wanted degrees")


def _bands_of(rows: pd.DataFrame, bands: Sequence[Band], wanted: Sequence[str], nodata: float) -> list[Band]:
    """Those that are wanted; if none are named, those that hold a value."""
    if missing := [name for name in wanted if name not in rows and name in {band.name for band in bands}]:
        raise InputError(f"the tables have no {', '.join(missing)} (series.bands, series.columns)")
    if wanted:
        return [band for band in bands if band.name in wanted]
    return [band for band in bands if band.name in rows and rows[band.name].ne(nodata).any()]


def _physical(values: DoubleArray, band: Band, settings: SeriesConfig) -> tuple[DoubleArray, int]:
    """Reflectance or dB, NaN for none, and how many values were impossible and are NaN.

    Raises InputError if they are too many, or if all are much too small.
    """
    values = np.where(values == settings.nodata, np.nan, values)
    if band.sensor == "s2":
        physical = settings.s2_scale * values + settings.s2_offset
        setting, shown = "series.s2_scale and series.s2_offset", "reflectance"
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log10(np.where(values > 0, values, np.nan))
        physical = {"amplitude": 20 * logs - 83, "power": 10 * logs, "dB": values}[settings.s1_unit]
        setting, shown = "series.s1_unit", "dB"
    low, high = _RANGES[band.sensor]
    known: BoolArray = np.isfinite(physical)
    outside = known & ((physical < low) | (physical > high))
    share = outside.sum() / max(1, known.sum())
    faint = band.sensor == "s2" and known.any() and np.quantile(physical[known], 0.99) < _FAINT
    if share > settings.max_impossible or faint:
        found = f"all below {_FAINT}" if faint else f"{share:.1%} outside {low:g} to {high:g}"
        raise InputError(
            f"{band.name} is {found} in {shown} (values like {values[known][0]:g}): set {setting} to its "
            "encoding, or series.max_impossible higher if the values are right"
        )
    return np.where(outside, np.nan, physical), int(outside.sum())


def format_codes(counts: Counter[str]) -> str:
    """The most frequent codes with their numbers, for a message."""
    return listed([f"{code}: {count} samples" for code, count in counts.most_common()])
