"""Estimates of a map's hectares, with intervals: from checked points, or roughly from val regions.

They are written beside the map: areas.csv, accuracy.csv and confusion.csv.
"""

from __future__ import annotations

import numpy as np

from cropray.errors import InputError
from cropray.grid import Grid
from cropray.maps.catalogue import publish_beside
from cropray.maps.estimation import (
    LEAST_IN_UNIT,
    Checked,
    Estimate,
    Strata,
    accuracy,
    calibrated,
    class_hectares,
    confusion_hectares,
)
from cropray.maps.finished import FinishedMap, open_map
from cropray.maps.mosaic import pixel_hectares
from cropray.maps.reference import POINTS, SAMPLE, Sample, read_checked
from cropray.maps.strata import Units, at_pixels, class_index, mapped, read_units
from cropray.maps.tables import (
    ACCURACY_TABLE,
    AREAS_TABLE,
    CONFUSION_TABLE,
    WHOLE,
    accuracy_csv,
    areas_csv,
    confusion_csv,
    counts,
)
from cropray.progress import say
from cropray.rasters import read_grid, read_window
from cropray.report.map_page import publish_pages
from cropray.run import Run, Summary
from cropray.types import DoubleArray, IndexArray


def estimate_areas(
    run: Run, *, points: str = "", units: str = "", unit_field: str = "name", skip_blank: bool = False
) -> Summary:
    """Estimate the hectares and the accuracy of the map `predict.name` from the checked points.

    `points` is the file with them, by default points.gpkg of areas/<map>/. The sample may have been drawn on
    an earlier map of the same land. Raises InputError for points that do not fit the sample, and for a sample
    that does not fit the map.
    """
    folder = run.folder.child(f"areas/{run.config.predict.name}")
    if not folder.exists(SAMPLE):
        raise InputError(
            f"{folder} has no sample. Run cropray areas sample first and check its points, or estimate "
            "without a sample: --model-assisted"
        )
    where = f"{folder}/{SAMPLE}"
    sample = Sample.from_json(folder.read_text(SAMPLE), where)
    file = points or str(folder.local(POINTS))
    used, truth_n = read_checked(file, sample, skip_blank=skip_blank, where=where)
    with open_map(run) as source:
        grid = read_grid(source.path)
        regions = read_units(units, unit_field, grid.crs) if units else Units()
        rows, cols = np.array(sample.rows)[used], np.array(sample.cols)[used]
        strata = Strata(
            np.array([s.pixels for s in sample.strata]), np.array([s.hectares for s in sample.strata])
        )
        values_n = _values(source, sample, grid, rows, cols)
        checked = Checked(
            np.array(sample.stratum)[used],
            at_pixels(grid, rows, cols, lambda window: pixel_hectares(grid.window(window))),
            class_index(source.classes)[values_n],
            truth_n,
        )
        unit_n = at_pixels(grid, rows, cols, lambda window: regions.at(grid.window(window)))
        inside_un = np.stack(
            [np.full(len(used), True), *(unit_n == u + 1 for u in range(len(regions.names)))]
        )
        mapped_uk = source.hectares(regions)
        hectares, enough_uk = class_hectares(checked, strata, mapped_uk, inside_un)
        k = len(source.names)
        pairs = counts(checked.mapped_n, truth_n, n_classes=k)
        support = {
            "overall": np.array([len(used)]),
            "users": pairs.sum(axis=1),
            "producers": pairs.sum(axis=0),
        }
        same = source.checksum == sample.map_checksum
        tables = {
            AREAS_TABLE: areas_csv(
                [WHOLE, *regions.names],
                source.names,
                mapped_uk,
                method="stratified sample" if same else "sample of an earlier map",
                estimate=hectares,
                enough_uk=enough_uk,
                points_u=inside_un.sum(axis=1),
            ),
            ACCURACY_TABLE: accuracy_csv(source.names, accuracy(checked, strata, k), support),
            CONFUSION_TABLE: confusion_csv(source.names, confusion_hectares(checked, strata, k), pairs),
        }
        publish_beside(source.folder, {name: text.encode() for name, text in tables.items()})
    publish_pages(run)
    points_u = inside_un[1:].sum(axis=1)
    few = [name for name, number in zip(regions.names, points_u, strict=True) if number < LEAST_IN_UNIT]
    if few:
        say(f"areas: fewer than {LEAST_IN_UNIT} checked points, so no estimate: {', '.join(few)}")
    if not same:
        say(f"areas: the points were drawn on an earlier map of the same land, {sample.map_id}")
    return _summary(source, mapped_uk[0], hectares, "stratified sample") | {"n_reference": len(used)}


