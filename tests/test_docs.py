"""The README and the documentation: their commands, settings and links are valid."""

import re
import shlex
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import typer

from cropray.cli.stages import app
from cropray.config import Config
from cropray.config.load import load_config
from cropray.config.section import settings_of
from tests.conftest import ROOT
from tests.test_structure import ROOMS

PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LEFT_OUT = ("--help", "--install-completion")  # these end a command at once


def commands(page: Path) -> Iterator[list[str]]:
    """The words after `cropray`, or of a job's stage and options, of each line in a block of commands."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
        lines = [] if language else block.replace("\\\n", " ").splitlines()
        for line in lines:
            found = re.match(r"cropray (.*)|.*python jobs/(\w+\.py .*)", line)
            if found and "$" not in line:
                words = shlex.split(found[1] or found[2].replace(".py", "", 1), comments=True)
                if not set(words) & set(LEFT_OUT):
                    yield words


ALL = [(page.name, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(
    ("page", "words"), ALL, ids=[f"{page}: {' '.join(words)}"[:80] for page, words in ALL]
)
def test_every_command_has_known_options_and_settings(page: str, words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    options = command.make_context("cropray", list(words)).params  # exits where the options are wrong
    if "config" in options:
        file = (options["config"] or "my.yaml").replace("my.yaml", "configs/own.yaml")
        load_config(ROOT / file, options["set"] or ())


def test_commands_are_found() -> None:
    assert {page for page, _ in ALL} >= {"README.md", "cluster.md", "format.md", "registry.md", "sweeps.md"}
    assert ("README.md", ["config", "keys", "finetune"]) in ALL


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_every_setting_that_is_named_exists(page: Path) -> None:
    settings = {setting.key: setting.type for setting in settings_of(Config)}
    sections = {key.rpartition(".")[0] for key in settings} | {"source.stac"}
    of_any_name = {key for key, kind in settings.items() if kind.startswith("{")}
    pattern = rf"(?<![\w/.])((?:{'|'.join(Config.model_fields)})(?:\.[a-z][\w]*)+)(?![\w(/]|\.[A-Z])"
    for named in re.findall(pattern, page.read_text()):
        prefixes = set(accumulate(named.split("."), "{}.{}".format))
        assert named in settings or named in sections or prefixes & of_any_name or is_file(named), named


def is_file(name: str) -> bool:
    return name.endswith((".py", ".md", ".json", ".yaml", ".csv", ".html", ".parquet"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(((?!https?:)[^)#]*)(?:#([^)]*))?\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


def test_the_readme_is_short_and_links_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in text, page.name


def test_the_rooms_are_documented_in_their_order() -> None:
    table = (ROOT / "docs" / "contributing.md").read_text().partition("| room |")[2].splitlines()[2:]
    named = [
        room for row in table if row.startswith("|") for room in re.findall(r"`(\w+)/?`", row.split("|")[1])
    ]
    assert named == [room for room in ROOMS if room != "__main__"]
