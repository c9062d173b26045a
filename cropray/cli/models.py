"""`cropray models …`: each command calls one function."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from cropray.cli.options import ConfigOption, RegistryOption, RunOption, SetOption, emit, opened, show

models_app = typer.Typer(help="Register models, look at them, promote one.", no_args_is_help=True)


@models_app.command("register")
def register(
    run: RunOption,
    model: Annotated[str, typer.Option(metavar="DIR", help="Checkpoint; else the run's own model.")] = "",
    config: ConfigOption = None,
    set: SetOption = None,
) -> None:
    """Register a checkpoint as a new version, with its card and lineage."""
    from cropray.tracking.registry import register_checkpoint

    emit(register_checkpoint(opened(run, config, set), model))


ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="models:/NAME@ALIAS or /VERSION.")]
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON.")]


@models_app.command("list")
def list_models(
    run: RegistryOption = "", config: ConfigOption = None, set: SetOption = None, as_json: JsonOption = False
) -> None:
    """List all versions with their aliases and scores."""
    from cropray.tracking.versions import list_versions, table

    found = list_versions(opened(run, config, set))
    show({"versions": [version.to_json() for version in found]}, table(found), as_json=as_json)


@models_app.command("show")
def show_model(
    model: ModelArgument,
    run: RegistryOption = "",
    config: ConfigOption = None,
    set: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one version: lineage, scores, promotion and card."""
    from cropray.tracking.versions import find, page

    version = find(opened(run, config, set), model)
    show(version.to_json(), page(version), as_json=as_json)


@models_app.command("promote")
def promote_model(
    run: RunOption,
    model: ModelArgument = "",
    force: Annotated[str, typer.Option(metavar="REASON", help="Promote whatever the scores.")] = "",
    config: ConfigOption = None,
    set: SetOption = None,
) -> None:
    """Make a version the champion, if it is not worse on val."""
    from cropray.evaluation.promotion import promote

    emit(promote(opened(run, config, set), model, force))


@models_app.command("relocate")
def relocate_models(run: RunOption, config: ConfigOption = None, set: SetOption = None) -> None:
    """Let MLflow find the models of a run folder that was moved."""
    from cropray.tracking.registry import relocate

    emit(relocate(opened(run, config, set)))


@models_app.command("export")
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="models:/… or folder; else the run's.")] = "",
    out: Annotated[str, typer.Option(metavar="FILE", help="New file, NAME.onnx.")] = "model.onnx",
    format_: Annotated[Literal["onnx"], typer.Option("--format", help="Only ONNX.")] = "onnx",  # noqa: ARG001
    floats: Annotated[bool, typer.Option(help="Takes dB and reflectance, not stored integers.")] = False,
    head: Annotated[str, typer.Option(metavar="NAME", help="Head of the model; else its main one.")] = "",
    run: RegistryOption = "",
    config: ConfigOption = None,
    set: SetOption = None,
) -> None:
    """Write a model as one file that runs without torch."""
    from cropray.tracking.onnx_export import export_model

    emit(export_model(opened(run, config, set), model, out, floats=floats, head=head))
