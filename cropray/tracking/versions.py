"""Versions of registered models: what is known of each, who is champion, and the scores of evaluations."""

from __future__ import annotations

import getpass
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cropray.config import CHAMPION
from cropray.errors import InputError
from cropray.run import Run
from cropray.storage import Folder
from cropray.tracking.card import description, with_evaluation
from cropray.tracking.connection import server_errors, shown
from cropray.tracking.lineage import CHECKPOINT, EVALUATION, MODEL_ID, PARENT, PREFIX, WEIGHTS, checkpoint_id
from cropray.tracking.registry import CARD, find_version, registered_model, search_versions, versions
from cropray.tracking.runs import (
    Tracker,
    metric_name,
    open_existing,
    tracked,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PROMOTION = f"{PREFIX}promotion"
"""Tag: what spoke for a champion, or why it was forced, as JSON."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model; `evaluation` is None until `cropray evaluate` measured it."""

    name: str
    number: str
    aliases: tuple[str, ...]
    created: datetime
    tags: dict[str, str]
    card: str

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.number}"

    @property
    def evaluation(self) -> dict[str, Any] | None:
        text = self.tags.get(EVALUATION)
        return None if text is None else dict(json.loads(text))

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.uri,
            "aliases": list(self.aliases),
            "created": self.created.isoformat(timespec="seconds"),
            "evaluation": self.evaluation,
            "promotion": json.loads(self.tags.get(PROMOTION, "null")),
            "tags": {key: self.tags[key] for key in sorted(self.tags.keys() - {EVALUATION, PROMOTION})},
        }


def list_versions(run: Run) -> list[Version]:
    """All versions of all models of the registry, the newest first. Raises InputError without one."""
    client, uri = _registry(run)
    with server_errors(uri):
        models, page = [], client.search_registered_models(max_results=100)
        models += page
        while page.token:
            page = client.search_registered_models(max_results=100, page_token=page.token)
            models += page
        return [_version(found, model.aliases) for model in models for found in versions(client, model.name)]


def find(run: Run, reference: str) -> Version:
    """The version of a `models:/` reference. Raises InputError that says what there is."""
    client, uri = _registry(run)
    with server_errors(uri):
        found = find_version(reference, client, uri)
        return _version(found, client.get_registered_model(found.name).aliases)


def find_champion(run: Run, candidate: Version) -> Version | None:
    """The champion among the versions of the candidate's model, None where there is none yet."""
    client, uri = _registry(run)
    with server_errors(uri):
        model = registered_model(candidate.name, client)
        number = None if model is None else model.aliases.get(CHAMPION)
        if model is None or number is None:
            return None
        return _version(client.get_model_version(candidate.name, number), model.aliases)


def crown(run: Run, candidate: Version, evidence: Mapping[str, Any]) -> dict[str, str]:
    """Record who promotes it, when and why, then give it the alias `champion`; the record."""
    client, uri = _registry(run)
    told = {"by": _user(), "at": datetime.now(UTC).isoformat(timespec="seconds")}
    with server_errors(uri):
        record = json.dumps({**evidence, **told}, sort_keys=True)
        client.set_model_version_tag(candidate.name, candidate.number, PROMOTION, record)
        client.set_registered_model_alias(candidate.name, CHAMPION, candidate.number)
    return told


