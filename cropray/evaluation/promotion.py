"""Promotes a candidate model to champion: it must not score worse on the same regions, or it is forced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cropray.config import CHAMPION
from cropray.errors import InputError
from cropray.evaluation.classifiers import Network
from cropray.evaluation.evaluate import check_fit, open_split, score_split
from cropray.evaluation.mosaics import MosaicTile
from cropray.evaluation.protocol import InputShift
from cropray.models.checkpoint import Checkpoint, load_checkpoint
from cropray.models.heads import with_head
from cropray.models.shift import shift_warning
from cropray.progress import say
from cropray.run import Run, Summary
from cropray.shards.file import fingerprint, shard_uris
from cropray.shards.reader import ShardReader
from cropray.tracking.registry import resolve_model
from cropray.tracking.versions import Version, find, list_versions, set_champion

_FORCE = "or promote it anyway, on record: --force REASON"


def promote(run: Run, reference: str = "", force: str = "") -> Summary:
    """Give a version the alias `champion`. The summary holds the evidence.

    The candidate must have been evaluated (`cropray evaluate`) and must not score worse than the champion on
    the run's val split, each with its own thresholds: the lower bound of the paired 95 % block-bootstrap
    interval of the difference must be above -`tracking.promotion_margin`. The first champion only needs the
    evaluation. With `force`, the reason for it, nothing is checked. Tags record who promoted it, when and
    why.

    `reference` is a `models:/` reference; if empty, `tracking.alias` of `tracking.model_name`. Raises
    InputError if the candidate does not pass, or if the two cannot be compared.
    """
    settings = run.config.tracking
    reference = reference or f"models:/{settings.model_name}@{settings.alias}"
    candidate = find(run, reference)
    champions = [version for version in list_versions(run) if CHAMPION in version.aliases]
    champion = next((version for version in champions if version.name == candidate.name), None)
    if champion is not None and champion.uri == candidate.uri:
        say(f"promote: {candidate.uri} is already the champion")
        return {"champion": candidate.uri, "before": champion.uri}
    evidence = {"forced": force} if force else _evidence(run, candidate, champion)
    before = champion and champion.uri
    record = set_champion(run, candidate, {"before": before, **evidence})
    return {"champion": candidate.uri, "before": before, **evidence, **record}


def not_worse(comparison: Mapping[str, Any], margin: float) -> bool:
    """Whether the lower bound of the difference (candidate minus champion) is above -margin."""
    bounds = comparison["interval"]
    return bounds is not None and bounds[0] > -margin


def compare(run: Run, candidate: tuple[str, Checkpoint], champion: tuple[str, Checkpoint]) -> dict[str, Any]:
    """Scores of two models, each given with its name, on the run's val split, and their paired difference.

    Raises InputError if one of them does not fit the shards, or if no pixel of val is known.
    """
    remedy = f"give a run that one of the two models was trained in (--run), {_FORCE}"
    reader = open_split(run, "val", remedy)
    for name, checkpoint in (candidate, champion):
        check_fit(checkpoint, reader.metadata, name, f"val, on which {name} is to be compared,")
    shift = InputShift(candidate[1])
    result = paired_scores(run, reader, {"candidate": candidate[1], "champion": champion[1]}, shift)
    if warning := shift_warning(*shift.counts, f"val, for {candidate[0]},"):
        say(f"promote: warning: {warning}")
    difference = result["differences"]["champion"]
    return {
        **{name: result[name] for name in ("scope", "score", "blocks", "pixels")},
        **{f"{name}_score": row["score"] for name, row in result["methods"].items()},
        "difference": difference["score"],
        "interval": difference["interval"],
        "draws": run.config.evaluate.bootstrap,
        "outside_training": shift.share,
        "val_shards": fingerprint(shard_uris(run.folder, "val")),
    }


def paired_scores(
    run: Run, reader: ShardReader, checkpoints: Mapping[str, Checkpoint], shift: InputShift | None = None
) -> dict[str, Any]:
    """Scores of models by name on the same shards, each by its own decision (`metrics.score_table`).

    `shift` is given the tiles, each once.
    """
    networks = {name: Network(checkpoint) for name, checkpoint in checkpoints.items()}
    first = next(iter(networks))

    def look(name: str, tile: MosaicTile, *_: Any) -> None:
        if name == first and shift is not None:
            shift.add(tile)

    return score_split(run.config, reader, networks, look)


def _evidence(run: Run, candidate: Version, champion: Version | None) -> dict[str, Any]:
    """Raises InputError if the evidence for the candidate is not sufficient."""
    if candidate.evaluation is None:
        raise InputError(
            f"{candidate.uri} was not evaluated yet: run cropray evaluate --run … --set "
            f"evaluate.model={candidate.uri}, {_FORCE}"
        )
    if champion is None:
        return {"evaluation": candidate.evaluation}
    margin = run.config.tracking.promotion_margin
    found = compare(run, _loaded(run, candidate), _loaded(run, champion))
    if found["interval"] is None:
        raise InputError(
            f"{candidate.uri} cannot be compared with {champion.uri}: an interval needs two blocks of "
            f"regions and bootstrap draws, but val has {found['blocks']} and evaluate.bootstrap is "
            f"{found['draws']}. Use a run with more regions in val, {_FORCE}"
        )
    if not not_worse(found, margin):
        low, high = found["interval"]
        raise InputError(
            f"{candidate.uri} may be worse than {champion.uri}: {found['score']} "
            f"{found['candidate_score']:.3f} against {found['champion_score']:.3f} on val. The difference is "
            f"{found['difference']:+.3f} with a 95 % interval of {low:+.3f} to {high:+.3f} over "
            f"{found['blocks']} blocks; its lower bound must be above -{margin:g} "
            f"(tracking.promotion_margin). Train a better model, {_FORCE}"
        )
    return {"evaluation": candidate.evaluation, "comparison": found, "margin": margin}


def _loaded(run: Run, version: Version) -> tuple[str, Checkpoint]:
    checkpoint = load_checkpoint(resolve_model(version.uri, run))
    return version.uri, with_head(checkpoint, None, version.uri)
