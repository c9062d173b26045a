"""Hectares of the simulated world: how far pixel counts, rough estimates and checked points are off.

    python benchmarks/areas.py --run FOLDER [--areas 8] [--points 600] [--json]

FOLDER is the finished fine-tuning run of a demonstration, whose model maps squares of 4 km that no training
saw. The error of a square is the sum over the crops of the absolute errors of their hectares, as a share of
the true hectares of all crops; the table has the mean over the squares. "held" is how many of the 95 %
intervals hold the true hectares, over squares and crops. Each square has one sample of checked points.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from cropray.evaluation.classifiers import Network
from cropray.evaluation.evaluate import block_confusions, open_split
from cropray.grid import Grid, Window
from cropray.imagery.simulated import SimulatedSource
from cropray.maps.estimation import Checked, Estimate, Strata, calibrated, class_hectares, plan_sample
from cropray.maps.mosaic import assemble, pixel_hectares
from cropray.maps.request import prediction_settings
from cropray.maps.strata import class_index, define_strata, draw
from cropray.maps.tiles import predict_tile
from cropray.models.checkpoint import load_checkpoint
from cropray.run import Run, config_of
from cropray.storage import Folder
from cropray.tracking.registry import resolve_model

SIDE = 400  # pixels
EAST, NORTH = (4.9, 5.6), (50.2, 50.9)  # degrees: beyond the sites of the demonstration


def squares(number: int) -> list[Grid]:
    """Squares apart from each other."""
    rng = np.random.default_rng(0)
    places = zip(rng.uniform(*EAST, number), rng.uniform(*NORTH, number), strict=True)
    around = [Grid.covering((x, y, x + 0.001, y + 0.001), "EPSG:4326") for x, y in places]
    return [grid.window(Window(0, 0, SIDE, SIDE)) for grid in around]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--areas", type=int, default=8)
    parser.add_argument("--points", type=int, default=600)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = Folder(options.run)
    config = config_of(folder)
    assert config is not None, "the run has no configuration"
    run = Run(folder, config)
    checkpoint = load_checkpoint(resolve_model("", run))
    network, settings = Network(checkpoint), prediction_settings(checkpoint, config)
    source, codes = SimulatedSource(config.source.simulated), config.labels.truth.codes
    _, counts = block_confusions(run.config, open_split(run, "val", ""), {"network": network})
    k = len(checkpoint.classes) + 1
    everything: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for number, grid in enumerate(squares(options.areas)):
        tile = Window(0, 0, SIDE, SIDE)
        result = predict_tile(tile, np.ones((SIDE, SIDE), bool), grid, source, network.predictor, settings)
        mapped = class_index(checkpoint.classes)[result.class_hw]
        land = source.class_map("truth", grid)
        truth = np.select([land == code for code in codes], range(k - 1), k - 1)
        hectares = pixel_hectares(grid)
        true_k = np.bincount(truth.ravel(), hectares.ravel(), k)
        mapped_k = np.bincount(mapped.ravel(), hectares.ravel(), k)
        rough = calibrated(mapped_k, counts["network"], draws=500, seed=0)
        with tempfile.TemporaryDirectory() as temporary:
            directory = Path(temporary)
            assemble(
                grid, [tile], lambda _, result=result: result, directory,
                classes=checkpoint.classes, tags={}, probabilities=True,
            )  # fmt: skip
            defined = define_strata(directory, checkpoint.classes, 25)
            strata = Strata(np.array([s.pixels for s in defined]), np.array([s.hectares for s in defined]))
            index = class_index(checkpoint.classes)[[s.value for s in defined]]
            share = mapped_k / mapped_k.sum()
            rates = (0.75 * np.eye(k) + 0.25 * share)[index]
            wanted = np.append(np.maximum(mapped_k[:-1], 0.01 * mapped_k.sum()), np.inf)
            points, _ = plan_sample(strata, rates, wanted, least=15, size=options.points)
            rows, cols, stratum = (
                np.array(a) for a in zip(*draw(directory, defined, points, number), strict=True)
            )
        checked = Checked(stratum, hectares[rows, cols], mapped[rows, cols], truth[rows, cols])
        inside = np.ones((1, len(rows)), bool)
        found, _ = class_hectares(checked, strata, mapped_k[None], inside)
        sampled = Estimate(found.value[0], found.se[0], found.low[0], found.high[0])
        for name, value, held in (
            ("pixel count", mapped_k, None),
            ("model-assisted, val regions", rough.value, (rough.low <= true_k) & (true_k <= rough.high)),
            (
                f"{options.points} checked points",
                sampled.value,
                (sampled.low <= true_k) & (true_k <= sampled.high),
            ),
        ):
            error = np.abs(value - true_k)[:-1].sum() / true_k[:-1].sum()
            everything.setdefault(name, []).append((error, None if held is None else held[:-1].mean()))
    table = {
        name: {
            "error": round(float(np.mean([error for error, _ in rows])), 3),
            "held": None if rows[0][1] is None else round(float(np.mean([held for _, held in rows])), 3),
        }
        for name, rows in everything.items()
    }
    if options.json:
        json.dump(table, sys.stdout, indent=1)
        return
    print("| hectares from | mean error | 95 % intervals that hold the truth |\n|---|---|---|")
    for name, row in table.items():
        held = "–" if row["held"] is None else f"{row['held']:.0%}"
        print(f"| {name} | {row['error']:.0%} | {held} |")


if __name__ == "__main__":
    main()
