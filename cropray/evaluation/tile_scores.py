"""What evaluation and promotion share: tiles of a split as methods map them, counted by block."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cropray.config import Config
from cropray.errors import InputError
from cropray.evaluation.baselines import Method, Thresholds
from cropray.evaluation.metrics import Counts, Scope, confusion, scored_truth
from cropray.evaluation.mosaics import Tile, TilePlan, block_numbers, extents, read_tile
from cropray.models.checkpoint import Checkpoint, check_classes, check_inputs
from cropray.models.decision import decide
from cropray.shards.reader import ShardReader
from cropray.shards.schema import ShardMetadata
from cropray.types import UNLABELLED, ByteArray


@dataclass(frozen=True)
class ScoredTile:
    """The truth that counts (H, W), UNLABELLED where none is known, and the map (H, W) of each method."""

    plan: TilePlan
    tile: Tile
    truth_hw: ByteArray
    maps: dict[str, ByteArray]


def check_fit(checkpoint: Checkpoint, metadata: ShardMetadata, model: str, where: str) -> None:
    """Raises InputError where a model is of other classes, bands, backscatter or months than shards."""
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
            f"the model {model} was trained on the window {checkpoint.window}, the shards hold "
            f"{metadata.window}; export with the same window, or evaluate another model"
        )


def scope_of(config: Config, metadata: ShardMetadata) -> Scope:
    """What is known of the truth in these shards."""
    if metadata.has_truth:
        return "truth"
    return "class_map" if config.labels.class_map is not None else "annotated"


def scored_tiles(
    reader: ShardReader,
    plans: Sequence[TilePlan],
    methods: Mapping[str, Method],
    thresholds: Mapping[str, Thresholds],
    scope: Scope,
) -> Iterator[ScoredTile]:
    """Every tile as each method maps it with its own thresholds.

    A pixel that no sensor saw in any month has no truth: a map holds nodata there.
    """
    for plan in plans:
        tile = read_tile(reader, plan)
        truth_hw = scored_truth(scope, tile.label_hw, tile.truth_hw)
        truth_hw = np.where(tile.seen_hw, truth_hw, np.uint8(UNLABELLED))
        maps = {
            name: decide(method.probabilities(tile), thresholds[name]) for name, method in methods.items()
        }
        yield ScoredTile(plan, tile, truth_hw, maps)


def count_blocks(tiles: Iterable[ScoredTile], reader: ShardReader, buffer_m: float) -> dict[str, Counts]:
    """Confusion matrices (R, M, M) of the blocks of a reader's ROIs, by method.

    ROIs nearer than `buffer_m` are one block (`blocks.block_numbers`).
    """
    n_classes = len(reader.metadata.classes)
    block_of = block_numbers(extents(reader), buffer_m)
    counts: dict[str, dict[int, Counts]] = defaultdict(
        lambda: defaultdict(lambda: np.zeros((n_classes + 1, n_classes + 1), np.int64))
    )
    for scored in tiles:
        for name, predicted_hw in scored.maps.items():
            counts[name][block_of[scored.plan.roi_id]] += confusion(scored.truth_hw, predicted_hw, n_classes)
    return {name: np.stack(list(by_block.values())) for name, by_block in counts.items()}
