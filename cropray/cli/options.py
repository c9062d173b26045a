"""Options that commands share, and how they read a configuration and show a result."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cropray.run import Run, Summary


def _complete_setting(incomplete: str) -> list[str]:
    from cropray.config import Config
    from cropray.config.section import settings_of

    return [f"{one.key}=" for one in settings_of(Config) if one.key.startswith(incomplete)]


ConfigOption = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="YAML configuration; else config.yaml of the run folder."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one setting; repeatable. `cropray config keys` lists them.",
        autocompletion=_complete_setting,
    ),
]


def _not_empty(run: str) -> str:
    """Refuses `--run $UNSET`, which would write into this directory."""
    if not run.strip():
        raise typer.BadParameter("it is empty. Give the path or URI of a run folder.")
    return run


RunOption = Annotated[
    str, typer.Option("--run", metavar="DIR_OR_URI", help="Run folder.", callback=_not_empty)
]
RegistryOption = Annotated[str, typer.Option("--run", metavar="DIR", help="Run folder; else this directory.")]


def opened(run: str, config: str | None, settings: list[str] | None) -> Run:
    """The run in a folder, with `settings` over `config`, else over its own configuration.

    Without a folder it is that of this directory, with `settings` over `config`, else over the defaults.
    """
    from cropray.cluster import check_run_folder
    from cropray.config.load import load_config
    from cropray.run import Run, config_of
    from cropray.storage import Folder

    folder = Folder(check_run_folder(run) if run else ".")
    base = config_of(folder) if run and config is None else None
    return Run(folder, load_config(config, settings or (), base=base))


def emit(result: Summary | list[Summary]) -> None:
    sys.stdout.write(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def show(result: Summary | list[Summary], text: str, *, as_json: bool) -> None:
    emit(result) if as_json else sys.stdout.write(text)