def link_evaluation(run: Run, folder: Folder, result: Mapping[str, Any], shards: str) -> list[str]:
    """Give the figures of an evaluation to every version of the checkpoint in `folder`; their URIs.

    They go into the tag `cropray.evaluation`, the metrics of the logged model and its card. Without a
    registry, and without such a version, nothing is done. `shards` is the fingerprint of those that it
    was measured on. Doing it again changes nothing but the time.
    """
    client = open_existing(run)
    if client is None:
        return []
    with server_errors(tracking_uri(run)):
        found = search_versions(client, f"tags.`{CHECKPOINT}` = '{checkpoint_id(folder)}'")
    if not found:
        return []
    with tracked(run, "evaluate") as tracker:
        row = result["methods"]["network"]
        record = {name: result[name] for name in ("scope", "score", "blocks", "pixels", "regions")} | {
            "value": row["score"],
            "interval": row["interval"],
            "shards": shards,
            "run": run.folder.uri,
            "mlflow_run": tracker.run_id,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        for version in found:
            client.set_model_version_tag(version.name, version.version, EVALUATION, json.dumps(record))
            _log_figures(tracker, version, _figures(result))
            _rewrite_card(client, version, result)
    return [f"models:/{version.name}/{version.version}" for version in found]


def table(rows: Sequence[Version]) -> str:
    """Versions as lines for a person."""
    head = ("MODEL", "ALIASES", "CREATED", "SCORE ON TEST", "CHECKPOINT", "STARTED FROM")
    by_weights = {row.tags.get(WEIGHTS): row.uri for row in rows}
    lines = [head] + [
        (
            row.uri,
            ", ".join(row.aliases) or "-",
            f"{row.created:%Y-%m-%d %H:%M}",
            _score(row.evaluation),
            row.tags.get(CHECKPOINT, "-"),
            by_weights.get(row.tags.get(PARENT)) or row.tags.get(f"{PREFIX}parent", "-"),
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n"
        for line in lines
    )


def page(version: Version) -> str:
    """One version for a person: its tags and its card."""
    data = version.to_json()
    lines = [
        ("model", version.uri),
        ("aliases", ", ".join(version.aliases) or "none"),
        ("created", data["created"]),
        ("evaluation", _score(version.evaluation)),
        ("promotion", version.tags.get(PROMOTION, "never")),
        *((key.removeprefix(PREFIX), value) for key, value in data["tags"].items()),
    ]
    width = max(len(key) for key, _ in lines)
    return "".join(f"{key.ljust(width)}  {value}\n" for key, value in lines) + f"\n{version.card}"


def _registry(run: Run) -> tuple[MlflowClient, str]:
    client, uri = open_existing(run), tracking_uri(run)
    if client is None:
        raise InputError(
            f"there is no registry at {shown(uri)} yet: give the folder of a run with a trained model "
            "(--run), or set tracking.uri to an MLflow server"
        )
    return client, uri


def _version(found: ModelVersion, aliases: Mapping[str, Any]) -> Version:
    return Version(
        found.name,
        str(found.version),
        tuple(sorted(alias for alias, number in aliases.items() if str(number) == str(found.version))),
        datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        dict(found.tags),
        found.description or "",
    )


def _figures(result: Mapping[str, Any]) -> dict[str, float]:
    row = result["methods"]["network"]
    named = {f"test_{result['score']}": row["score"], "test_accuracy": row["accuracy"]}
    for figures in row["per_class"]:
        named |= {f"test_{key}/{figures['class']}": figures[key] for key in figures if key != "class"}
    return {name: float(value) for name, value in named.items() if value is not None}


def _log_figures(tracker: Tracker, version: ModelVersion, figures: Mapping[str, float]) -> None:
    for name, value in figures.items():
        tracker.client.log_metric(tracker.run_id, metric_name(name), value, model_id=version.tags[MODEL_ID])


def _rewrite_card(client: MlflowClient, version: ModelVersion, result: Mapping[str, Any]) -> None:
    from mlflow.artifacts import download_artifacts

    source = client.get_model_version_download_uri(version.name, version.version)
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(
            download_artifacts(f"{source}/{CARD}", dst_path=scratch, tracking_uri=client.tracking_uri)
        )
        card = with_evaluation(local.read_text(), result)
        changed = Path(scratch) / "changed" / CARD
        changed.parent.mkdir()
        changed.write_text(card)
        client.log_model_artifact(version.tags[MODEL_ID], str(changed))
    client.update_model_version(version.name, version.version, description(card))


def _score(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "not evaluated"
    value, spread = evaluation["value"], evaluation["interval"]
    between = f" ({spread[0]:.3f} to {spread[1]:.3f})" if spread else ""
    return f"{evaluation['score']} {'undefined' if value is None else f'{value:.3f}'}{between}"


def _user() -> str:
    """Who is known to the tracking server, else to this machine."""
    return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
