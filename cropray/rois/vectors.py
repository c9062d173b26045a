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
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pyogrio
import pyogrio.errors
import shapely
import shapely.errors

from cropray.errors import InputError, nearest
from cropray.rois.shapes import LONLAT, POINTS, POLYGONS
from cropray.rois.sheets import CsvHead, read_csv_head
from cropray.rois.whole_files import beside, check_whole, stated_features

_PARQUET = (".parquet", ".geoparquet")
_PARTS = (*_PARQUET, ".shp", ".gpkg", ".fgb", ".geojson")  # suffixes that a glob of a folder may have
_TABLES = (".csv", ".tsv", ".txt", ".xlsx", ".xls", ".ods")

_ACCEPTED = (*POLYGONS, shapely.GeometryType.GEOMETRYCOLLECTION, shapely.GeometryType.MISSING)
_LONLAT_COLUMNS = (("lon", "lat"), ("longitude", "latitude"))
_UNREADABLE = (
    *(pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, pa.ArrowException),
    *(OSError, UnicodeDecodeError, KeyError, shapely.errors.ShapelyError),
)


def matching(root: str, pattern: str) -> list[Path]:
    """The files that match a path or glob relative to `root`, sorted."""
    return [Path(name) for name in sorted(glob.glob(str(Path(root).expanduser() / pattern), recursive=True))]


def find_files(root: str, pattern: str) -> list[Path]:
    """The files of `matching`, without the parts of shapefiles. Raises InputError if there is none.

    Raises InputError for a folder too, and for a URL.
    """
    files = matching(root, pattern)
    shapefiles = {(file.parent, file.stem) for file in files if file.suffix.lower() == ".shp"}
    files = [
        file
        for file in files
        if file.suffix.lower() == ".shp"
        or shapefiles.isdisjoint({(file.parent, file.stem), (file.parent, Path(file.stem).stem)})
    ]
    if not files and "://" in pattern:
        raise InputError(
            f"{pattern} is a URL. Vector files are read from disks: download it, and give its path."
        )
    if not files:
        wanted = Path(root).expanduser() / pattern
        raise InputError(f"there is no file {wanted}. Check the path, and rois.data_root if it is relative.")
    for file in files:
        if file.is_dir() and file.suffix != ".gdb":
            suffixes = [suffix for suffix in _PARTS if any(file.glob(f"*{suffix}"))] or [".shp"]
            raise InputError(
                f"{file} is a folder. Give a file, or a glob such as {file.name}/*{suffixes[0]}."
            )
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
        check_whole(file, columns)
        if file.suffix.lower() in _PARQUET:
            frame = _read_parquet(file, columns)
        elif file.suffix.lower() == ".csv" and (places := _places(file, encoding)):
            frame = _read_csv(file, columns, places, encoding)
        else:
            chosen = layer or _only_layer(file, layer_setting)
            frame = _read_gdal(file, columns, chosen, encoding)
    except _UNREADABLE as error:
        text = error.encoding if isinstance(error, UnicodeDecodeError) else encoding
        hint = f" Its text may not be {text}: correct `encoding`." if text else ""
        reason = str(error).partition("; It might help")[0].rstrip(". \n")  # to name a driver of GDAL
        raise InputError(f"cannot read {file} as a vector file: {reason}.{hint}") from error
    is_table = file.suffix.lower() in _TABLES
    points_in_degrees = "columns lon and lat in degrees"
    if "geometry" not in frame or (frame.geometry.isna() | frame.geometry.is_empty).all():
        table = f", or points as a csv with {points_in_degrees}" if is_table else ""
        raise InputError(f"{file} has no features with a geometry. Give a file of polygons{table}.")
    if frame.crs is None:
        remedy = "Save the file with its CRS."
        if is_table:
            remedy = f"Give points in {points_in_degrees}, or save the file as a GeoPackage with its CRS."
        elif file.suffix.lower() == ".shp":
            remedy = f"{file.stem}.prj, which holds it, is missing or empty. {remedy}"
        raise InputError(f"{file} has no CRS. {remedy}")
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
    if given or file.suffix.lower() != ".shp" or beside(file, ".cpg"):
        return given or None
    (table,) = beside(file, ".dbf")
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
    info = pyogrio.read_info(file, layer=layer)
    _check_columns(file, columns, [str(name) for name in info["fields"]])
    text = _encoding_of(file, encoding) if columns else None
    options: dict[str, Any] = {"layer": layer, "columns": list(columns), "encoding": text}
    try:
        frame = pyogrio.read_dataframe(file, use_arrow=True, **options)
    except NotImplementedError:  # curves, which GDAL makes straight when it hands out single features
        return pyogrio.read_dataframe(file, use_arrow=False, **options)
    stated = stated_features(file, info["driver"])
    if len(frame) < stated:
        raise InputError(
            f"{file} is damaged: {len(frame)} of its {stated} features can be read. Copy it again."
        )
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


def _places(file: Path, encoding: str) -> CsvHead | None:
    """The head of a csv file if it has columns of longitudes and latitudes, which come first in it."""
    head = read_csv_head(file, [name for pair in _LONLAT_COLUMNS for name in pair], encoding)
    known = {name.lower(): name for name in head.columns}
    for lon, lat in _LONLAT_COLUMNS:
        if lon in known and lat in known:
            return head._replace(places=(known[lon], known[lat]))
    return None


def _read_csv(file: Path, columns: Sequence[str], head: CsvHead, encoding: str) -> gpd.GeoDataFrame:
    """Points of a csv file of any length. A row without coordinates has no geometry."""
    _check_columns(file, columns, head.columns)
    wanted = list(dict.fromkeys([*head.places, *columns]))
    try:
        table = pacsv.read_csv(
            file,
            pacsv.ReadOptions(
                skip_rows=head.lines, column_names=list(head.columns), encoding=encoding or "utf8"
            ),
            pacsv.ParseOptions(delimiter=head.separator, newlines_in_values=True),
            pacsv.ConvertOptions(include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string())),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        if "utf" not in str(error).lower():
            raise
        raise InputError(
            f"{file} is not {encoding or 'UTF-8'} text. Set `encoding` beside its path, or save it in UTF-8."
        ) from error
    text = {name: pc.utf8_trim_whitespace(table[name]) for name in wanted}
    try:
        lon, lat = (
            pc.if_else(pc.equal(text[name], ""), None, text[name]).cast(pa.float64()).to_numpy()
            for name in head.places
        )
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{file}: {' and '.join(head.places)} hold text ({error}). Give degrees, with a decimal point."
        ) from error
    places = shapely.points(lon, lat)
    places[~(np.isfinite(lon) & np.isfinite(lat))] = None
    return gpd.GeoDataFrame({name: text[name].to_pandas() for name in columns}, geometry=places, crs=LONLAT)


def _check_columns(file: Path, columns: Sequence[str], known: Sequence[str]) -> None:
    for column in columns:
        if column not in known:
            raise InputError(f"{file} has no attribute {column!r}.{nearest(column, known)}")