def model_assisted_areas(run: Run) -> Summary:
    """Hectares without a sample, from the confusion of the run's val regions. Writes areas.csv.

    It is a rough estimate: its intervals do not know how the mapped land differs from those regions. Raises
    InputError if the truth of whole val regions is unknown, or if there are fewer than two blocks of them.
    """
    from cropray.evaluation.classifiers import Network
    from cropray.evaluation.evaluate import block_confusions, check_fit, open_split
    from cropray.models.checkpoint import load_checkpoint
    from cropray.models.heads import with_head
    from cropray.pipeline.predict import model_fingerprint
    from cropray.tracking.registry import resolve_model

    settings = run.config.predict
    place = resolve_model(settings.model, run)
    if run.inputs("predict").get("model") != model_fingerprint(place, settings.head):
        raise InputError(
            f"the map {settings.name!r} was made by another model than {place}. Give its model "
            "(--set predict.model=…), or run cropray predict again."
        )
    checkpoint = with_head(load_checkpoint(place), settings.head, str(place))
    reader = open_split(run, "val", "an estimate without a sample needs val regions")
    check_fit(checkpoint, reader.metadata, str(place), "the val split")
    if not reader.metadata.has_truth and not run.config.labels.class_map:
        raise InputError(
            "the truth of the val regions is known on annotated parcels only, so nobody can say how much of "
            "what is mapped as a crop is that crop. Check a sample of the map: cropray areas sample"
        )
    network = Network(checkpoint)
    _, found = block_confusions(run.config, reader, {"network": network})
    blocks = found["network"]
    if len(blocks) < 2:
        raise InputError("val has a single block of regions: an interval needs two. Check a sample instead.")
    with open_map(run) as source:
        mapped_uk = source.hectares(Units())
        rough = calibrated(
            mapped_uk[0], blocks, draws=max(200, run.config.evaluate.bootstrap), seed=run.config.seed
        )
        parts = (rough.value, rough.se, rough.low, rough.high)
        table = Estimate(*(part[None] for part in parts))
        method = f"model-assisted, {len(blocks)} val blocks"
        text = areas_csv([WHOLE], source.names, mapped_uk, method=method, estimate=table)
        publish_beside(source.folder, {AREAS_TABLE: text.encode()})
    publish_pages(run)
    say("areas: model-assisted: no sample of this land was checked, so the intervals may be far too short")
    return _summary(source, mapped_uk[0], table, method)


def _values(
    source: FinishedMap, sample: Sample, grid: Grid, rows: IndexArray, cols: IndexArray
) -> IndexArray:
    """Values (N,) of the map at the points. Raises InputError if it is not of the land that was sampled."""
    shown = f"the map {source.item['id']} and the sample of {sample.map_id}"
    if grid != sample.grid:
        raise InputError(f"{shown} have different grids: draw a new sample on this map.")
    if source.classes != sample.classes:
        raise InputError(f"{shown} have different classes: draw a new sample on this map.")
    values_n = at_pixels(grid, rows, cols, lambda window: read_window(source.path, window)[0])
    there = mapped(source.path, Units())[0][0, class_index(source.classes) >= 0].sum()
    if (class_index(source.classes)[values_n] < 0).any() or there != sum(s.pixels for s in sample.strata):
        raise InputError(f"{shown} do not cover the same pixels: draw a new sample on this map.")
    return values_n.astype(np.intp)


def _summary(source: FinishedMap, mapped_k: DoubleArray, found: Estimate, method: str) -> Summary:
    figures = np.stack([mapped_k, found.value[0], found.low[0], found.high[0]], axis=1).round(1).tolist()
    hectares = {
        name: {"mapped": own, "estimate": value, "ci95": [low, high]}
        for name, (own, value, low, high) in zip(source.names, figures, strict=True)
    }
    return {"areas": source.folder.path(AREAS_TABLE), "method": method, "hectares": hectares}
