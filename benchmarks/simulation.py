"""How hard the simulation is, and how close to reality.

    python benchmarks/simulation.py [--signatures CSV] [--json]

First table: one date is not enough, and months matter. Macro-F1 over the eight crops of a random forest that
has every label, on places other than those of training, by what it sees. Second table: means and spreads of
the simulated composites beside those measured over Flanders, by crop (calendar months December to August;
needs the table of measured signatures). Third: gaps, and the errors of the maps that the simulation offers.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import f1_score

from cropray.bands import S1_NAMES, S2_NAMES
from cropray.config.imagery import SimulatedConfig
from cropray.grid import Grid
from cropray.imagery.simulated import SimulatedSource
from cropray.simulation.landscape import LAND_COVER_CODES, TRUTH_CODES
from cropray.simulation.radar import GAMMA0_DB
from cropray.simulation.tables import CROPS
from cropray.types import FloatArray, ImageRequest, Period

ROOT = Path(__file__).parents[1]
AS_OF = date(2022, 6, 10)
REAL_NAMES = {
    "winter wheat": "winter_wheat",
    "winter barley": "winter_barley",
    "maize": "maize",
    "potato": "potato",
    "sugar beet": "sugar_beet",
    "permanent grass": "grass",
}
# The spread within one or two fields, as in the table, says little about that of a crop.
FEW_FIELDS = ("winter_barley", "potato")


def places(count: int, seed: int) -> list[Grid]:
    """Squares of about 480 m at random places in the area of the demonstration's sites."""
    rng = np.random.default_rng(seed)
    corners = zip(rng.uniform(3.7, 5.0, count), rng.uniform(50.1, 50.8, count), strict=True)
    return [Grid.covering((lon, lat, lon + 0.0068, lat + 0.0043), "EPSG:4326") for lon, lat in corners]


def months_until(as_of: date, count: int) -> tuple[Period, ...]:
    """Months of calendar length; the last one ends with the as-of date."""
    return _months(as_of.year, as_of.month - count, as_of.day + 1, count)


def samples(
    source: SimulatedSource, grids: list[Grid], periods: tuple[Period, ...]
) -> tuple[FloatArray, np.ndarray[Any, Any]]:
    """Pixels (N, T, 12), NaN without a clear view, and their true codes (N,)."""
    values, codes = [], []
    for grid in grids:
        image = source.composite(ImageRequest(grid, grid, periods))
        s2 = np.where(image.s2_valid_thw[:, None], image.s2_tchw, np.nan)
        s1 = np.where(image.s1_valid_thw[:, None], image.s1_tchw, np.nan)
        pixels = np.concatenate([s2, s1], axis=1).reshape(len(periods), 12, -1)
        values.append(pixels.transpose(2, 0, 1))
        codes.append(source.class_map("truth", grid).ravel())
    return np.concatenate(values), np.concatenate(codes)


