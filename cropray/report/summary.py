"""summary.pdf: the first page of a map's report on A4, made without a browser."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from fpdf import FPDF
from fpdf.enums import Align, TableBordersLayout
from fpdf.fonts import FontFace
from PIL import Image

from cropray import __version__
from cropray.figures.crops import colour_table
from cropray.maps.finished import FinishedMap
from cropray.maps.mosaic import MAP
from cropray.rasters import read_reduced
from cropray.report import sentences
from cropray.report.language import Language
from cropray.types import ByteArray

_FONT = "DejaVu"  # comes with matplotlib, and has Latin, Persian and signs
_MARGIN, _WIDTH = 14, 182  # mm
_MAP_WIDTH, _MAP_HEIGHT = 96, 92  # mm, at most
_PIXELS = 1400  # of the map, a side
_INK, _SOFT, _LINE = (27, 38, 34), (79, 91, 85), (213, 220, 215)
_MARKS = {"good": "●", "fair": "◐", "weak": "○"}
_MM_PER_INCH = 25.4


def summary_pdf(
    source: FinishedMap, lang: Language, facts: sentences.Facts, *, title: str, notices: Sequence[str]
) -> bytes:
    """The summary as PDF. The same map gives the same bytes."""
    pdf = _document(lang, facts)
    for notice in notices:
        pdf.set_fill_color(255, 244, 214)
        _text(pdf, lang, notice, 8, fill=True)
    heading = f"{lang('Crop map')} · {title} · {lang('as of %(day)s', day=lang.day(facts.as_of))}"
    _text(pdf, lang, heading, 8.5, colour=_SOFT)
    _text(pdf, lang, sentences.headline(lang, facts), 16, bold=True)
    pdf.ln(1)
    for part in sentences.lead(lang, facts):
        _text(pdf, lang, part.text, 9.5, bold=part.strong)
    pdf.ln(2)
    _tiles(pdf, lang, sentences.tiles(lang, facts))
    _map_and_legend(pdf, lang, source, facts)
    _hectares(pdf, lang, facts)
    _text(pdf, lang, lang("Made with cropray %(version)s.", version=__version__), 7, colour=_SOFT)
    return bytes(pdf.output())


def _document(lang: Language, facts: sentences.Facts) -> FPDF:
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    pdf = FPDF(format="A4")
    pdf.set_creation_date(datetime.combine(facts.as_of, time(), UTC))
    pdf.set_lang(lang.code)
    pdf.set_title(lang("Crop map"))
    pdf.set_margin(_MARGIN)
    pdf.set_auto_page_break(auto=True, margin=10)
    pdf.add_font(_FONT, "", fonts / "DejaVuSans.ttf")
    pdf.add_font(_FONT, "B", fonts / "DejaVuSans-Bold.ttf")
    if lang.direction == "rtl":
        pdf.set_text_shaping(True)
    pdf.add_page()
    pdf.c_margin = 0
    return pdf


def _text(
    pdf: FPDF,
    lang: Language,
    text: str,
    size: float,
    *,
    bold: bool = False,
    colour: tuple[int, int, int] = _INK,
    fill: bool = False,
) -> None:
    """A paragraph over the whole width."""
    pdf.set_font(_FONT, "B" if bold else "", size)
    pdf.set_text_color(*colour)
    align = Align.R if lang.direction == "rtl" else Align.L
    pdf.multi_cell(_WIDTH, size * 0.5, text, align=align, fill=fill, new_x="LMARGIN", new_y="NEXT")


def _tiles(pdf: FPDF, lang: Language, tiles: Sequence[sentences.Tile]) -> None:
    """Figures side by side, from the side where a reader begins."""
    top, width = pdf.get_y(), _WIDTH / len(tiles)
    placed = reversed(tiles) if lang.direction == "rtl" else tiles
    align = Align.R if lang.direction == "rtl" else Align.L
    bottom = top
    for index, tile in enumerate(placed):
        pdf.set_xy(_MARGIN + index * width + 1.5, top + 1.5)
        for text, size, bold, colour in ((tile.figure, 11, True, _INK), (tile.text, 7.5, False, _SOFT)):
            pdf.set_font(_FONT, "B" if bold else "", size)
            pdf.set_text_color(*colour)
            pdf.multi_cell(width - 3, size * 0.48, text, align=align, new_x="LEFT", new_y="NEXT")
        bottom = max(bottom, pdf.get_y() + 1.5)
    pdf.set_draw_color(*_LINE)
    for index in range(len(tiles)):
        pdf.rect(_MARGIN + index * width, top, width, bottom - top)
    pdf.set_y(bottom + 3)


def _map_and_legend(pdf: FPDF, lang: Language, source: FinishedMap, facts: sentences.Facts) -> None:
    """The map with scale and north on one side, its legend on the other."""
    values, grid = read_reduced(str(source.directory / MAP), _PIXELS)
    scale = min(_MAP_WIDTH / grid.width, _MAP_HEIGHT / grid.height)
    width, height, top = grid.width * scale, grid.height * scale, pdf.get_y()
    right = lang.direction == "rtl"
    x = _MARGIN + _WIDTH - width if right else _MARGIN
    pdf.image(_image(values[0], source.classes), x, top, width, height, alt_text=lang("Crop map"))
    pdf.set_draw_color(*_INK)
    pdf.rect(x, top, width, height)
    _scale_and_north(pdf, lang, x, top + height, grid.resolution / scale, width)
    verdicts, beside = facts.verdicts, _WIDTH - width - 5
    left = _MARGIN if right else x + width + 5
    pdf.set_xy(left, top)
    names = lang("Hectares of crops") if facts.hectares.method else lang("Hectares mapped")
    _line(pdf, lang, left, beside, names, "", None, 9, bold=True)
    for row in facts.hectares.whole.rows:
        if row.mapped > 0:
            rgb: Any = tuple(bytes.fromhex(row.colour[1:]))
            mark = _MARKS.get(verdicts.get(row.name, ""), "")
            _line(pdf, lang, left, beside, lang.crop(row.name), f"{lang.exact(row.best)} {mark}", rgb, 8.5)
    if facts.trust is not None:
        words = sentences.verdict_words(lang)
        legend = " · ".join(f"{mark} {words[verdict]}" for verdict, mark in _MARKS.items())
        _line(pdf, lang, left, beside, legend, "", None, 7)
    pdf.set_y(max(pdf.get_y(), top + height) + 3)


def _image(class_hw: ByteArray, classes: Sequence[str]) -> Image.Image:
    table = np.full((256, 3), 255, np.uint8)
    for value, rgb in colour_table(classes).items():
        table[value] = rgb
    return Image.fromarray(table[class_hw])


def _line(
    pdf: FPDF,
    lang: Language,
    left: float,
    width: float,
    name: str,
    figure: str,
    rgb: tuple[int, int, int] | None,
    size: float,
    *,
    bold: bool = False,
) -> None:
    """A line of the legend: swatch, name and figure."""
    right, y, height = lang.direction == "rtl", pdf.get_y(), size * 0.52
    if rgb is not None:
        pdf.set_fill_color(*rgb)
        pdf.set_draw_color(*_INK)
        pdf.rect(left + width - 3.2 if right else left, y + 0.6, 3, 3, style="DF")
    pdf.set_font(_FONT, "B" if bold else "", size)
    pdf.set_text_color(*_INK)
    inset = 0.0 if rgb is None else 5.0
    for text, align in ((name, Align.R if right else Align.L), (figure, Align.L if right else Align.R)):
        if text:
            pdf.set_xy(left if right else left + inset, y)
            pdf.cell(width - inset, height, text, align=align)
    pdf.set_xy(left, y + height)


def _scale_and_north(pdf: FPDF, lang: Language, x: float, bottom: float, metres: float, width: float) -> None:
    """A bar of a round length (`metres` are those of a millimetre) and an arrow, in the lower corners."""
    most = metres * width * 0.3
    power = 10.0 ** np.floor(np.log10(most))
    length = max(factor for factor in (1, 2, 5) if factor * power <= most) * power
    pdf.set_fill_color(255, 255, 255)
    far = length >= 1000
    text = f"{lang.number(length / 1000 if far else length)} {lang('km') if far else lang('m')}"
    pdf.set_font(_FONT, "", 6.5)
    pdf.rect(x + 1, bottom - 7, max(length / metres, pdf.get_string_width(text)) + 2, 6, style="F")
    pdf.set_fill_color(*_INK)
    pdf.rect(x + 2, bottom - 3, length / metres, 1, style="F")
    text = (
        f"{lang.number(length / 1000)} {lang('km')}"
        if length >= 1000
        else f"{lang.number(length)} {lang('m')}"
    )
    pdf.set_font(_FONT, "", 6.5)
    pdf.set_text_color(*_INK)
    pdf.set_xy(x + 2, bottom - 6.6)
    pdf.cell(text=text, h=3)
    tip = x + width - 4
    pdf.polygon(
        [(tip, bottom - 9), (tip + 1.6, bottom - 4.5), (tip, bottom - 5.5), (tip - 1.6, bottom - 4.5)],
        style="F",
    )
    pdf.text(tip - 0.8, bottom - 1.5, "N")


def _hectares(pdf: FPDF, lang: Language, facts: sentences.Facts) -> None:
    """The table of hectares with intervals and verdicts."""
    _text(pdf, lang, lang("How many hectares of each crop"), 11, bold=True)
    _text(pdf, lang, sentences.hectares_text(lang, facts), 7.5, colour=_SOFT)
    pdf.ln(1)
    estimated, words = bool(facts.hectares.method), sentences.verdict_words(lang)
    head = [lang("Crop"), lang("Mapped, ha"), lang("Share")]
    head += [lang("Estimate, ha"), lang("95 % interval")] if estimated else []
    head += [lang("Verdict")] if facts.trust is not None else []
    table = [head]
    for row in facts.hectares.whole.rows:
        if row.mapped <= 0 and row.best <= 0:
            continue
        cells = [lang.crop(row.name), lang.exact(row.mapped), lang.percent(row.share, 1)]
        cells += [lang.exact(row.estimate), lang.interval(row.low, row.high)] if estimated else []
        if facts.trust is not None:
            verdict = facts.verdicts.get(row.name, "")
            cells.append(f"{_MARKS[verdict]} {words[verdict]}" if verdict else "–")
        table.append(cells)
    right = lang.direction == "rtl"
    aligns = [Align.L, *[Align.R] * (len(head) - 1)]
    if facts.trust is not None:
        aligns[-1] = Align.L
    if right:
        table, aligns = [cells[::-1] for cells in table], [Align.R] * len(head)
    pdf.set_font(_FONT, "", 8)
    pdf.set_text_color(*_INK)
    pdf.set_draw_color(*_LINE)
    pdf.set_fill_color(255, 255, 255)
    with pdf.table(
        table,
        width=_WIDTH,
        text_align=aligns,
        borders_layout=TableBordersLayout.HORIZONTAL_LINES,
        line_height=4.6,
        padding=(0, 1),
        headings_style=FontFace(emphasis="BOLD", size_pt=7.5, color=_SOFT),
    ):
        pass
    if facts.trust is not None:
        pdf.ln(1)
        _text(pdf, lang, sentences.verdict_text(lang), 7, colour=_SOFT)
