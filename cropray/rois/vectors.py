"""Features of vector files: found, read and checked."""

from __future__ import annotations

import codecs
import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pyogrio.errors
import shapely

from cropray.errors import InputError, nearest
from cropray.rois.shapes import LONLAT, POINTS, POLYGONS
from cropray.rois.sheets import read_sheets

_PARQUET = (".parquet", ".geoparquet")

_ACCEPTED = (*POLYGONS, shapely.GeometryType.GEOMETRYCOLLECTION, shapely.GeometryType.MISSING)
_LONLAT_COLUMNS = (("lon", "lat"), ("longitude", "latitude"))
_UNREADABLE = (
    *(pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, pa.ArrowException),
    *(OSError, UnicodeDecodeError, KeyError),
)


def matching(root: str, pattern: str) -> list[Path]:
    """The files that match a path or glob relative to `root`, sorted."""
    return [Path(name) for name in sorted(glob.glob(str(Path(root).expanduser() / pattern), recursive=True))]


def find_files(root: str, pattern: str) -> list[Path]:
    """The files of `matching`. Raises InputError if there is none, and for a folder."""
    files = matching(root, pattern)
    if not files:
        wanted = Path(root).expanduser() / pattern
        raise InputError(f"there is no file {wanted}. Check the path, and rois.data_root if it is relative.")
    for file in files:
        if file.is_dir() and file.suffix != ".gdb":
            raise InputError(f"{file} is a folder. Give a file, or a glob such as {file.name}/*.shp.")
    return files


def read_features(
    file: Path,
    columns: Sequence[str],
    *,
    layer: str = "",
    encoding: str = "",
    points: bool = False,
    layer_setting: str = "`layer` beside its path",
) -> gpd.GeoDataFrame:
    """All features of a layer, as stored, with these attribute columns.

    Reads GeoParquet, every format of GDAL (curves become polygons), and csv files of points with columns
    lon and lat. `layer` may be empty if only one has a geometry; messages call its setting `layer_setting`,
    empty if there is none. Raises InputError for a file that is not
    a vector file, is truncated, has several layers, no features, no CRS, an unknown column, text in
    another encoding, or geometries other than polygons (and points, with `points`).
    """
    _check_encoding(encoding)
    try:
        _check_whole(file, columns)
        if file.suffix.lower() in _PARQUET:
            frame = _read_parquet(file, columns)
        elif file.suffix.lower() == ".csv" and (places := _lonlat_columns(file)):
            frame = _read_csv(file, columns, places)
        else:
            chosen = layer or _only_layer(file, layer_setting)
            frame = _read_gdal(file, columns, chosen, encoding)
    except _UNREADABLE as error:
        text = error.encoding if isinstance(error, UnicodeDecodeError) else encoding
        hint = f" Its text may not be {text}: correct `encoding`." if text else ""
        raise InputError(f"cannot read {file} as a vector file: {error}.{hint}") from error
    if "geometry" not in frame or (frame.geometry.isna() | frame.geometry.is_empty).all():
        raise InputError(f"{file} has no features with a geometry. Give a file of polygons.")
    if frame.crs is None:
        prj = (
            f" {file.stem}.prj, which holds it, is missing or empty." if file.suffix.lower() == ".shp" else ""
        )
        raise InputError(f"{file} has no CRS.{prj} Save the file with its CRS.")
    types = shapely.get_type_id(frame.geometry.to_numpy())
    wrong = np.flatnonzero(~np.isin(types, (*_ACCEPTED, *(POINTS if points else ()))))
    if len(wrong):
        kind = frame.geometry.iloc[wrong[0]].geom_type
        raise InputError(
            f"{file} has {len(wrong)} features that are not polygons{' or points' * points} "
            f"(feature {wrong[0]} is a {kind}). Convert them to polygons, or remove them."
        )
    return frame


def _check_encoding(name: str) -> None:
    """Raises InputError unless Python knows the encoding, or it is empty."""
    try:
        codecs.lookup(name or "utf-8")
    except LookupError as error:
        raise InputError(f"encoding {name!r} is unknown. Set utf-8, cp1252, cp1256 or the like.") from error


def _encoding_of(file: Path, given: str) -> str | None:
    """The encoding of a shapefile's text: the given one, else UTF-8 if its .dbf is. None if GDAL knows it.

    GDAL knows it from a .cpg, or from the language driver in the .dbf. Raises InputError if neither says.
    """
    if given or file.suffix.lower() != ".shp" or _beside(file, ".cpg"):
        return given or None
    (table,) = _beside(file, ".dbf")
    data = table.read_bytes()
    try:
        data[int.from_bytes(data[8:10], "little") :].decode("utf-8")
    except UnicodeDecodeError:
        if pyogrio.read_info(file)["encoding"] != "UTF-8":  # what GDAL does not know, it passes on
            raise InputError(
                f"{table}: its text is not UTF-8, and nothing says what it is: there is no .cpg file. Write "
                f"its encoding into {file.with_suffix('.cpg')}, or for rois set `encoding` beside its path: "
                "cp1252 for Western Europe, cp1256 for Arabic and Persian, cp1251 for Cyrillic, and so on."
            ) from None
        return None
    return "UTF-8"


