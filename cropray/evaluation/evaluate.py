"""The evaluation stage: the network and its baselines, compared on whole held-out ROIs.

Thresholds of all classifiers are chosen on val by the same function; the test split is read once.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np

from cropray.config import Config
from cropray.errors import InputError
from cropray.evaluation.baselines import MAJORITY, Fitted, fit_baselines
from cropray.evaluation.by_date import (
    NETWORK,
    DecidedLand,
    by_lead,
    dated_classifiers,
    months_as_of,
    rows_by_date,
)
from cropray.evaluation.classifiers import Classifier, Network, grouped, scored
from cropray.evaluation.decisions import DecisionRule, choose_decisions, networks_by_months
from cropray.evaluation.metrics import Counts, Scope, confusion, known_truth, score_table
from cropray.evaluation.mosaics import MosaicTile, TilePlan, block_numbers, plan_tiles, read_tile, roi_grids
from cropray.evaluation.protocol import InputShift, protocol
from cropray.evaluation.reliability import Reliability
from cropray.figures.charts import EVALUATION, calibration_chart, confusion_chart, dates_chart, scores_chart
from cropray.figures.pictures import comparison_picture
from cropray.models.checkpoint import Checkpoint, check_classes, check_inputs, load_checkpoint
from cropray.models.decision import DEFAULT_THRESHOLD
from cropray.models.heads import with_head
from cropray.models.shift import shift_warning
from cropray.progress import progress, say
from cropray.rois.splits import SPLITS
from cropray.rois.store import ROIS, read_rois
from cropray.run import Run, Summary
from cropray.shards.file import check_shards, fingerprint, shard_uris
from cropray.shards.reader import ShardReader
from cropray.shards.schema import ShardMetadata
from cropray.storage import Folder
from cropray.tracking.lineage import checkpoint_id
from cropray.tracking.registry import resolve_model
from cropray.tracking.versions import link_evaluation
from cropray.types import UNLABELLED, ByteArray, FloatArray

_BATCH = 32
_PICTURES = 12

Visit = Callable[[str, MosaicTile, ByteArray, FloatArray, ByteArray], None]
"""Called with a classifier's name, a tile, its known truth (H, W), and the classifier's probabilities
(K, H, W) and map (H, W)."""


def evaluate(run: Run) -> Summary:
    """Score a model on the test split. Writes evaluation/evaluation.json and pictures next to it.

    Registered versions of the model receive the scores. Raises InputError if the run has no test split, or
    if the model does not fit the shards.
    """
    run.begin("evaluate")
    folder = resolve_model(run.config.evaluate.model, run)
    check_shards(run.folder, (run.summary("compact") or {}).get("shards", {}))
    uris = [uri for split in SPLITS for uri in shard_uris(run.folder, split)]
    overlap = str(run.config.predict.overlap)  # of patches, as in a map
    inputs = {
        "model": checkpoint_id(folder),
        "shards": fingerprint(uris),
        "overlap": overlap,
        "precision": run.config.predict.precision,
    }
    summary = run.finished("evaluate", inputs, [EVALUATION])
    if summary is None:
        summary = _evaluate(run, folder)
        run.finish("evaluate", summary, inputs)
    else:
        say(f"evaluate: reused {run.folder}/{EVALUATION}")
    # Last, so that no evaluation is lost if the registry fails: the same command resumes here.
    if run.config.evaluate.head is None:
        result = json.loads(run.folder.read_text(EVALUATION))
        summary = summary | {"versions": link_evaluation(run, folder, result, inputs["shards"])}
    return summary


def open_split(run: Run, split: str, remedy: str) -> ShardReader:
    """The shards of a split, in order. Raises InputError with the `remedy` if there are none."""
    uris = shard_uris(run.folder, split)
    if not uris:
        raise InputError(f"{run.folder} has no shards of the split {split}: {remedy}")
    return ShardReader(uris, batch_size=_BATCH, shuffle=False)


def check_fit(checkpoint: Checkpoint, metadata: ShardMetadata, model: str, where: str) -> None:
    """Raises InputError if a model has other classes, bands, backscatter or months than the shards."""
    check_classes(checkpoint, metadata.classes, model)
    check_inputs(
        checkpoint,
        s2_bands=metadata.s2_bands,
        s1_bands=metadata.s1_bands,
        s1_quantity=metadata.s1_quantity,
        where=where,
    )
    if checkpoint.window != metadata.window:
        raise InputError(
            f"the model {model} was trained on the window {checkpoint.window}, but the shards have "
            f"{metadata.window}: evaluate another model, or start with that window in a new --run folder"
        )


def score_split(
    config: Config,
    reader: ShardReader,
    classifiers: Mapping[str, Classifier],
    visit: Visit | None = None,
) -> dict[str, Any]:
    """Scores (`metrics.score_table`) of classifiers on whole ROIs, each by its own decision."""
    scope, counts = block_confusions(config, reader, classifiers, visit)
    return score_table(
        scope, reader.metadata.classes, counts, draws=config.evaluate.bootstrap, seed=config.seed
    )


def block_confusions(
    config: Config,
    reader: ShardReader,
    classifiers: Mapping[str, Classifier],
    visit: Visit | None = None,
) -> tuple[Scope, dict[str, Counts]]:
    """Where the truth is known, and the confusion (R, K + 1, K + 1) of each classifier by block of ROIs.

    A pixel without a valid observation has no truth, since a map holds nodata there.
    """
    metadata, plans = reader.metadata, plan_tiles(reader, config.predict.overlap)
    n_classes = len(metadata.classes)
    scope: Scope = "truth" if metadata.has_truth else "class_map" if config.labels.class_map else "annotated"
    block_of = block_numbers(roi_grids(reader), config.rois.split.buffer_m)
    empty = np.zeros((n_classes + 1, n_classes + 1), np.int64)
    counts: dict[str, dict[int, Counts]] = {name: defaultdict(empty.copy) for name in classifiers}
    with progress("evaluate", len(plans)) as bar:
        for group in grouped(plans):
            tiles = [read_tile(reader, plan) for plan in group]
            scores = {name: scored(classifier, tiles) for name, classifier in classifiers.items()}
            for number, (plan, tile) in enumerate(zip(group, tiles, strict=True)):
                truth_hw = known_truth(scope, tile.label_hw, tile.truth_hw)
                truth_hw = np.where(tile.seen_hw, truth_hw, np.uint8(UNLABELLED))
                for name, classifier in classifiers.items():
                    values_khw = scores[name][number]
                    map_hw = classifier.decision.decide(values_khw)
                    counts[name][block_of[plan.roi_id]] += confusion(truth_hw, map_hw, n_classes)
                    if visit is not None:
                        visit(name, tile, truth_hw, values_khw, map_hw)
                bar.advance()
    return scope, {name: np.stack(list(by_block.values())) for name, by_block in counts.items()}


def _evaluate(run: Run, folder: Folder) -> Summary:
    start, config = time.monotonic(), run.config
    checkpoint = with_head(load_checkpoint(folder), config.evaluate.head, str(folder))
    test = open_split(
        run, "test", "add parcels, or start with a larger rois.split.test in a new --run folder"
    )
    check_fit(checkpoint, test.metadata, str(folder), "the test split")
    months = months_as_of(checkpoint, config.evaluate.as_of)
    checkpoint, fitted, baselines, chosen_on = _fitted(run, checkpoint, list(months.values()))
    classes, n_classes = checkpoint.classes, len(checkpoint.classes)
    classifiers: dict[str, Classifier] = {
        NETWORK: Network(checkpoint, precision=config.predict.precision),
        **{name: versions[checkpoint.months] for name, versions in fitted.items()},
    }
    by_date = dated_classifiers(checkpoint, months, fitted, config.predict.precision)
    watched = {name: each for name, each in {**classifiers, **by_date}.items() if name.startswith(NETWORK)}
    reliability = {name: Reliability(each.decision, n_classes) for name, each in watched.items()}
    decided, shift = DecidedLand(list(months), config.evaluate.confidence), InputShift(checkpoint)
    pictured, pictures = _pictured(plan_tiles(test, config.predict.overlap)), dict[str, bytes]()
    unknown = {name: np.zeros(n_classes, np.int64) for name in classifiers}

    def look(
        name: str, tile: MosaicTile, truth_hw: ByteArray, values_khw: FloatArray, map_hw: ByteArray
    ) -> None:
        plan = tile.plan
        if name in unknown:  # mapped as a crop where the truth is not known
            mapped = map_hw[tile.seen_hw & (truth_hw == UNLABELLED)]
            unknown[name] += np.bincount(mapped, minlength=UNLABELLED + 1)[:n_classes]
        if name in reliability:
            reliability[name].add(np.nan_to_num(values_khw), map_hw, truth_hw)
        if name == NETWORK:
            shift.add(tile)
        if name == NETWORK and plan in pictured:
            title = f"{plan.roi_id} · {plan.crop}"
            picture = comparison_picture(truth_hw, map_hw, classes, tile.s2_cthw, title)
            pictures[f"rois/{plan.roi_id}.png"] = picture
        elif name in reliability and name != NETWORK:
            decided.add(truth_hw, np.nan_to_num(values_khw), map_hw)

    scope, counts = block_confusions(config, test, {**classifiers, **by_date}, look)
    options: dict[str, Any] = {"draws": config.evaluate.bootstrap, "seed": config.seed}
    mine = {name: counts[name] for name in classifiers}
    table = score_table(scope, classes, mine, **options, unknown=unknown)
    later = {name: counts[name] for name in by_date}
    rows = rows_by_date(scope, classes, later, months, reliability, **options)
    rois = read_rois(run.folder) if rows and run.folder.exists(ROIS) else []
    result: dict[str, Any] = {
        "model": folder.uri,
        "classes": list(classes),
        "regions": len(roi_grids(test)),
        "protocol": _protocol(run, test, checkpoint, classifiers[NETWORK], table),
        "outside_training": shift.share,
        **table,
        "draws": config.evaluate.bootstrap,
        "thresholds": {
            name: [round(float(t), 4) for t in classifier.decision.thresholds_k(n_classes)]
            for name, classifier in classifiers.items()
        },
        "thresholds_chosen_on": chosen_on,
        "calibration": reliability[NETWORK].calibration(classes),
        "doubt": reliability[NETWORK].doubt(classes),
        "kept": reliability[NETWORK].kept(),
        "baselines": baselines,
        "by_as_of": rows,
        "by_lead": by_lead(rows, rois),
        "decided": decided.table(),
        "pictures": list(pictures),
    }
    pictures |= {
        "confusion.png": confusion_chart(result),
        "scores.png": scores_chart(result),
        "calibration.png": calibration_chart(result),
        **({"dates.png": dates_chart(result)} if rows else {}),
    }
    if warning := shift_warning(*shift.counts, "the test split"):
        say(f"evaluate: warning: {warning}")
    for name, picture in pictures.items():
        run.folder.write_bytes(f"evaluation/{name}", picture)
    run.folder.write_text(EVALUATION, json.dumps(result, indent=1, allow_nan=False) + "\n")
    return {
        **{key: result[key] for key in ("scope", "blocks", "pixels")},
        **{f"{result['score']}/{name}": row["score"] for name, row in result["methods"].items()},
        "seconds": round(time.monotonic() - start, 1),
    }


def _protocol(
    run: Run, test: ShardReader, checkpoint: Checkpoint, network: Classifier, table: Mapping[str, Any]
) -> dict[str, Any]:
    """What the test split leaves out, and the network's score on val where that has the training's places.

    The difference shows how much spatial blocks flatter. Thresholds were chosen on val, which flatters a bit.
    """
    train, val = shard_uris(run.folder, "train"), shard_uris(run.folder, "val")
    found = protocol(test, train, checkpoint)
    if found["left_out"] not in ("region", "year") or not val:
        return found
    reader = open_split(run, "val", "")
    if protocol(reader, train, checkpoint)["left_out"] != "blocks":
        return found
    on_val = score_split(run.config, reader, {NETWORK: network})
    mine = on_val["methods"][NETWORK]
    found["val_blocks"] = {key: mine[key] for key in ("score", "interval")}
    beyond = table["methods"][NETWORK]["score"]
    if mine["score"] is not None and beyond is not None:
        kind = f"{found['left_out']}s"
        names = ", ".join(map(str, found[kind]["test"]))
        say(
            f"evaluate: {table['score']} {beyond:.3f} in {names}, which the training left out; "
            f"{mine['score']:.3f} on val, in its own {kind}"
        )
    return found


def _fitted(
    run: Run, checkpoint: Checkpoint, months: Sequence[int]
) -> tuple[Checkpoint, Fitted, dict[str, Any] | None, str]:
    """The checkpoint and the baselines with their decisions, what the latter are, and what all were
    chosen on. Decisions of the checkpoint are kept. The others are chosen on val by its rule.
    """
    config, train, val = run.config, shard_uris(run.folder, "train"), shard_uris(run.folder, "val")
    fitted: Fitted = {}
    description = None
    if config.evaluate.wanted_baselines and not train:
        say(f"evaluate: {run.folder} has no split train to fit baselines on: the network is scored alone")
    elif config.evaluate.wanted_baselines:
        fitted, description = fit_baselines(
            train,
            val,
            config.evaluate,
            months=sorted({*months, checkpoint.months}),
            unlabelled=str(checkpoint.recipe.get("unlabelled", "ignore")),
            seed=config.seed,
        )
    if not val:
        note = " (the network uses those of its checkpoint)" if checkpoint.thresholds else ""
        return (
            checkpoint,
            fitted,
            description,
            f"nothing, since there is no val split: {DEFAULT_THRESHOLD}{note}",
        )
    rule = replace(DecisionRule.of(checkpoint.recipe), threshold=None)
    networks = {} if checkpoint.thresholds else networks_by_months(checkpoint)
    pixelwise = {
        f"{name} {number}": (name, number)
        for name, versions in fitted.items()
        for number in versions
        if name != MAJORITY
    }
    open_ones = {**networks, **{key: fitted[name][number] for key, (name, number) in pixelwise.items()}}
    buffer_m, overlap = config.rois.split.buffer_m, config.predict.overlap
    reader = open_split(run, "val", "")
    chosen = choose_decisions(reader, open_ones, rule, buffer_m=buffer_m, overlap=overlap)
    if networks:
        checkpoint = checkpoint.decided({int(name): chosen[name] for name in networks})
    for key, (name, number) in pixelwise.items():
        fitted[name][number] = replace(fitted[name][number], decision=chosen[key])
    return checkpoint, fitted, description, "val"


def _pictured(plans: Sequence[TilePlan]) -> list[TilePlan]:
    """The first tile of some ROIs, alternating between crops."""
    by_crop: dict[str, dict[str, TilePlan]] = defaultdict(dict)
    for plan in plans:
        by_crop[plan.crop].setdefault(plan.roi_id, plan)
    turns = zip_longest(*(rois.values() for rois in by_crop.values()))
    return [plan for turn in turns for plan in turn if plan is not None][:_PICTURES]
