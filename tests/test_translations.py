"""The catalogues of the page: every sentence in every language, with the same places for figures."""

import ast
import re
from pathlib import Path

import polib
import pytest

import cropray.report
from cropray.figures.crops import CROP_NAMES, NONE_OF_THEM
from cropray.report.language import LANGUAGES, language

ROOM = Path(cropray.report.__file__).parent
TRANSLATORS = {"_", "lang", "sentence", "self"}


def sentences() -> set[str]:
    """What the code and the templates of the page translate."""
    found = {*CROP_NAMES, NONE_OF_THEM}
    for file in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and node.args:
                name = (
                    node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                )
                first = node.args[0]
                if name in TRANSLATORS and isinstance(first, ast.Constant) and isinstance(first.value, str):
                    found.add(first.value)
    for template in ROOM.glob("page/map*.j2"):
        found |= set(re.findall(r"""_\("([^"]+)\"""", template.read_text()))
        found |= set(re.findall(r"""_\('([^']+)'""", template.read_text()))
    return found


@pytest.mark.parametrize("code", sorted(set(LANGUAGES) - {"en"}))
def test_every_sentence_is_translated_with_its_figures(code: str) -> None:
    catalogue = polib.pofile(str(ROOM / f"locale/{code}.po"))
    assert {entry.msgid for entry in catalogue} == sentences()
    for entry in catalogue:
        assert entry.msgstr, entry.msgid
        assert not entry.fuzzy
        places = re.findall(r"%\(\w+\)s|%%", entry.msgid)
        assert sorted(re.findall(r"%\(\w+\)s|%%", entry.msgstr)) == sorted(places), entry.msgid
    assert language(code)("Crop map") != "Crop map"


def test_the_sentences_are_found() -> None:
    found = sentences()
    assert {"Crop map", "winter wheat", "close call", "January", "Zoom in", "GIS"} <= found
    assert len(found) > 150
