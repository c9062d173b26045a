"""Spreadsheets: the rows of xlsx and csv files as text, with limits on what a file may hold."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, time
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import ParseError
from zipfile import BadZipFile, ZipFile

import openpyxl

from cropray.errors import InputError

_MOST_BYTES = 64 << 20  # of text, unpacked: openpyxl reads about 10 MB/s
_MOST_ROWS, _MOST_COLUMNS, _LAST_ROW = 200_000, 256, 1 << 20
_HEADER_ROWS, _HEAD_BYTES = 20, 1 << 16  # the header may stand below a title
_SEPARATORS = ",;\t"
_SAME_LETTERS = str.maketrans("يىكة", "ییکه")  # of Arabic and Persian keyboards

Rows = list[list[str]]
"""A sheet: its header, then its rows, all of the same length. Cells are text without outer blanks."""


def read_sheets(path: Path, header: Collection[str]) -> dict[str, Rows]:
    """The sheets of an xlsx file, or the one sheet of a csv file in UTF-8 (separated by , ; or tabs).

    The header is the one of the first rows that has most of the columns `header`. Text above it is left out.
    Days are YYYY-MM-DD. Raises InputError for a file that cannot be read or is larger than any table of
    ROIs: endless sheets and nested entities end here.
    """
    try:
        sheets = _read_csv(path, header) if path.suffix.lower() == ".csv" else _read_xlsx(path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}). Save it as csv in UTF-8.") from error
    except InputError:
        raise
    except (BadZipFile, KeyError, ParseError, csv.Error, ValueError) as error:
        raise InputError(f"cannot read {path} ({error}). Save it as xlsx or csv.") from error
    return {name: _below_title(rows, header, path) for name, rows in sheets.items()}


def folded(text: str) -> str:
    """A name without case, accents and outer blanks, for comparison. Hyphens and underscores are blanks."""
    plain = unicodedata.normalize("NFKD", text.translate(_SAME_LETTERS))
    letters = "".join(c for c in plain if not unicodedata.combining(c)).casefold()
    return " ".join(re.split(r"[\s_\-\u2010-\u2015]+", letters)).strip()


def column_key(cell: str) -> str:
    """The name of a column: that of `folded` with underscores, without a final "date"."""
    words = folded(cell).split()
    return "_".join(words[:-1] if len(words) > 1 and words[-1] == "date" else words)


class CsvHead(NamedTuple):
    """How a csv file is read: its separator, the lines up to its header, its columns, those of the places."""

    separator: str
    lines: int
    columns: tuple[str, ...]
    places: tuple[str, str] = ("", "")


def read_csv_head(path: Path, header: Collection[str], encoding: str = "") -> CsvHead:
    """The head of a csv file of any size, see `read_sheets`. What is no text is replaced."""
    with path.open("rb") as stream:
        text = stream.read(_HEAD_BYTES).decode(encoding or "utf-8", errors="replace")
    lines = text.removeprefix("\ufeff").splitlines()[:_HEADER_ROWS]
    separator = _separator(lines, header)
    rows = list(csv.reader(lines, delimiter=separator))
    first = max(range(len(rows)), key=lambda number: (_matches(rows[number], header), -number), default=0)
    return CsvHead(separator, first + 1, tuple(map(_cell, rows[first] if rows else ())))


def _separator(lines: Sequence[str], header: Collection[str]) -> str:
    def columns_found(separator: str) -> int:
        return max((_matches(row, header) for row in csv.reader(lines, delimiter=separator)), default=0)

    return max(_SEPARATORS, key=columns_found)  # the first of equals


def _read_csv(path: Path, header: Collection[str]) -> dict[str, Rows]:
    _check_bytes(path, path.stat().st_size)
    text = path.read_text(encoding="utf-8-sig")
    separator = _separator(text.splitlines()[:_HEADER_ROWS], header)
    return {path.stem: _text(csv.reader(io.StringIO(text, newline=""), delimiter=separator), path)}


def _read_xlsx(path: Path) -> dict[str, Rows]:
    # The file is opened here: openpyxl leaves it open when it refuses one.
    with path.open("rb") as file:
        with ZipFile(file) as archive:  # a reader gets no more of a member than it declares
            _check_bytes(path, sum(member.file_size for member in archive.infolist()))
        # openpyxl parses with defusedxml, which refuses entities.
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # what a sheet declares may be less than what it has
        return {
            sheet.title: _text(sheet.iter_rows(max_col=_MOST_COLUMNS, values_only=True), path)
            for sheet in book.worksheets
        }


def _check_bytes(path: Path, size: int) -> None:
    if size > _MOST_BYTES:
        raise InputError(
            f"{path} holds {size >> 20} MB of text, more than {_MOST_BYTES >> 20}. Delete sheets, rows and "
            "styles that are no part of the table, or split it."
        )


def _text(rows: Iterable[Sequence[Any]], path: Path) -> Rows:
    """All cells as text; rows that are empty to the end are left out."""
    text: Rows = []
    previous, filled = None, False
    for number, row in enumerate(rows, start=1):
        if row is not previous:  # openpyxl repeats one row for all that a sheet skips
            previous, filled = row, any(row)
        if number > _MOST_ROWS and (filled or number > _LAST_ROW):
            raise InputError(f"{path} has more than {_MOST_ROWS} rows. Split the table.")
        if number <= _MOST_ROWS:
            width = next((end for end in range(len(row), 0, -1) if row[end - 1]), 0) if filled else 0
            text.append([_cell(cell) for cell in row[:width]])
    while text and not any(text[-1]):
        text.pop()
    return text


def _cell(value: Any) -> str:
    if isinstance(value, datetime) and value.time() == time():
        value = value.date()
    return "" if value is None else str(value).strip()


def _matches(row: Sequence[str], header: Collection[str]) -> int:
    return len({column_key(cell) for cell in row} & set(header))


def _below_title(rows: Rows, header: Collection[str], path: Path) -> Rows:
    counts = [_matches(row, header) for row in rows[:_HEADER_ROWS]]
    first = counts.index(max(counts)) if any(counts) else 0
    width = max((at for at, cell in enumerate(rows[first], start=1) if cell), default=0) if rows else 0
    for number, row in enumerate(rows, start=1):
        if number > first and any(row[width:]):
            raise InputError(
                f"{path}, row {number} has {len(row)} columns, its header {width}. "
                "Put quotes around text with commas."
            )
    return [row[:width] + [""] * (width - len(row)) for row in rows[first:]]
