"""Spreadsheets that nobody means: endless, nested, or larger than any table of ROIs."""

import time
import zipfile
from pathlib import Path

import openpyxl
import pytest

from cropray.errors import InputError
from cropray.rois.sheets import folded, read_sheets

SHEET = "xl/worksheets/sheet1.xml"
NAMESPACE = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"


def write_workbook(path: Path, sheet: str) -> Path:
    """A workbook whose only sheet has this XML."""
    openpyxl.Workbook().save(path.with_suffix(".tmp"))
    with (
        zipfile.ZipFile(path.with_suffix(".tmp")) as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as changed,
    ):
        for name in plain.namelist():
            changed.writestr(name, sheet if name == SHEET else plain.read(name))
    return path


def rows(*cells: str) -> str:
    return f'<worksheet xmlns="{NAMESPACE}"><sheetData>{"".join(cells)}</sheetData></worksheet>'


def text(reference: str, value: str) -> str:
    return f'<c r="{reference}" t="inlineStr"><is><t>{value}</t></is></c>'


def test_nested_entities_are_refused(tmp_path: Path) -> None:
    entities = ['<!ENTITY e0 "ha">']
    entities += [f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12)]
    bomb = f"<!DOCTYPE worksheet [{''.join(entities)}]>" + rows(f"<row>{text('A1', '&e11;')}</row>")
    file = write_workbook(tmp_path / "bomb.xlsx", bomb)
    with pytest.raises(InputError, match=r"cannot read .*bomb\.xlsx"):
        read_sheets(file, ("roi",))


def test_a_sheet_that_unpacks_to_much_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = write_workbook(tmp_path / "large.xlsx", rows("<row><c/></row>" * 4_700_000))
    assert file.stat().st_size < 1e6
    start = time.process_time()
    with pytest.raises(InputError, match=r"large\.xlsx holds \d+ MB of text"):
        read_sheets(file, ("roi",))
    assert time.process_time() - start < 2


@pytest.mark.parametrize("row", [1_048_576, 10**12])
def test_a_cell_at_the_end_of_an_endless_sheet_is_refused(tmp_path: Path, row: int) -> None:
    cells = [f"<row r='1'>{text('A1', 'roi')}</row>", f"<row r='{row}'>{text(f'A{row}', 'x')}</row>"]
    file = write_workbook(tmp_path / "endless.xlsx", rows(*cells))
    with pytest.raises(InputError, match=r"endless\.xlsx has more than \d+ rows"):
        read_sheets(file, ("roi",))


def test_formatted_rows_without_content_do_not_matter(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (["roi", None, "note"], ["1,2,3,4"], ["5,6,7,8", None, "here"]):
        book.active.append(row)
    book.active.cell(5000, 3).value = ""
    book.active.cell(1, 300).font = openpyxl.styles.Font(bold=True)
    book.save(tmp_path / "rois.xlsx")
    (found,) = read_sheets(tmp_path / "rois.xlsx", ("roi",)).values()
    assert found[:3] == [["roi", "", "note"], ["1,2,3,4", "", ""], ["5,6,7,8", "", "here"]]
    assert not any(map(any, found[3:]))


def test_a_damaged_workbook_is_named(tmp_path: Path) -> None:
    file = write_workbook(tmp_path / "damaged.xlsx", "<worksheet>")
    with pytest.raises(InputError, match=r"damaged\.xlsx"):
        read_sheets(file, ("roi",))


def test_names_are_compared_without_case_accents_and_keyboards() -> None:
    assert folded("  Île-de-France ") == folded("ILE-DE-FRANCE")
    assert folded("خراسان رضوي") == folded("خراسان رضوی")  # an Arabic and a Persian yeh
    assert folded("Flevoland") != folded("Gelderland")
