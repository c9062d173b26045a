"""A sample of a map's pixels to be checked: how many, which ones, and their files.

It is written to areas/<map>/, which a new map of that name leaves alone.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import numpy as np

from cropray.errors import InputError, nearest
from cropray.figures.charts import EVALUATION
from cropray.figures.pictures import point_picture
from cropray.grid import Window
from cropray.imagery import open_source
from cropray.maps.estimation import Strata, plan_sample
from cropray.maps.finished import FinishedMap, open_map
from cropray.maps.reference import SAMPLE, Sample, write_points
from cropray.maps.strata import class_index, define_strata, draw
from cropray.progress import progress, say
from cropray.rasters import read_grid
from cropray.run import Run, Summary
from cropray.shards.schema import quantise_composite
from cropray.storage import Folder
from cropray.types import DoubleArray, ImageRequest, Period

# Points of a stratum: 50 of a class in two parts. Olofsson et al. (2014) want 50 to 100 of a rare class.
_LEAST = 25
_MAIN_SHARE = 0.05  # of the mapped land: crops whose intervals decide the size unless others are named
_ASSUMED_RIGHT = 0.75  # users' accuracy if the run has no evaluation that says it
_MOST_POINTS = 20_000  # nobody checks more
_Z = 1.96
_AROUND = 20  # pixels on each side of a point in its picture


def sample_areas(
    run: Run,
    *,
    interval: float = 15.0,
    size: int | None = None,
    crops: Sequence[str] = (),
    pictures: bool = False,
) -> Summary:
    """Draw pixels of the map `predict.name` to be checked, and write them to areas/<map>/.

    There are as many as a 95 % interval of ± `interval` per cent of the mapped hectares of each of the
    `crops` needs (by default of those on 5 % of the mapped land or more), or `size`. With `pictures`, the
    months of the map's imagery around each point are drawn. The same call gives the same points. Raises
    InputError if there is another sample in the folder already, and for crops that the map does not show.
    """
    output = run.folder.child(f"areas/{run.config.predict.name}")
    with open_map(run) as source:
        defined = define_strata(source.directory, source.classes, _LEAST)
        strata = Strata(np.array([s.pixels for s in defined]), np.array([s.hectares for s in defined]))
        index_h = class_index(source.classes)[[stratum.value for stratum in defined]]
        mapped_k = np.bincount(index_h, strata.hectares_h, len(source.names)).astype(np.float64)
        wanted_k = _wanted(source, mapped_k, interval, crops)
        least = _LEAST if size is None else max(2, min(_LEAST, size // (2 * len(defined))))
        if size is not None and size < 2 * len(defined):
            raise InputError(f"--size {size} is too small: each of {len(defined)} strata needs two points.")
        rates_hk = _expected_rates(run, source, mapped_k)[index_h]
        points_h, se_k = plan_sample(strata, rates_hk, wanted_k, least=least, size=size)
        if points_h.sum() > _MOST_POINTS:
            raise InputError(
                f"± {interval:g} % needs {points_h.sum():,} points, more than {_MOST_POINTS:,}. Give a wider "
                "--interval, name the crops that count with --crop, or set --size."
            )
        rows, cols, stratum = zip(*draw(source.directory, defined, points_h, run.config.seed), strict=True)
        sample = Sample(
            str(source.item["id"]),
            source.checksum,
            read_grid(source.path),
            source.classes,
            tuple(defined),
            rows,
            cols,
            stratum,
            run.config.seed,
        )
        periods = [Period(*map(date.fromisoformat, p)) for p in source.item["properties"]["cropray:periods"]]
        _write(run, output, sample, periods, pictures=pictures)
    expected = {
        name: {"mapped_ha": round(hectares, 1), "expected_ci95_ha": f"± {_Z * se:.1f}"}
        for name, hectares, se in zip(source.names, mapped_k.tolist(), se_k.tolist(), strict=True)
    }
    folder, number = output.uri, len(sample.rows)
    return {
        "folder": folder,
        "points": number,
        "strata": len(defined),
        "sample": sample.key,
        "crops": expected,
    }


def _wanted(source: FinishedMap, mapped_k: DoubleArray, interval: float, crops: Sequence[str]) -> DoubleArray:
    """The standard errors (K,) that a sample should reach, inf for classes of no interest."""
    if not interval > 0:
        raise InputError(f"--interval {interval:g} is not above 0. Give per cent of the hectares: 15.")
    chosen = [mapped_k[k] >= _MAIN_SHARE * mapped_k.sum() for k in range(len(source.classes))]
    if crops:
        for crop in crops:
            if crop not in source.classes:
                raise InputError(f"--crop {crop!r} is no class of the map.{nearest(crop, source.classes)}")
            if not mapped_k[source.classes.index(crop)]:
                raise InputError(f"--crop {crop!r}: the map shows no pixel of it. Name others.")
        chosen = [name in crops for name in source.classes]
    if not any(chosen):
        raise InputError("the map shows no crop on 5 % of the land or more. Name some: --crop NAME")
    return np.where([*chosen, False], interval / 100 * mapped_k / _Z, np.inf)


def _expected_rates(run: Run, source: FinishedMap, mapped_k: DoubleArray) -> DoubleArray:
    """Expected shares (K, K) of the true classes of what is mapped as a class (row).

    They are those of the run's evaluation if it knows the truth of whole regions. Otherwise three quarters
    of each class are assumed to be right, and the rest to be other classes as common as they are mapped.
    """
    share_k = mapped_k / mapped_k.sum()
    if run.folder.exists(EVALUATION):
        result = json.loads(run.folder.read_text(EVALUATION))
        if result["scope"] != "annotated" and tuple(result["classes"]) == source.classes:
            counts_kk = np.array(result["methods"]["network"]["confusion"], float).T
            prior_kk = np.eye(len(share_k)) * _ASSUMED_RIGHT + share_k * (1 - _ASSUMED_RIGHT)
            total_k = counts_kk.sum(axis=1, keepdims=True)
            return np.asarray(np.where(total_k > 0, counts_kk / np.maximum(total_k, 1), prior_kk))
    return np.asarray(np.eye(len(share_k)) * _ASSUMED_RIGHT + share_k * (1 - _ASSUMED_RIGHT))


def _write(run: Run, output: Folder, sample: Sample, periods: Sequence[Period], *, pictures: bool) -> None:
    """Publish a sample, sample.json last. One that is there already stays, as its points may be checked."""
    if output.exists(SAMPLE):
        if Sample.from_json(output.read_text(SAMPLE), f"{output}/{SAMPLE}").key != sample.key:
            raise InputError(
                f"{output} holds another sample, and its points may have been checked. Move or delete the "
                "folder to draw a new one."
            )
        say(f"areas: reused {output}")
        return
    with tempfile.TemporaryDirectory(prefix="cropray-") as directory:
        if pictures:
            for name, picture in _pictures(run, sample, periods):
                output.write_bytes(f"pictures/{name}.png", picture)
        for path in write_points(sample, Path(directory), pictures=pictures):
            output.publish(path, path.name)
    output.write_text(SAMPLE, sample.to_json())


def _pictures(run: Run, sample: Sample, periods: Sequence[Period]) -> Iterator[tuple[str, bytes]]:
    """The name and the picture of each point, from the imagery of the map."""
    imagery, recipe = open_source(run.config), run.config.composite.recipe()
    months, side = [f"{period.start:%-d %b}" for period in periods], 2 * _AROUND + 1
    with progress("pictures", len(sample.names)) as bar:
        for name, row, col in zip(sample.names, sample.rows, sample.cols, strict=True):
            window = Window(row - _AROUND, col - _AROUND, side, side)
            part = sample.grid.window(window)
            s1_cthw, s2_cthw = quantise_composite(
                imagery.composite(ImageRequest(part, sample.grid, tuple(periods), recipe, name=name))
            )
            yield name, point_picture(s2_cthw, s1_cthw, months, sample.grid.resolution, name)
            bar.advance()
