"""From candidate to champion: measured against the champion on the same regions, or forced and recorded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from cropray.errors import InputError
from cropray.evaluation.baselines import Network
from cropray.evaluation.metrics import tables
from cropray.evaluation.mosaics import plan_tiles
from cropray.evaluation.tile_scores import ScoredTile, check_fit, count_blocks, scope_of, scored_tiles
from cropray.models.checkpoint import Checkpoint, load_checkpoint
from cropray.models.decision import Predictor
from cropray.models.heads import with_head
from cropray.progress import Progress, progress, say
from cropray.run import Run, Summary
from cropray.shards.file import fingerprint, shard_uris
from cropray.shards.reader import ShardReader
from cropray.tracking.registry import resolve_model
from cropray.tracking.versions import Version, crown, find, find_champion

_BATCH = 32
_FORCE = "or promote it all the same, on record: --force REASON"


def promote(run: Run, reference: str = "", force: str = "") -> Summary:
    """Give a version the alias `champion`; the summary says against what it stood.

    It must have been evaluated (`cropray evaluate`), and may not be worse than the champion on the
    run's split val: with whole blocks of regions drawn again, the same for both, the lower bound of
    the 95 % interval of the difference in score must lie above -`tracking.promotion_margin`. Both maps
    are made with their own thresholds. The first champion needs the evaluation only. With `force`,
    the reason for it, nothing is asked; who, when and why is kept in the version's tags either way.

    `reference` is a `models:/` one; empty is `tracking.alias` of `tracking.model_name`. Raises
    InputError where the candidate does not pass, or where the two cannot be compared.
    """
    settings = run.config.tracking
    reference = reference or f"models:/{settings.model_name}@{settings.alias}"
    candidate = find(run, reference)
    champion = find_champion(run, candidate)
    if champion is not None and champion.uri == candidate.uri:
        say(f"promote: {candidate.uri} is the champion already")
        return {"champion": candidate.uri, "before": champion.uri}
    evidence = {"forced": force} if force else _evidence(run, candidate, champion)
    before = None if champion is None else champion.uri
    told = crown(run, candidate, {"before": before, **evidence})
    return {"champion": candidate.uri, "before": before, **evidence, **told}


def not_worse(comparison: Mapping[str, Any], margin: float) -> bool:
    """Whether the lower bound of the difference (candidate minus champion) lies above -margin."""
    spread = comparison["interval"]
    return spread is not None and spread[0] > -margin


def compare(run: Run, candidate: tuple[str, Checkpoint], champion: tuple[str, Checkpoint]) -> dict[str, Any]:
    """Scores of two models, each with its name, on the run's split val, and their paired difference.

    Raises InputError where one does not fit the other or the shards, or where nothing is known of val.
    """
    uris = shard_uris(run.folder, "val")
    if not uris:
        raise InputError(
            f"{run.folder} has no shards of the split val, on which candidate and champion are compared: "
            f"give the run in which one of them was trained (--run), {_FORCE}"
        )
    _check_alike(candidate, champion)
    reader = ShardReader(uris, batch_size=_BATCH, shuffle=False)
    check_fit(candidate[1], reader.metadata, candidate[0], "the split val")
    result = paired_scores(run, reader, {"candidate": candidate[1], "champion": champion[1]})
    return {
        "scope": result["scope"],
        "score": result["score"],
        "candidate_score": result["methods"]["candidate"]["score"],
        "champion_score": result["methods"]["champion"]["score"],
        "difference": result["differences"]["champion"]["score"],
        "interval": result["differences"]["champion"]["interval"],
        "blocks": result["blocks"],
        "pixels": result["pixels"],
        "draws": run.config.evaluate.bootstrap,
        "val_shards": fingerprint(uris),
    }


def paired_scores(run: Run, reader: ShardReader, checkpoints: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """Scores of models by name on the same shards, each with its own thresholds, and how far the first is
    ahead of the others: `scoring.tables`. Raises InputError where nothing is known of the shards.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictors = {name: Predictor(checkpoint, device) for name, checkpoint in checkpoints.items()}
    methods = {name: Network(predictor) for name, predictor in predictors.items()}
    thresholds = {name: predictor.thresholds for name, predictor in predictors.items()}
    plans, scope = plan_tiles(reader), scope_of(run.config, reader.metadata)
    with progress("score", len(plans)) as bar:
        tiles = scored_tiles(reader, plans, methods, thresholds, scope)
        counts = count_blocks(_told(tiles, bar), reader, run.config.rois.split.buffer_m)
    if not any(blocks.any() for blocks in counts.values()):
        raise InputError(f"no pixel of the shards of {run.folder} is known: nothing to compare on; {_FORCE}")
    draws, seed = run.config.evaluate.bootstrap, run.config.seed
    return tables(scope, reader.metadata.classes, counts, draws=draws, seed=seed)


def _evidence(run: Run, candidate: Version, champion: Version | None) -> dict[str, Any]:
    """What speaks for the candidate. Raises InputError where it is not enough."""
    if candidate.evaluation is None:
        raise InputError(
            f"{candidate.uri} was not evaluated yet: cropray evaluate --run … --set "
            f"evaluate.model={candidate.uri}, {_FORCE}"
        )
    if champion is None:
        return {"evaluation": candidate.evaluation}
    margin = run.config.tracking.promotion_margin
    comparison = compare(run, _loaded(run, candidate), _loaded(run, champion))
    if not not_worse(comparison, margin):
        raise InputError(_refusal(candidate, champion, comparison, margin))
    return {"evaluation": candidate.evaluation, "comparison": comparison, "margin": margin}


def _refusal(candidate: Version, champion: Version, found: Mapping[str, Any], margin: float) -> str:
    spread = found["interval"]
    if spread is None:
        return (
            f"{candidate.uri} cannot be told from {champion.uri}: val has {found['blocks']} block of regions "
            f"and evaluate.bootstrap is {found['draws']}; an interval needs two blocks and draws. Use a run "
            f"with more regions in val, {_FORCE}"
        )
    return (
        f"{candidate.uri} may be worse than {champion.uri}: {found['score']} {found['candidate_score']:.3f} "
        f"against {found['champion_score']:.3f} on val, difference {found['difference']:+.3f} with a 95 % "
        f"interval of {spread[0]:+.3f} to {spread[1]:+.3f} over {found['blocks']} blocks; its lower bound "
        f"must lie above -{margin:g} (tracking.promotion_margin). Train a better one, {_FORCE}"
    )


def _loaded(run: Run, version: Version) -> tuple[str, Checkpoint]:
    checkpoint = load_checkpoint(resolve_model(version.uri, run))
    return version.uri, with_head(checkpoint, None, version.uri)


def _check_alike(candidate: tuple[str, Checkpoint], champion: tuple[str, Checkpoint]) -> None:
    for name in ("classes", "s2_bands", "s1_bands", "s1_quantity", "window"):
        mine, theirs = getattr(candidate[1], name), getattr(champion[1], name)
        if mine != theirs:
            raise InputError(
                f"{candidate[0]} and the champion {champion[0]} cannot be compared on the same data: {name} "
                f"is {_short(mine)} and {_short(theirs)}; {_FORCE}"
            )


def _told(tiles: Iterable[ScoredTile], bar: Progress) -> Iterator[ScoredTile]:
    for scored in tiles:
        yield scored
        bar.advance()


def _short(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
