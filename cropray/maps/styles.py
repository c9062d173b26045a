"""The legend of a map for other programs: attribute table (GDAL), styles (QGIS) and SLD (map servers).

All list the classes from the largest to the smallest, under plain names and in the colours of the map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

from cropray.figures.crops import Rgb, by_area, class_names, colour_table, hexadecimal, shown

ATTRIBUTES = "map.tif.aux.xml"
QGIS_STYLE = "map.qml"
SLD_STYLE = "map.sld"

# Columns of a GDAL attribute table: name, type (0 integer, 1 real, 2 text) and usage (GDALRATFieldUsage).
_COLUMNS = (
    *(("Value", 0, 5), ("Count", 0, 1), ("Class", 2, 2), ("Hectares", 1, 0)),
    *(("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8), ("Alpha", 0, 9)),
)
_SLD = "http://www.opengis.net/sld"


class Entry(NamedTuple):
    """A class in a legend."""

    value: int
    label: str
    rgb: Rgb
    pixels: int
    hectares: float


def legend(classes: Sequence[str], areas: Mapping[str, Mapping[str, float]]) -> list[Entry]:
    """The classes of a map, the largest first, from the areas of `mosaic.class_areas`."""
    colours, values = colour_table(classes), {name: value for value, name in class_names(classes).items()}
    hectares = {name: area["hectares"] for name, area in areas.items()}
    return [
        Entry(values[name], shown(name), colours[values[name]], int(areas[name]["pixels"]), hectares[name])
        for name in by_area([*areas], hectares)
    ]


def style_files(entries: Sequence[Entry]) -> dict[str, str]:
    """The files by name."""
    return {
        ATTRIBUTES: _attributes(entries),
        QGIS_STYLE: "<!DOCTYPE qgis>\n" + _text(_qgis(entries)),
        SLD_STYLE: '<?xml version="1.0" encoding="UTF-8"?>\n' + _text(_sld(entries)),
    }


def _attributes(entries: Sequence[Entry]) -> str:
    """A raster attribute table as GDAL keeps it beside a file (PAM)."""
    root = ET.Element("PAMDataset")
    band = ET.SubElement(root, "PAMRasterBand", band="1")
    table = ET.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    for index, (name, kind, usage) in enumerate(_COLUMNS):
        column = ET.SubElement(table, "FieldDefn", index=str(index))
        for tag, text in (("Name", name), ("Type", kind), ("Usage", usage)):
            ET.SubElement(column, tag).text = str(text)
    for index, entry in enumerate(entries):
        row = ET.SubElement(table, "Row", index=str(index))
        hectares = f"{entry.hectares:.2f}"
        for cell in (entry.value, entry.pixels, entry.label, hectares, *entry.rgb, 255):
            ET.SubElement(row, "F").text = str(cell)
    return _text(root)


def _qgis(entries: Sequence[Entry]) -> ET.Element:
    root = ET.Element("qgis", version="3.22", styleCategories="Symbology")
    pipe = ET.SubElement(root, "pipe")
    renderer = ET.SubElement(pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1")
    palette = ET.SubElement(renderer, "colorPalette")
    for entry in entries:
        shown_as = {"value": str(entry.value), "label": entry.label, "color": hexadecimal(entry.rgb)}
        ET.SubElement(palette, "paletteEntry", shown_as | {"alpha": "255"})
    return root


def _sld(entries: Sequence[Entry]) -> ET.Element:
    attributes: dict[str, Any] = {"version": "1.0.0", "xmlns": _SLD}
    root = parent = ET.Element("StyledLayerDescriptor", attributes)
    for tag, name in (("NamedLayer", "crops"), ("UserStyle", "crops")):
        parent = ET.SubElement(parent, tag)
        ET.SubElement(parent, "Name").text = name
    rule = ET.SubElement(ET.SubElement(parent, "FeatureTypeStyle"), "Rule")
    colours = ET.SubElement(ET.SubElement(rule, "RasterSymbolizer"), "ColorMap", type="values")
    for entry in entries:
        shown_as = {"quantity": str(entry.value), "label": entry.label, "color": hexadecimal(entry.rgb)}
        ET.SubElement(colours, "ColorMapEntry", shown_as)
    return root


def _text(root: ET.Element) -> str:
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"
