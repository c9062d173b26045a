"""The model card: what a model is for, what it was made from, how good it is, and its limits.

After Mitchell et al. 2019, "Model Cards for Model Reporting", doi:10.1145/3287560.3287596. Its text is in
`card.md.j2` and `evaluation.md.j2`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

from jinja2 import Environment, PackageLoader

from cropray.models.checkpoint import Checkpoint
from cropray.tracking.lineage import COMMIT

LONGEST = 5000
"""Characters of a version's description that MLflow's database holds."""

_EVALUATION = "\n## Measured on held-out land\n"
_LABELS = ("class_map", "land_cover", "truth")


def model_card(name: str, checkpoint: Checkpoint, facts: Mapping[str, Any], history: Sequence[Any]) -> str:
    """The card in Markdown. `facts` come from `lineage`, `history` are the epochs of the training, if known."""
    config = facts["config"]
    paths = [config["labels"][kind]["path"] for kind in _LABELS if config["labels"][kind]] if config else []
    thresholds = zip(checkpoint.classes, checkpoint.thresholds or (), strict=False)
    return _render(
        "card",
        name=name,
        checkpoint=checkpoint,
        facts=facts,
        epoch=_epoch_of(checkpoint, history),
        thresholds=[f"{label} {value:.2f}" for label, value in thresholds],
        years=_years(checkpoint),
        label_paths=" ".join(paths).lower(),
        commit_variable=COMMIT,
    )


def with_evaluation(card: str, result: Mapping[str, Any]) -> str:
    """The card with the scores of an evaluation (evaluation.json) in their place."""
    before, mark, after = card.partition(_EVALUATION)
    if not mark:
        return card
    rest = after[after.find("\n## ") :] if "\n## " in after else ""
    return before + mark + _render("evaluation", result=result) + rest


def description(card: str) -> str:
    """The card as the description of a version, cut at the end of a line if it is too long."""
    if len(card) <= LONGEST:
        return card
    more = "\n… the whole card is README.md of the model.\n"
    return card[: card.rfind("\n", 0, LONGEST - len(more))] + more


def _render(template: str, **values: Any) -> str:
    # Markdown, so nothing is escaped.
    environment = Environment(loader=PackageLoader("cropray.tracking", ""), keep_trailing_newline=True)  # noqa: S701
    return environment.get_template(f"{template}.md.j2").render(**values)


def _epoch_of(checkpoint: Checkpoint, history: Sequence[Any]) -> Any:
    """The epoch of the checkpoint, which has the same thresholds. None if it is unknown."""
    for entry in reversed(history):
        scores = [(entry.get("val_classes") or {}).get(name) for name in checkpoint.classes]
        pairs = zip(scores, checkpoint.thresholds or (), strict=False)
        if any(scores) and all(score is None or score["threshold"] == chosen for score, chosen in pairs):
            return entry
    return None


def _years(checkpoint: Checkpoint) -> str:
    """The years of the imagery, as the notice of Copernicus requires them."""
    if not checkpoint.periods:
        return "year unknown here"
    first = min(date.fromisoformat(start) for start, _ in checkpoint.periods)
    last = max(date.fromisoformat(end) for _, end in checkpoint.periods) - timedelta(days=1)
    return f"{first.year}" if first.year == last.year else f"{first.year}-{last.year}"