def difficulty(source: SimulatedSource, count: int) -> dict[str, float]:
    """Macro-F1 over the crops by what the forest sees. Other land is a ninth class."""
    periods = months_until(AS_OF, 6)
    train_x, train_codes = samples(source, places(count, 1), periods)
    test_x, test_codes = samples(source, places(count // 2, 2), periods)
    crops = [TRUTH_CODES[crop] for crop in CROPS]
    train_y, test_y = (np.where(np.isin(codes, crops), codes, 0) for codes in (train_codes, test_codes))
    some = np.random.default_rng(0).permutation(len(train_y))[:20_000]

    def score(months: list[int], bands: slice) -> float:
        see = [values[:, months, bands].reshape(len(values), -1) for values in (train_x[some], test_x)]
        forest = RandomForestClassifier(60, min_samples_leaf=2, max_features="sqrt", random_state=0)
        guess = forest.fit(see[0], train_y[some]).predict(see[1])
        return float(f1_score(test_y, guess, labels=crops, average="macro"))

    optical, both = slice(0, 10), slice(0, 12)
    single = {f"{periods[t].end:%b} S2": score([t], optical) for t in range(6)}
    best = max(single, key=lambda name: single[name])
    return {
        f"best single month, S2 (to {best.split()[0]})": single[best],
        "last month, both": score([5], both),
        "last three months, both": score([3, 4, 5], both),
        "six months, S1": score(list(range(6)), slice(10, 12)),
        "six months, S2": score(list(range(6)), optical),
        "six months, both": score(list(range(6)), both),
    }


def against_real(source: SimulatedSource, signatures: Path, count: int) -> dict[str, dict[str, float]]:
    """By crop, over December to August: mean difference of the monthly means, and ratios of spread."""
    periods = _months(2022, 0, 1, 9)
    values, codes = samples(source, places(count, 3), periods)
    values[:, :, 10:] -= GAMMA0_DB  # the table holds sigma0
    table = pd.read_csv(signatures)
    table = table[table["site"] == "Flanders 2019"].set_index(["crop", "month"])
    bands = (*S2_NAMES, *S1_NAMES)
    result = {}
    for real_name, crop in REAL_NAMES.items():
        pixels = values[codes == TRUTH_CODES[crop]]
        # The season measured is that of 2018-2019.
        rows = table.loc[[(real_name, f"{p.start.year - 3}-{p.start.month:02d}") for p in periods]]
        mean, std = (rows[[f"{band}_{what}" for band in bands]].to_numpy() for what in ("mean", "std"))
        apart = np.abs(np.nanmean(pixels, axis=0) - mean)
        ratio = np.nanstd(pixels, axis=0) / std
        sim_ndvi, real_ndvi = (_ndvi(m) for m in (np.nanmean(pixels, axis=0), mean))
        result[crop] = {
            "reflectance": float(apart[:, :10].mean()),
            "NDVI": float(np.abs(sim_ndvi - real_ndvi).mean()),
            "dB": float(apart[:, 10:].mean()),
            "spread S2": float(np.median(ratio[:, :10])),
            "spread S1": float(np.median(ratio[:, 10:])),
        }
    return result


def gaps_and_maps(source: SimulatedSource, count: int) -> dict[str, float]:
    """Share of pixels and months without a clear view, and errors of the maps."""
    grids = places(count, 4)
    clear = []
    codes: dict[str, list[Any]] = {name: [] for name in ("truth", "eucropmap", "land_cover")}
    for grid in grids:
        image = source.composite(ImageRequest(grid, grid, months_until(AS_OF, 6)))
        clear.append(image.s2_valid_thw.mean(axis=(1, 2)))
        for name, found in codes.items():
            found.append(source.class_map(name, grid).ravel())
    truth, eucropmap, cover = (np.concatenate(found) for found in codes.values())
    crop = np.isin(truth, [TRUTH_CODES[name] for name in CROPS])
    arable = crop | (truth == TRUTH_CODES["fallow"])
    called_crop = cover == LAND_COVER_CODES["maize"]
    months = [f"clear view, month to {p.end:%b}" for p in months_until(AS_OF, 6)]
    return dict(zip(months, np.mean(clear, axis=0).tolist(), strict=True)) | {
        "eucropmap: pixels wrong": float(np.mean(eucropmap != truth)),
        "land cover: land without crops called cropland": float(np.mean(called_crop[~arable])),
        "land cover: crops in what is called no cropland": float(np.mean(crop[~called_crop])),
    }


def seconds_a_patch(source: SimulatedSource) -> float:
    """CPU seconds for composites of 64 x 64 px, six months and both sensors, in one tile of 512 px."""
    grid = Grid("EPSG:32631", 590_000, 5_600_000, 10, 512, 512)
    source.composite(ImageRequest(grid.window(next(grid.blocks(64))), grid, months_until(AS_OF, 1)))
    start = time.process_time()
    source.composite(ImageRequest(grid, grid, months_until(AS_OF, 6)))
    return (time.process_time() - start) / 64


def _months(year: int, month: int, day: int, count: int) -> tuple[Period, ...]:
    """Months that begin with a day of a month, which may lie before January."""
    firsts = [date(year + (month - 1 + n) // 12, (month - 1 + n) % 12 + 1, day) for n in range(count + 1)]
    return tuple(Period(start, end) for start, end in pairwise(firsts))


def _ndvi(mean_tc: FloatArray) -> FloatArray:
    red, infrared = mean_tc[:, S2_NAMES.index("B04")], mean_tc[:, S2_NAMES.index("B08")]
    ndvi: FloatArray = (infrared - red) / (infrared + red)
    return ndvi


def main() -> None:
    parser = argparse.ArgumentParser(description="how hard and how real the simulation is")
    real = ROOT.parent / "shared" / "data" / "real_signatures.csv"
    parser.add_argument("--signatures", type=Path, default=real, help="table of measured signatures")
    parser.add_argument("--places", type=int, default=80, help="squares for training")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    given = parser.parse_args()
    source = SimulatedSource(SimulatedConfig(seed=given.seed))
    result: dict[str, Any] = {
        "macro_f1": difficulty(source, given.places),
        "gaps_and_maps": gaps_and_maps(source, given.places // 2),
        "cpu_seconds_a_patch": seconds_a_patch(source),
    }
    if given.signatures.is_file():
        result["against_real"] = against_real(source, given.signatures, given.places // 2)
    if given.json:
        print(json.dumps(result))
        return
    print(f"macro-F1 over the eight crops, as of {AS_OF}, all labels, other places")
    for name, value in result["macro_f1"].items():
        print(f"  {name:45s} {value:.2f}")
    for name, value in result["gaps_and_maps"].items():
        print(f"  {name:50s} {value:.3f}")
    print(f"  {'CPU seconds a patch of 64 x 64 px, six months':50s} {result['cpu_seconds_a_patch']:.3f}")
    if "against_real" not in result:
        print(f"no table of real signatures at {given.signatures}: no comparison")
        return
    print("simulated and measured: mean difference of monthly means; median ratio of spreads")
    print(pd.DataFrame(result["against_real"]).T.round(3).to_string())


if __name__ == "__main__":
    main()
