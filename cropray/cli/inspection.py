"""Commands that look at things: `cropray config`, `shards`, `checkpoint` and `doctor`."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import asdict
from typing import Annotated

import typer

from cropray.cli.options import ConfigOption, RunOption, SetOption, emit, opened, show

config_app = typer.Typer(help="Show the configuration and its settings.", no_args_is_help=True)
shards_app = typer.Typer(help="Look at shards, verify them, import patches.", no_args_is_help=True)
checkpoint_app = typer.Typer(help="Look at checkpoints, import published weights.", no_args_is_help=True)


@config_app.command("show")
def show_config(
    config: ConfigOption = None,
    set: SetOption = None,
    run: Annotated[str, typer.Option("--run", metavar="DIR_OR_URI", help="That of this run folder.")] = "",
) -> None:
    """Print the whole configuration as YAML, with defaults and descriptions."""
    from cropray.config.section import commented_yaml

    sys.stdout.write(commented_yaml(opened(run, config, set).config) + "\n")


@config_app.command("keys")
def config_keys(
    section: Annotated[str, typer.Argument(metavar="[SECTION]", help="Such as finetune or rois.split.")] = "",
) -> None:
    """List settings with type, default and description."""
    from cropray.config import Config
    from cropray.config.section import settings_of
    from cropray.errors import InputError, nearest

    found = list(settings_of(Config))
    chosen = [one for one in found if f"{one.key}.".startswith(f"{section}." if section else "")]
    if not chosen:
        parents = {one.key.rpartition(".")[0] for one in found} - {""}
        raise InputError(f"there is no section {section!r}.{nearest(section, parents)}")
    for one in chosen:
        default = f"default {one.default}" if one.default else "required"
        description = textwrap.indent(textwrap.fill(one.description, 96), "    ")
        sys.stdout.write(f"{one.key}  ({one.type}; {default})\n{description}\n")


def doctor(
    config: ConfigOption = None,
    set: SetOption = None,
    run: Annotated[str, typer.Option("--run", metavar="DIR_OR_URI", help="Try this storage too.")] = "",
    online: Annotated[bool, typer.Option("--online", help="Ask Earth Engine for a pixel.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A list of findings instead of a table.")] = False,
) -> None:
    """Check machine, Ray, storage and accounts; say how to fix them.

    Exits with 1 if something must be fixed before stages can run.
    """
    from cropray.cluster import check_run_folder
    from cropray.doctor import examine, format_findings
    from cropray.errors import InputError
    from cropray.storage import Folder

    place = check_run_folder(run) if run else ""
    try:
        known = place if place and Folder(place).exists() else ""
    except InputError:  # a finding says why
        known = ""
    findings = list(examine(opened(known, config, set).config, place, online=online))
    show([asdict(finding) for finding in findings], format_findings(findings), as_json=as_json)
    raise typer.Exit(int(any(finding.verdict == "bad" for finding in findings)))


TargetArgument = Annotated[str, typer.Argument(metavar="URI|RUN", help="Run, folder of shards, or shard.")]


@shards_app.command("verify")
def verify_shards(target: TargetArgument) -> None:
    """Read everything: checksums, schema, counts, and that splits share no ground."""
    from cropray.shards.inspection import verify

    emit(verify(target))


@shards_app.command("info")
def shards_info(target: TargetArgument) -> None:
    """Summarise shards from their footers and scalar columns."""
    from cropray.shards.inspection import info

    emit(info(target))


@shards_app.command("show")
def show_sample(
    sample_id: Annotated[str, typer.Argument(metavar="ID")],
    run: Annotated[str, typer.Option("--run", metavar="URI|RUN", help="Run, folder of shards, or shard.")],
    out: Annotated[str, typer.Option(metavar="FILE", help="PNG to write; else ID.png here.")] = "",
) -> None:
    """Draw one sample: its months in true colour and VV, and its label."""
    from pathlib import Path

    from cropray.errors import InputError
    from cropray.shards.inspection import show as picture

    path = Path(out or f"{sample_id}.png")
    if path.suffix.lower() != ".png":
        raise InputError(f"--out {path}: the picture is a PNG. Name it {path.with_suffix('.png')}.")
    path.write_bytes(picture(run, sample_id))
    sys.stdout.write(f"{path}\n")


@shards_app.command("import-tiff")
def import_tiff(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Holds s1/, s2/ and crop_map/.")],
    run: RunOption,
    harvest: Annotated[
        str, typer.Option(metavar="YYYY-MM-DD", help="Harvest start, which dates the months.")
    ],
    split: Annotated[str, typer.Option(metavar="SPLIT", help="Split of all patches in DIR.")] = "train",
    crop: Annotated[str, typer.Option(metavar="CROP", help="Crop of the masks; else they are codes.")] = "",
    country: Annotated[str, typer.Option(metavar="NAME", help="Country of the patches.")] = "",
    config: ConfigOption = None,
    set: SetOption = None,
) -> None:
    """Import patch folders of GeoTIFFs (s1/<month>, s2/<month>, crop_map) as parts of a run."""
    from cropray.pipeline.import_tiff import import_tiff, parse_origin

    chosen = parse_origin(harvest, split, crop, country)
    emit(import_tiff(directory, opened(run, config, set), chosen))


@shards_app.command("import-series")
def import_series(
    files: Annotated[list[str], typer.Argument(metavar="FILE…", help="Tables, .parquet or .csv.")],
    run: RunOption,
    split: Annotated[str, typer.Option(metavar="SPLIT", help="Split of all samples; else by blocks.")] = "",
    config: ConfigOption = None,
    set: SetOption = None,
) -> None:
    """Import tables of labelled point series as shards of one pixel; the settings `series` describe them."""
    from cropray.pipeline.import_series import import_series

    emit(import_series(files, opened(run, config, set), split))


@checkpoint_app.command("show")
def show_checkpoint(folder: Annotated[str, typer.Argument(metavar="DIR", help="Path or URI.")]) -> None:
    """Verify a checkpoint folder and describe it."""
    from cropray.models.checkpoint import describe_checkpoint

    emit(describe_checkpoint(folder))


@checkpoint_app.command("import-seed")
def import_seed(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Published weights, .pth.")],
    out: Annotated[str, typer.Option(metavar="DIR", help="Checkpoint folder to write.")],
) -> None:
    """Convert the published PyTorch weights to a checkpoint; nothing in the file is executed."""
    from cropray.models.seed import import_seed

    emit(import_seed(file, out))
