"""`cropray areas …`: hectares of a map with intervals. Each command calls one function."""

from __future__ import annotations

from typing import Annotated

import typer

from cropray.cli.options import ConfigOption, RunOption, SetOption, emit, opened

areas_app = typer.Typer(help="Estimate hectares with intervals from checked points.", no_args_is_help=True)


@areas_app.command("sample")
def sample(
    run: RunOption,
    interval: Annotated[
        float, typer.Option(metavar="PERCENT", help="Wanted 95 % interval: ± this much of a crop's hectares.")
    ] = 15.0,
    crop: Annotated[
        list[str] | None, typer.Option(metavar="CROP", help="Crop whose interval counts; repeatable.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Number of points, instead of an interval.")
    ] = None,
    pictures: Annotated[bool, typer.Option("--pictures", help="Draw each point's months, too.")] = False,
    config: ConfigOption = None,
    set: SetOption = None,
) -> None:
    """Draw random points of a map to be checked on the ground or by eye.

    Writes areas/<map>/: points.gpkg and points.kml with blank columns, sample.json, pictures/. Crops on 5 %
    of the mapped land or more count unless --crop names others. predict.name is the map.
    """
    from cropray.pipeline.area_sample import sample_areas

    emit(
        sample_areas(
            opened(run, config, set), interval=interval, size=size, crops=crop or (), pictures=pictures
        )
    )


@areas_app.command("estimate")
def estimate(
    run: RunOption,
    points: Annotated[str, typer.Option(metavar="FILE", help="Checked points; else those of the run.")] = "",
    units: Annotated[str, typer.Option(metavar="FILE", help="Polygons of administrative units.")] = "",
    unit_field: Annotated[str, typer.Option(metavar="COLUMN", help="Column with their names.")] = "name",
    skip_blank: Annotated[
        bool, typer.Option("--skip-blank", help="Leave out blank points between checked ones.")
    ] = False,
    model_assisted: Annotated[
        bool, typer.Option("--model-assisted", help="Without points: a rough estimate from val regions.")
    ] = False,
    config: ConfigOption = None,
    set: SetOption = None,
) -> None:
    """Estimate hectares and accuracy of a map from its checked points.

    Writes areas.csv, accuracy.csv and confusion.csv beside the map. predict.name is the map.
    """
    from cropray.errors import InputError
    from cropray.pipeline.area_estimate import estimate_areas, model_assisted_areas

    opened_run = opened(run, config, set)
    if model_assisted and (points or units):
        raise InputError("--model-assisted takes no points and no units: its val regions are elsewhere.")
    emit(
        model_assisted_areas(opened_run)
        if model_assisted
        else estimate_areas(
            opened_run, points=points, units=units, unit_field=unit_field, skip_blank=skip_blank
        )
    )
