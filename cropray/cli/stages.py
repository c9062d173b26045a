"""`cropray <stage> --config FILE --set a.b=c --run DIR_OR_URI`: each command calls one function."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer

from cropray import __version__
from cropray.cli.models import models_app, register
from cropray.cli.options import ConfigOption, RunOption, SetOption, configured, emit

if TYPE_CHECKING:
    from cropray.config import Config

app = typer.Typer(
    help="Crop maps at least a month before harvest, from partly annotated parcels and Sentinel-1/2.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at the configuration.", no_args_is_help=True)
app.add_typer(config_app, name="config")
shards_app = typer.Typer(help="Look at shards, verify them, import patches.", no_args_is_help=True)
app.add_typer(shards_app, name="shards")
checkpoint_app = typer.Typer(help="Look at checkpoints, import published weights.", no_args_is_help=True)
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(models_app, name="models")
app.command("register")(register)

# Stage functions take a Run and return a summary; they are imported only when they are called,
# so that --help answers at once. `export` and `predict` stand between these, with options of their own.
_TO_REGIONS = (
    (
        "rois",
        "cropray.rois.build:build_rois",
        "Parcels, provinces and calendar to regions of interest, split.",
    ),
    ("plan", "cropray.pipeline.export_plan:dry_run", "What export would do and cost, without doing it."),
)
_TO_A_MODEL = (
    ("compact", "cropray.pipeline.compact:compact", "Parts to evenly sized, shuffled shards by split."),
    ("pretrain", "cropray.training.driver:pretrain", "Train the network on densely labelled regions."),
    (
        "finetune",
        "cropray.training.driver:finetune",
        "Train on partly annotated parcels, from a trained body.",
    ),
    ("tune", "cropray.tuning.sweep:tune", "Search settings of a training; judged on val."),
    ("evaluate", "cropray.evaluation.evaluate:evaluate", "Measure the model on whole held-out regions."),
)
_FROM_A_MAP = (
    ("report", "cropray.report.pages:report", "One HTML page of the run that opens without a network."),
    ("demo", "cropray.demo:demo", "The whole path on the built-in world: configs/demo.yaml."),
)


def _call(function: str, folder: str, config: Config) -> None:
    from cropray.cluster import kept
    from cropray.run import Run
    from cropray.storage import Folder

    module, name = function.split(":")
    run = Run(Folder(kept(folder)), config)
    try:
        summary = getattr(import_module(module), name)(run)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from what is finished\n")
        raise  # typer makes it exit code 130
    emit(summary)


def _add_stage(name: str, function: str, text: str) -> None:
    @app.command(name, help=text)
    def command(run: RunOption, config: ConfigOption = None, set: SetOption = None) -> None:
        _call(function, run, configured(config, set))


for _stage in _TO_REGIONS:
    _add_stage(*_stage)


@app.command("export")
def export(
    run: RunOption,
    config: ConfigOption = None,
    set: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="As `plan`: say what it would do.")] = False,
) -> None:
    """Imagery and labels of every ROI to parts of patches."""
    stage = "cropray.pipeline.export_plan:dry_run" if dry_run else "cropray.pipeline.export:export"
    _call(stage, run, configured(config, set))


for _stage in _TO_A_MODEL:
    _add_stage(*_stage)


@app.command("predict")
def predict(
    run: RunOption,
    config: ConfigOption = None,
    set: SetOption = None,
    model: Annotated[
        str,
        typer.Option(metavar="MODEL", help="Checkpoint folder or models:/NAME@ALIAS; else the run's own."),
    ] = "",
    area: Annotated[
        str,
        typer.Option(metavar="AREA", help="MIN_LON,MIN_LAT,MAX_LON,MAX_LAT, a vector file, or rois:SPLIT."),
    ] = "",
    as_of: Annotated[str, typer.Option(metavar="YYYY-MM-DD", help="Last day whose scenes may be used.")] = "",
    assume_harvest: Annotated[
        str, typer.Option(metavar="YYYY-MM-DD", help="Harvest start, for models anchored on the harvest.")
    ] = "",
) -> None:
    """Map an area of any size as of a date."""
    given = {"model": model, "area": area, "as_of": as_of, "assume_harvest": assume_harvest}
    settings = [f"predict.{key}={json.dumps(value)}" for key, value in given.items() if value]
    _call("cropray.pipeline.predict:predict", run, configured(config, [*(set or []), *settings]))


for _stage in _FROM_A_MAP:
    _add_stage(*_stage)


@config_app.command("show")
def show_config(config: ConfigOption = None, set: SetOption = None) -> None:
    """Print the resolved configuration as YAML."""
    sys.stdout.write(configured(config, set).to_yaml())


@app.command("doctor")
def doctor(
    config: ConfigOption = None,
    set: SetOption = None,
    run: Annotated[str, typer.Option("--run", metavar="DIR_OR_URI", help="Try this storage too.")] = "",
    online: Annotated[bool, typer.Option("--online", help="Ask Earth Engine for a pixel.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A list of findings instead of a table.")] = False,
) -> None:
    """What is wrong with this machine, its Ray and its accounts, and how to mend it."""
    from cropray.cluster import kept
    from cropray.doctor.examine import examine
    from cropray.doctor.finding import exit_code, shown

    findings = list(examine(configured(config, set), kept(run) if run else "", online=online))
    sys.stdout.write(shown(findings, as_json=as_json))
    raise typer.Exit(exit_code(findings))


TargetArgument = Annotated[str, typer.Argument(metavar="URI|RUN", help="Run, folder of shards, or shard.")]


@shards_app.command("verify")
def verify_shards(target: TargetArgument) -> None:
    """Read every tensor; compare checksums, schema, counts, and that splits share no ground."""
    from cropray.shards.inspection import verify

    emit(verify(target))


@shards_app.command("info")
def shards_info(target: TargetArgument) -> None:
    """What a set of shards holds, from footers and scalar columns alone."""
    from cropray.shards.inspection import info

    emit(info(target))


@shards_app.command("show")
def show_sample(
    sample_id: Annotated[str, typer.Argument(metavar="ID")],
    run: Annotated[str, typer.Option("--run", metavar="URI|RUN", help="Run, folder of shards, or shard.")],
    out: Annotated[str, typer.Option(metavar="FILE", help="Picture; else ID.png here.")] = "",
) -> None:
    """A picture of one sample: months in true colour and VV, and its label."""
    from pathlib import Path

    from cropray.errors import InputError
    from cropray.shards.inspection import show

    path = Path(out or f"{sample_id}.png")
    if path.suffix.lower() != ".png":
        raise InputError(f"--out {path}: the picture is a PNG; name it {path.with_suffix('.png')}")
    path.write_bytes(show(run, sample_id))
    sys.stdout.write(f"{path}\n")


@shards_app.command("import-tiff")
def import_tiff(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Holds s1/, s2/ and crop_map/.")],
    run: RunOption,
    harvest: Annotated[str, typer.Option(metavar="YYYY-MM-DD", help="Harvest start: it says which months.")],
    split: Annotated[str, typer.Option(metavar="SPLIT", help="train, val or test: all of DIR.")] = "train",
    crop: Annotated[str, typer.Option(metavar="CROP", help="Crop of the masks; else codes.")] = "",
    country: Annotated[str, typer.Option(metavar="NAME")] = "",
    config: ConfigOption = None,
    set: SetOption = None,
) -> None:
    """Patch folders of GeoTIFFs (s1/<month>, s2/<month>, crop_map) to the parts of a run."""
    from cropray.pipeline.import_tiff import import_tiff
    from cropray.pipeline.patch_folder import origin
    from cropray.run import Run
    from cropray.storage import Folder

    chosen = origin(harvest, split, crop, country)
    emit(import_tiff(directory, Run(Folder(run), configured(config, set)), chosen))


@checkpoint_app.command("show")
def show_checkpoint(folder: Annotated[str, typer.Argument(metavar="DIR", help="Path or URI.")]) -> None:
    """What a checkpoint folder holds, verified."""
    from cropray.models.seed import show

    emit(show(folder))


@checkpoint_app.command("import-seed")
def import_seed(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Published weights, .pth.")],
    out: Annotated[str, typer.Option(metavar="DIR", help="Checkpoint folder to write.")],
) -> None:
    """The published network's PyTorch weights to a checkpoint; nothing in the file is executed."""
    from cropray.models.seed import import_seed

    emit(import_seed(file, out))


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"cropray {__version__}\n")
        raise typer.Exit


@app.callback()
def common(
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    _debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere on the line).")
    ] = False,
) -> None:
    """What all commands share."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake or a full disk ends it with one message and code 2."""
    from cropray.errors import InputError

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        app([argument for argument in arguments if argument != "--debug"], prog_name="cropray")
    except (InputError, OSError) as error:
        if debug:
            raise
        from cropray.errors import format_os_error

        # An error that crossed Ray carries the worker's traceback as its text; its cause is the error.
        cause = getattr(error, "cause", None) or error
        sys.stderr.write(f"error: {format_os_error(cause) if isinstance(cause, OSError) else cause}\n")
        raise SystemExit(2) from None
