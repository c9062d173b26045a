"""Versions of registered models: what is known of each, which is champion, and the scores of evaluations."""

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

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cropray.config import CHAMPION
from cropray.run import Run
from cropray.storage import Folder
from cropray.tracking.connection import open_existing, server_errors, tracking_uri
from cropray.tracking.documents import description, with_evaluation
from cropray.tracking.lineage import (
    CHECKPOINT,
    CREATED,
    EVALUATION,
    MODEL_ID,
    PARENT,
    PREFIX,
    WEIGHTS,
    checkpoint_id,
)
from cropray.tracking.registry import CARD, find_version, open_files, open_registry, versions
from cropray.tracking.runs import tracked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PROMOTION = f"{PREFIX}promotion"
"""Tag: why a version became champion, as JSON."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model. `evaluation` is None until `cropray evaluate` has scored it."""

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
    """All versions of all models in the registry, the newest first. Raises InputError without one."""
    client, uri = open_registry(run)
    with server_errors(uri):
        found = versions(client)
        aliases = {name: client.get_registered_model(name).aliases for name in {one.name for one in found}}
        return [_version(one, aliases[one.name]) for one in found]


def find(run: Run, reference: str) -> Version:
    """The version that a `models:/` reference names. Raises InputError with what exists instead."""
    client, uri = open_registry(run)
    with server_errors(uri):
        found = find_version(reference, client, uri)
        return _version(found, client.get_registered_model(found.name).aliases)


def set_champion(run: Run, candidate: Version, evidence: Mapping[str, Any]) -> dict[str, str]:
    """Record who promotes a version, when and why, then give it the alias `champion`; who and when."""
    client, uri = open_registry(run)
    # The user of the tracking server, or else of this machine.
    by = os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    signature = {"by": by, "at": _now()}
    with server_errors(uri):
        record = json.dumps({**evidence, **signature}, sort_keys=True)
        client.set_model_version_tag(candidate.name, candidate.number, PROMOTION, record)
        client.set_registered_model_alias(candidate.name, CHAMPION, candidate.number)
    return signature


def link_evaluation(run: Run, folder: Folder, result: Mapping[str, Any], shards: str) -> list[str]:
    """Record an evaluation with every version of the checkpoint in `folder`; their URIs.

    The scores go into the tag `cropray.evaluation`, the metrics of the logged model and its card. Nothing
    happens without a registry or such a version. `shards` is the fingerprint of the evaluated shards.
    """
    client = open_existing(run)
    if client is None:
        return []
    with server_errors(tracking_uri(run)):
        found = client.search_model_versions(f"tags.`{CHECKPOINT}` = '{checkpoint_id(folder)}'")
    if not found:
        return []
    with tracked(run, "evaluate") as tracker:
        row = result["methods"]["network"]
        record = {name: result[name] for name in ("scope", "score", "blocks", "pixels", "regions")}
        record |= {"value": row["score"], "interval": row["interval"], "shards": shards}
        record |= {"run": run.folder.uri, "mlflow_run": tracker.run_id, "at": _now()}
        for version in found:
            client.set_model_version_tag(version.name, version.version, EVALUATION, json.dumps(record))
            tracker.metrics(_scores(result), step=0, model_id=version.tags[MODEL_ID])
            _rewrite_card(run, client, version, result)
    return [f"models:/{version.name}/{version.version}" for version in found]


def table(rows: Sequence[Version]) -> str:
    """Versions as lines of text."""
    head = ("MODEL", "ALIASES", "CREATED", "SCORE ON TEST", "CHECKPOINT", "STARTED FROM")
    by_weights = {row.tags.get(WEIGHTS): row.uri for row in rows}
    shown = Table(*head, box=None, padding=(0, 2, 0, 0), header_style="")
    for row in rows:
        parent = by_weights.get(row.tags.get(PARENT)) or row.tags.get(f"{PREFIX}parent", "-")
        created, checkpoint = f"{row.created:%Y-%m-%d %H:%M}", row.tags.get(CHECKPOINT, "-")
        aliases = ", ".join(row.aliases) or "-"
        cells = (row.uri, aliases, created, _score(row.evaluation), checkpoint, parent)
        shown.add_row(*(Text(cell) for cell in cells))
    console = Console(width=1000, color_system=None)
    with console.capture() as captured:
        console.print(shown)
    return captured.get()


def page(version: Version) -> str:
    """One version as text: what is known of it as YAML, then its card."""
    known = yaml.safe_dump(version.to_json(), sort_keys=False, allow_unicode=True, width=100)
    return f"{known}\n{version.card}"


def _version(found: ModelVersion, aliases: Mapping[str, Any]) -> Version:
    tags = dict(found.tags)
    at = datetime.fromtimestamp(found.creation_timestamp / 1000, UTC).isoformat()
    created, number = datetime.fromisoformat(tags.pop(CREATED, at)), str(found.version)
    own = tuple(sorted(alias for alias, version in aliases.items() if str(version) == number))
    return Version(found.name, number, own, created, tags, found.description or "")


def _scores(result: Mapping[str, Any]) -> dict[str, float]:
    row = result["methods"]["network"]
    named = {f"test_{result['score']}": row["score"], "test_accuracy": row["accuracy"]}
    for scores in row["per_class"]:
        named |= {f"test_{key}/{scores['class']}": scores[key] for key in scores if key != "class"}
    return {name: float(value) for name, value in named.items() if isinstance(value, int | float)}


def _rewrite_card(run: Run, client: MlflowClient, version: ModelVersion, result: Mapping[str, Any]) -> None:
    files = open_files(run, client, version)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(files.download_artifacts(CARD, scratch))
        card = with_evaluation(path.read_text(), result)
        path.write_text(card)
        files.log_artifact(str(path))
    client.update_model_version(version.name, version.version, description(card))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _score(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "not evaluated"
    value, interval = evaluation["value"], evaluation["interval"]
    spread = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    return f"{evaluation['score']} {'undefined' if value is None else f'{value:.3f}'}{spread}"