def _only_layer(file: Path, setting: str) -> str:
    """The layer with a geometry. Raises InputError for several."""
    kinds = {str(name): kind for name, kind in pyogrio.list_layers(file)}
    layers = [name for name, kind in kinds.items() if kind is not None] or list(kinds)
    if len(layers) != 1:
        remedy = f"Set {setting}, or save" if setting else "Save"
        raise InputError(
            f"{file} has {len(layers)} layers with a geometry ({', '.join(layers)}). {remedy} one layer in a "
            "file of its own."
        )
    return layers[0]


def _read_gdal(file: Path, columns: Sequence[str], layer: str, encoding: str) -> gpd.GeoDataFrame:
    layers = [str(name) for name, _ in pyogrio.list_layers(file)]
    if layer not in layers:
        raise InputError(f"{file} has no layer {layer!r}.{nearest(layer, layers)}")
    _check_columns(file, columns, [str(name) for name in pyogrio.read_info(file, layer=layer)["fields"]])
    text = _encoding_of(file, encoding) if columns else None
    options: dict[str, Any] = {"layer": layer, "columns": list(columns), "encoding": text}
    try:
        frame = pyogrio.read_dataframe(file, use_arrow=True, **options)
    except NotImplementedError:  # curves, which GDAL makes straight when it hands out single features
        return pyogrio.read_dataframe(file, use_arrow=False, **options)
    for column in columns:
        frame[column].tolist()  # Arrow decodes text late: raise for what is none here
    return frame


def _read_parquet(file: Path, columns: Sequence[str]) -> gpd.GeoDataFrame:
    schema = pq.read_schema(file)
    if b"geo" not in (schema.metadata or {}):
        raise InputError(f"{file} is not GeoParquet: its metadata has no key 'geo'. Save it as GeoParquet.")
    geometry = json.loads(schema.metadata[b"geo"])["primary_column"]
    _check_columns(file, columns, [name for name in schema.names if name != geometry])
    frame = gpd.read_parquet(file, columns=[*columns, geometry])
    return frame if geometry == "geometry" else frame.rename_geometry("geometry")


def _lonlat_columns(file: Path) -> tuple[str, str] | None:
    known = {name.lower(): name for name in _rows(file)[0]}
    for lon, lat in _LONLAT_COLUMNS:
        if lon in known and lat in known:
            return known[lon], known[lat]
    return None


def _rows(file: Path) -> list[list[str]]:
    (rows,) = read_sheets(file, [name for pair in _LONLAT_COLUMNS for name in pair]).values()
    return rows or [[]]


def _read_csv(file: Path, columns: Sequence[str], places: tuple[str, str]) -> gpd.GeoDataFrame:
    header, *rows = _rows(file)
    _check_columns(file, columns, header)
    table = {name: [row[at] for row in rows] for at, name in enumerate(header)}
    try:
        lon, lat = (np.array(table[name], float) for name in places)
    except ValueError as error:
        raise InputError(f"{file}: {' and '.join(places)} hold text ({error}). Give degrees.") from error
    attributes = {name: table[name] for name in columns}
    return gpd.GeoDataFrame(attributes, geometry=shapely.points(lon, lat), crs=LONLAT)


def _check_columns(file: Path, columns: Sequence[str], known: Sequence[str]) -> None:
    for column in columns:
        if column not in known:
            raise InputError(f"{file} has no attribute {column!r}.{nearest(column, known)}")


def _beside(file: Path, suffix: str) -> list[Path]:
    """The file of the same name with another suffix, in any case, if it is there."""
    return [path for path in file.parent.glob(f"{glob.escape(file.stem)}.*") if path.suffix.lower() == suffix]


def _check_whole(file: Path, columns: Sequence[str]) -> None:
    """Raises InputError if a part of a shapefile is missing, and for files shorter than their headers say.

    GDAL takes the missing end of a shapefile for features without a geometry.
    """
    if file.suffix.lower() == ".gpkg":
        head = _head(file)  # https://www.sqlite.org/fileformat.html: its size counts if 24 and 92 agree
        page = int.from_bytes(head[16:18], "big")
        if head[24:28] == head[92:96]:
            _check_size(file, int.from_bytes(head[28:32], "big") * (65536 if page == 1 else page))
    if file.suffix.lower() != ".shp":
        return
    _check_size(file, 2 * int.from_bytes(_head(file)[24:28], "big"))
    for suffix in (".shx", ".dbf") if columns else (".shx",):
        found = _beside(file, suffix)
        if not found:
            raise InputError(f"{file.with_suffix(suffix)} is missing beside {file.name}. Copy it too.")
        head = _head(found[0])
        records, start, width = (int.from_bytes(head[a:b], "little") for a, b in ((4, 8), (8, 10), (10, 12)))
        words = int.from_bytes(head[24:28], "big")
        _check_size(found[0], 2 * words if suffix == ".shx" else start + records * width)


def _head(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(100)


def _check_size(file: Path, wanted: int) -> None:
    size = file.stat().st_size
    if size < wanted:
        raise InputError(f"{file} is truncated: {size} of {wanted} bytes are there. Copy it again.")
