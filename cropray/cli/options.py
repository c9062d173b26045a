"""What the commands of the command line share: their options, and how a result is shown."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cropray.config import Config
    from cropray.run import Run, Summary

ConfigOption = Annotated[str | None, typer.Option("--config", metavar="FILE", help="YAML configuration.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one setting; repeatable.")
]
RunOption = Annotated[str, typer.Option("--run", metavar="DIR_OR_URI", help="Run folder.")]


def configured(config: str | None, settings: list[str] | None) -> Config:
    from cropray.config.load import load_config

    return load_config(config, settings or ())


def opened(run: str, config: str | None, settings: list[str] | None) -> Run:
    """The run in a folder: `config` and `settings` come over its own. If none is named, that of this
    directory, and nothing below them.
    """
    from cropray.config.load import load_config
    from cropray.run import Run, config_of
    from cropray.storage import Folder

    folder = Folder(run or ".")
    return Run(folder, load_config(config, settings or (), base=config_of(folder) if run else None))


def emit(summary: Summary) -> None:
    sys.stdout.write(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
