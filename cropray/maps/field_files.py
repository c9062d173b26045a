"""The files of classified fields: GeoParquet as fiboa wants it, and a GeoPackage in the colours of a map."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from pathlib import Path
from xml.etree import ElementTree as ET

import geopandas as gpd
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio

from cropray.figures.crops import class_names, colour_table, shown
from cropray.maps.tiles import NODATA
from cropray.storage import Folder

PARQUET = "fields.parquet"
PACKAGE = "fields.gpkg"
CODES = "crops.csv"
MADE_FROM = b"cropray"
"""Key of the Parquet metadata with the hash of what the fields were made from."""

_FIBOA = {
    "fiboa_version": "0.2.0",
    "fiboa_extensions": ["https://fiboa.github.io/crop-extension/v0.1.0/schema.yaml"],
}
_UNKNOWN, _AUTO = "unknown", "auto-imagery"


def write_fields(
    table: gpd.GeoDataFrame,
    classes: Sequence[str],
    as_of: date,
    made_from: str,
    directory: Path,
    *,
    auto: bool = False,
) -> list[Path]:
    """Write fields.parquet, fields.gpkg and crops.csv into a local directory.

    fields.parquet has the core columns of fiboa 0.2 (https://fiboa.org) too: id, area in hectares,
    determination_datetime (the as-of date) and determination_method: "auto-imagery" for regions that a
    segmentation found (`auto`). It has those of its crop extension too, whose list of codes, the values of
    the map, is crops.csv. fields.gpkg has a table layer_styles, from which QGIS takes the colours.
    """
    paths = [directory / PARQUET, directory / PACKAGE, directory / CODES]
    codes = {name: str(value) for value, name in class_names(classes).items()} | {_UNKNOWN: str(NODATA)}
    crops = table["class"].fillna(_UNKNOWN)
    core = {
        "id": table["field"].astype(str),
        "area": table["hectares"].astype("float32"),
        "determination_method": _AUTO if auto else "unknown",
        "crop:code_list": CODES,
        "crop:code": crops.map(codes),
        "crop:name": crops,
        "crop:name_en": crops.map(shown),
    }
    table.drop(columns="hectares").assign(**core).to_parquet(paths[0], index=False, write_covering_bbox=True)
    rows = pq.read_table(paths[0])
    observed = pa.array(
        [datetime.combine(as_of, time(23, 59, 59), UTC)] * len(rows), pa.timestamp("ms", "UTC")
    )
    rows = rows.append_column("determination_datetime", observed)
    metadata = {**(rows.schema.metadata or {}), b"fiboa": json.dumps(_FIBOA).encode()}
    pq.write_table(rows.replace_schema_metadata({**metadata, MADE_FROM: made_from.encode()}), paths[0])
    pyogrio.write_dataframe(table, paths[1], layer="fields", driver="GPKG")
    listed = [(code, name, shown(name)) for name, code in codes.items()]
    head = ["original_code", "original_name", "translated_name"]  # as the extension wants them
    pd.DataFrame(listed, columns=head).to_csv(paths[2], index=False)
    style = pd.DataFrame(
        {
            "f_table_catalog": "",
            "f_table_schema": "",
            "f_table_name": "fields",
            "f_geometry_column": "geom",
            "styleName": "crops",
            "styleQML": _qml(classes, table["class"].dropna().unique()),
            "styleSLD": "",
            "useAsDefault": [True],
            "description": "colours of the map",
            "owner": "",
            "ui": "",
            "update_time": f"{as_of}T00:00:00Z",
        }
    )
    pyogrio.write_dataframe(style, paths[1], layer="layer_styles", driver="GPKG", append=True)
    return paths


def found_in_imagery(folder: Folder) -> bool:
    """Whether the fields beside a map are regions that a segmentation found."""
    with folder.filesystem.open_input_file(folder.path(PARQUET)) as stream:
        methods = pq.read_table(stream, columns=["determination_method"])["determination_method"]
    return _AUTO in methods.unique().to_pylist()


def _qml(classes: Sequence[str], present: Sequence[str]) -> str:
    """A style of QGIS: fields filled by class, those without one empty."""
    table = colour_table(classes)
    used = {name: table[value] for value, name in class_names(classes).items() if name in present}
    root = ET.Element("qgis", version="3.22", styleCategories="Symbology")
    renderer = ET.SubElement(root, "renderer-v2", type="categorizedSymbol", attr="class", enableorderby="0")
    categories, symbols = (ET.SubElement(renderer, name) for name in ("categories", "symbols"))
    for number, (name, rgb) in enumerate([*used.items(), ("", None)]):
        label = shown(name) or "no pixel"
        ET.SubElement(categories, "category", value=name, symbol=str(number), label=label, render="true")
        symbol = ET.SubElement(symbols, "symbol", name=str(number), type="fill", alpha="1")
        layer = ET.SubElement(symbol, "layer", {"class": "SimpleFill", "enabled": "1"})
        options = ET.SubElement(layer, "Option", type="Map")
        fill = "0,0,0,0" if rgb is None else ",".join(map(str, (*rgb, 255)))
        for key, value in (("color", fill), ("outline_color", "60,60,60,255"), ("outline_width", "0.2")):
            ET.SubElement(options, "Option", type="QString", name=key, value=value)
    return "<!DOCTYPE qgis>\n" + ET.tostring(root, encoding="unicode")
