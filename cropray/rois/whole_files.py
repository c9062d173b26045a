"""Whether a vector file is whole. GDAL takes what a broken copy has lost for features that never were."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from cropray.errors import InputError

_SQLITE = b"SQLite format 3\0"
_DBASE = (".dbf", ".dat")  # of shapefiles and of MapInfo
_EDGE_BYTES = 1 << 16


def check_whole(file: Path, columns: Sequence[str]) -> None:
    """Raises InputError for an empty file, and for one that ends before it says, or without a part.

    SQLite (GeoPackage), shapefiles, MapInfo tables and geodatabases state their sizes. XML ends with the tag
    that it began with. `columns` are those that are wanted: without any, a shapefile needs no .dbf.
    """
    if file.is_dir():
        for table in sorted(file.glob("*.gdbtable")):
            _check_size(table, int.from_bytes(_head(table)[24:32], "little"))
        return
    head = _head(file)
    if not head:
        raise InputError(f"{file} is empty. Copy it again.")
    if head.startswith(_SQLITE):  # https://www.sqlite.org/fileformat.html: its size counts if 24 and 92 agree
        page = int.from_bytes(head[16:18], "big")
        if head[24:28] == head[92:96]:
            _check_size(file, int.from_bytes(head[28:32], "big") * (65536 if page == 1 else page))
    elif head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        _check_end_tag(file)
    elif file.suffix.lower() == ".shp":
        _check_size(file, 2 * int.from_bytes(head[24:28], "big"))
        _check_parts(file, (".shx", ".dbf") if columns else (".shx",))
    elif file.suffix.lower() == ".tab":
        _check_parts(file, (".dat",))


def stated_features(file: Path, driver: str) -> int:
    """The least number of features that a file of lines has by its lines, 0 if its format has no lines."""
    if driver == "GeoJSONSeq":
        with file.open("rb") as stream:
            separated = stream.read(1) == b"\x1e"
            stream.seek(0)
            return sum((line.count(b"\x1e") if separated else bool(line.strip())) for line in stream)
    if file.suffix.lower() == ".mif":
        for attributes in beside(file, ".mid"):
            with attributes.open("rb") as stream:
                return sum(1 for _ in stream)
    return 0


def beside(file: Path, suffix: str) -> list[Path]:
    """The file of the same name with another suffix, in any case, if it is there."""
    return [path for path in file.parent.glob(f"{glob.escape(file.stem)}.*") if path.suffix.lower() == suffix]


def _check_parts(file: Path, suffixes: Sequence[str]) -> None:
    for suffix in suffixes:
        found = beside(file, suffix)
        if not found:
            raise InputError(f"{file.with_suffix(suffix)} is missing beside {file.name}. Copy it too.")
        head = _head(found[0])
        records, start, width = (int.from_bytes(head[a:b], "little") for a, b in ((4, 8), (8, 10), (10, 12)))
        words = int.from_bytes(head[24:28], "big")
        _check_size(found[0], start + records * width if suffix in _DBASE else 2 * words)


def _check_end_tag(file: Path) -> None:
    with file.open("rb") as stream:
        start = stream.read(_EDGE_BYTES)
        stream.seek(max(0, file.stat().st_size - _EDGE_BYTES))
        end = stream.read()
    root = re.search(rb"<([A-Za-z_][\w:.-]*)", start)
    if root and not re.search(rb"</" + re.escape(root[1]) + rb"\s*>(\s|<!--.*?-->|\0)*$", end, re.DOTALL):
        raise InputError(f"{file} is truncated: it does not end with </{root[1].decode()}>. Copy it again.")


def _head(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(100)


def _check_size(file: Path, wanted: int) -> None:
    size = file.stat().st_size
    if size < wanted:
        raise InputError(f"{file} is truncated: {size} of {wanted} bytes are there. Copy it again.")
