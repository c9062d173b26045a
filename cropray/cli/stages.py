"""`cropray STAGE --config FILE --set KEY=VALUE --run DIR_OR_URI`: each command calls one function."""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from importlib.resources import files
from typing import Annotated, Any

import typer
import yaml

from cropray import __version__
from cropray.cli.areas import areas_app
from cropray.cli.inspection import checkpoint_app, config_app, doctor, shards_app
from cropray.cli.models import models_app
from cropray.cli.options import ConfigOption, RunOption, SetOption, emit, opened
from cropray.errors import InputError
from cropray.progress import be_quiet, be_verbose

app = typer.Typer(
    help="Crop maps at least a month before harvest, from partly annotated parcels and Sentinel-1/2.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

# In the order of the pipeline. A function is imported when its command is called: --help answers at once.
STAGES: dict[str, dict[str, str]] = yaml.safe_load(files(__package__).joinpath("stages.yaml").read_text())


def _help(name: str) -> str:
    stage = STAGES[name]
    return (  # lines below \b are shown as they are
        f"{stage['summary']}\n\n\b\nReads     {stage['reads']}\nWrites    {stage['writes']}\n"
        f"Settings  {stage['settings']}\nExample   cropray {name} {stage['example']}"
    )


def _call(stage: str, folder: str, config: str | None, settings: list[str] | None, **options: bool) -> None:
    module, function = STAGES[stage]["function"].split(":")
    run = opened(folder, config, settings)
    try:
        summary = getattr(import_module(module), function)(run, **options)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. Run the same command again to continue.\n")
        raise  # typer makes it exit code 130
    emit(summary)


PartialOption = Annotated[
    bool, typer.Option("--partial", help="Take months that are not over; done again on a later day.")
]


def _export(
    run: RunOption,
    config: ConfigOption = None,
    set: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="The same as `cropray plan`.")] = False,
    partial: PartialOption = False,
) -> None:
    _call("plan" if dry_run else "export", run, config, set, partial=partial)


def _plan(
    run: RunOption, config: ConfigOption = None, set: SetOption = None, partial: PartialOption = False
) -> None:
    _call("plan", run, config, set, partial=partial)


def _predict(
    run: RunOption,
    config: ConfigOption = None,
    set: SetOption = None,
    model: Annotated[str, typer.Option(metavar="MODEL", help="Checkpoint or models:/NAME@ALIAS.")] = "",
    area: Annotated[str, typer.Option(metavar="AREA", help="Degrees W,S,E,N, a file, or rois:SPLIT.")] = "",
    as_of: Annotated[str, typer.Option(metavar="YYYY-MM-DD", help="Last day whose scenes may be used.")] = "",
    assume_harvest: Annotated[str, typer.Option(metavar="YYYY-MM-DD", help="Assumed harvest start.")] = "",
    partial: PartialOption = False,
) -> None:
    given = {"model": model, "area": area, "as_of": as_of, "assume_harvest": assume_harvest}
    settings = [f"predict.{key}={json.dumps(value)}" for key, value in given.items() if value]
    try:
        _call("predict", run, config, [*(set or []), *settings], partial=partial)
    except InputError as error:  # names what was written
        written = {f"predict.{key}": f"--{key.replace('_', '-')}" for key, value in given.items() if value}
        message = re.sub(r"predict\.\w+", lambda key: written.get(key[0], key[0]), str(error))
        raise InputError(message) from error


def _command(name: str) -> Any:
    def command(run: RunOption, config: ConfigOption = None, set: SetOption = None) -> None:
        _call(name, run, config, set)

    return {"plan": _plan, "export": _export, "predict": _predict}.get(name, command)


for _name in STAGES:
    app.command(_name, help=_help(_name))(_command(_name))
app.command("doctor")(doctor)
app.add_typer(config_app, name="config")
app.add_typer(shards_app, name="shards")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(models_app, name="models")
app.add_typer(areas_app, name="areas")


def _show_version() -> None:
    sys.stdout.write(f"cropray {__version__}\n")
    raise typer.Exit


def _flag(*names: str, help: str, act: Callable[[], None] = lambda: None) -> Any:
    """A flag that acts as soon as it is read, wherever on the line."""

    def callback(value: bool) -> None:
        if value:
            act()

    return typer.Option(*names, help=help, callback=callback, is_eager=True, expose_value=False)


@app.callback()
def common(
    version: Annotated[bool, _flag("--version", help="Show the version.", act=_show_version)] = False,
    quiet: Annotated[bool, _flag("-q", "--quiet", help="Results and errors only.", act=be_quiet)] = False,
    verbose: Annotated[bool, _flag("-v", "--verbose", help="Show libraries' logs.", act=be_verbose)] = False,
    debug: Annotated[bool, _flag("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


def _share(group: Any) -> None:
    """Let every command take the flags that stand before it, after its name too."""
    shared = [param for param in group.params if param.name in ("quiet", "verbose", "debug")]
    for command in group.commands.values():
        command.params.extend(shared)
        if hasattr(command, "commands"):
            _share(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. A user's mistake or a full disk ends it with one message and code 2."""
    from cropray.errors import format_os_error, redacted

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(app)
    _share(command)
    try:
        command(arguments, prog_name="cropray")
    except Exception as error:
        if "--debug" in arguments or not isinstance(error, InputError | OSError):
            sys.stderr.write(redacted("".join(traceback.format_exception(error))))
            raise SystemExit(1) from None
        # An error that crossed Ray carries the worker's traceback as its text; its cause is the error.
        cause = getattr(error, "cause", None) or error
        message = format_os_error(cause) if isinstance(cause, OSError) else str(cause)
        sys.stderr.write(f"error: {redacted(message)}\n")
        raise SystemExit(2) from None
