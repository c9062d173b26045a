"""Rules that turn scores into classes, each chosen on the val split of trained runs and scored on their test.

    python benchmarks/decisions.py RUN … [--json]

RUN is the folder of a run whose fine-tuning is finished, such as those of benchmarks/accuracy.py (seed-*/
finetuning). A network of any date counts with the fewest months that it serves, with all, and with a number
between. All rules see the same scores. Macro-F1 is that of the test split; the worst share is the largest
ratio of mapped to true pixels of a class; ECE is that of the class that is shown.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from cropray.config.load import load_config
from cropray.evaluation.decisions import DecisionRule, fit_decision, known_scores, networks_by_months
from cropray.evaluation.evaluate import open_split, score_split
from cropray.evaluation.reliability import Reliability
from cropray.models.checkpoint import Checkpoint, load_checkpoint
from cropray.run import Run, config_of
from cropray.storage import Folder

RULES = {
    f"{calibration} / {thresholds}": DecisionRule(calibration, thresholds)
    for calibration in ("none", "temperature", "bias")
    for thresholds in ("class", "shrunk", "common")
} | {
    f"{calibration} / {name}": DecisionRule(calibration, threshold=threshold)
    for calibration in ("none",)
    for name, threshold in (("0.5", 0.5), ("argmax", 1e-6))
}


def months_of(checkpoint: Checkpoint) -> list[int]:
    served = sorted(int(months) for months in networks_by_months(checkpoint))
    return sorted({served[0], served[len(served) // 2], served[-1]})


def figures(folder: str) -> Iterator[tuple[str, str, float, float, float]]:
    """Land, rule, macro-F1, worst share and ECE."""
    place = Folder(folder)
    run = Run(place, config_of(place) or load_config(None, ()))
    checkpoint = load_checkpoint(place.child("models/finetune"))
    options = {"buffer_m": run.config.rois.split.buffer_m, "overlap": run.config.predict.overlap}
    by_months = networks_by_months(checkpoint)
    networks = {str(months): by_months[str(months)] for months in months_of(checkpoint)}
    known = known_scores(open_split(run, "val", ""), networks, **options)
    for months, scores_nk in known.scores_nk.items():
        decided = {}
        for name, rule in RULES.items():
            decision = fit_decision(scores_nk, known.label_n, known.block_n, rule)
            decided[name] = Decided(networks[months], decision)
        held = {name: Reliability(each.decision, len(checkpoint.classes)) for name, each in decided.items()}

        def look(name, _tile, truth_hw, values_khw, map_hw, held=held):
            held[name].add(values_khw, map_hw, truth_hw)

        found = score_split(run.config, open_split(run, "test", ""), decided, look)
        for name, row in found["methods"].items():
            counts = np.array(row["confusion"])
            counts = np.vstack([counts, np.zeros((counts.shape[1] - len(counts), counts.shape[1]), int)])
            true_k, shown_k = counts.sum(axis=1)[:-1], counts.sum(axis=0)[:-1]
            worst = float((shown_k[true_k > 0] / true_k[true_k > 0]).max())
            f1 = 2 * counts.diagonal()[:-1] / np.maximum(true_k + shown_k, 1)
            land = f"{folder.rstrip('/').split('/')[-1]}, {months} months"
            yield land, name, float(f1[true_k > 0].mean()), worst, held[name].figures["ece"]


class Decided:
    """A network's scores by another decision; the network is asked once for each tile."""

    _last: tuple = (None, None)

    def __init__(self, network, decision) -> None:
        self.network, self.decision = network, decision

    def probabilities(self, tile):
        if Decided._last[0] is not tile or Decided._last[1] is not self.network:
            Decided._last = (tile, self.network, np.nan_to_num(self.network.probabilities(tile)))
        return self.decision.calibrated(Decided._last[2])

    def probabilities_at(self, tile, where_hw):
        return self.probabilities(tile)[:, where_hw].T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    table = defaultdict(dict)
    for folder in options.runs:
        for land, rule, *row in figures(folder):
            table[rule][land] = row
    if options.json:
        print(json.dumps(table, indent=1))
        return
    lands = list(next(iter(table.values())))
    print(f"{'calibration / thresholds':26}" + "".join(f"{land[-20:]:>22}" for land in lands))
    for rule, rows in table.items():
        cells = "".join(f"{f1:14.3f} ({worst:4.1f})" for f1, worst, _ in rows.values())
        f1, worst, error = (np.array([row[k] for row in rows.values()]) for k in range(3))
        print(f"{rule:26}{cells}   mean {f1.mean():.3f}, worst {worst.max():.1f}, ECE {error.mean():.3f}")


if __name__ == "__main__":
    main()
