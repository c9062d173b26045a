"""The files of the ROIs: `rois/rois.parquet` and `rois/parcels.parquet` (GeoParquet), `rois/dropped.csv`.

The same ROIs and parcels give the same bytes.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
import xxhash

from cropray.storage import Folder
from cropray.types import Roi

ROIS = "rois/rois.parquet"
PARCELS = "rois/parcels.parquet"
DROPPED = "rois/dropped.csv"

_ROWS = 50_000  # of a row group
_GEOMETRY_TYPES = {kind: kind.name.title().replace("poly", "Poly") for kind in shapely.GeometryType}
_TEXT = ("roi_id", "crop", "season", "province", "country", "split")
_DATES = ("planting_start", "planting_end", "harvest_start", "harvest_end")


@dataclass(frozen=True)
class Dropped:
    """A parcel, or a cluster of parcels, that gives no ROI, with the reason."""

    file: str
    crop: str
    season: str
    item: str
    reason: str


def write_rois(folder: Folder, rois: Sequence[Roi]) -> None:
    """Write ROIs, which share one CRS, ordered by roi_id."""
    rois = sorted(rois, key=lambda roi: roi.roi_id)
    (crs,) = {roi.crs for roi in rois}
    # With declared types: a column without any date would have no type.
    columns = {name: _column([getattr(roi, name) for roi in rois], pa.string()) for name in _TEXT}
    columns |= {name: _column([getattr(roi, name) for roi in rois], pa.date32()) for name in _DATES}
    boxes = shapely.box(*zip(*(roi.bounds for roi in rois), strict=True))
    _write(folder, ROIS, gpd.GeoDataFrame(columns, geometry=boxes, crs=crs))


def read_rois(folder: Folder) -> list[Roi]:
    """The ROIs of a run folder, ordered by roi_id. Raises InputError if there are none yet."""
    frame = gpd.read_parquet(io.BytesIO(folder.read_bytes(ROIS)))
    crs = frame.crs.to_string()
    bounds = frame.geometry.bounds.to_numpy().tolist()
    records: list[dict[str, Any]] = frame.drop(columns="geometry").to_dict("records")
    for record, box in zip(records, bounds, strict=True):
        record |= {name: _date(record[name]) for name in _DATES}
        record |= {"bounds": tuple(box), "crs": crs}
    return [Roi(**record) for record in records]


def write_parcels(folder: Folder, parcels: gpd.GeoDataFrame) -> None:
    """Write the parcels that become labels (columns as in `read_parcels`), ordered by parcel_id."""
    frame = parcels[["parcel_id", "crop", "geometry"]].sort_values("parcel_id", ignore_index=True)
    columns = {name: pa.array(frame[name], pa.string()) for name in ("parcel_id", "crop")}
    arrays = {name: pd.arrays.ArrowExtensionArray(column) for name, column in columns.items()}
    _write(folder, PARCELS, gpd.GeoDataFrame(arrays, geometry=frame.geometry))


def read_parcels(folder: Folder) -> gpd.GeoDataFrame:
    """All parcels of a run folder: parcel_id, crop, geometry (EPSG:4326). Empty for ROIs from a table."""
    return gpd.read_parquet(io.BytesIO(folder.read_bytes(PARCELS)))


def write_dropped(folder: Folder, dropped: Sequence[Dropped]) -> None:
    columns = list(Dropped.__dataclass_fields__)
    frame = pd.DataFrame([vars(row) for row in dropped], columns=columns)
    folder.write_text(DROPPED, frame.sort_values(columns).to_csv(index=False))


def fingerprint(folder: Folder) -> str:
    """A hash of the ROIs and the parcels of a run folder."""
    return xxhash.xxh3_64_hexdigest(folder.read_bytes(ROIS) + folder.read_bytes(PARCELS))


def identity(label: str, parts: Iterable[bytes]) -> str:
    """`label` as a plain word and a hash of `label` and `parts`, fit for file names.

    Each part is hashed by itself first, so moving the boundary between two parts changes the result.
    """
    return identity_of_digests(label, map(xxhash.xxh3_64_digest, parts))


def identity_of_digests(label: str, digests: Iterable[bytes]) -> str:
    """The `identity` of parts, from the xxh3 digest of each."""
    whole = xxhash.xxh3_64(label.encode())
    for digest in digests:
        whole.update(digest)
    word = _word(label)
    return f"{word}-{whole.hexdigest()}" if word else whole.hexdigest()


@lru_cache
def _word(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-").lower()


def _write(folder: Folder, name: str, frame: gpd.GeoDataFrame) -> None:
    """Write GeoParquet by groups of rows: as WKB, a million parcels at once would take 300 MB."""
    like = io.BytesIO()
    frame.iloc[:1].to_parquet(like, index=False)
    schema = pq.read_schema(like)
    if len(frame):
        geo = json.loads(schema.metadata[b"geo"])
        kinds = np.unique(shapely.get_type_id(frame.geometry.to_numpy()))
        geo["columns"][geo["primary_column"]] |= {
            "geometry_types": [_GEOMETRY_TYPES[kind] for kind in kinds],
            "bbox": frame.total_bounds.tolist(),
        }
        schema = schema.with_metadata({**schema.metadata, b"geo": json.dumps(geo).encode()})
    with folder.making(name) as path, pq.ParquetWriter(path, schema, compression="snappy") as writer:
        for start in range(0, len(frame), _ROWS):
            rows = pa.table(frame.iloc[start : start + _ROWS].to_arrow(index=False))
            writer.write_table(rows.cast(schema))


def _column(values: list[Any], kind: pa.DataType) -> pd.arrays.ArrowExtensionArray:
    return pd.arrays.ArrowExtensionArray(pa.array(values, kind))


def _date(value: object) -> date | None:
    return value if isinstance(value, date) and not pd.isna(value) else None
