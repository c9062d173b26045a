"""The model card: what a model is for, what it was made from, how good it is, and where it ends.

After Mitchell et al. 2019, "Model Cards for Model Reporting", doi:10.1145/3287560.3287596.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

from cropray.models.checkpoint import Checkpoint
from cropray.tracking.lineage import COMMIT

LONGEST = 5000
"""Characters of a version's description that MLflow's database holds."""

_TEST = "\n## Measured on held-out land\n"
_NOT_YET = "\nNot yet: `cropray evaluate` writes it here.\n"
_SENTINEL = (
    "Contains modified Copernicus Sentinel data [{years}]: free, full and open under Regulation (EU) No "
    "1159/2013, with this notice."
)
_EUCROPMAP = (
    "EUCROPMAP (d'Andrimont et al. 2021, doi:10.1016/j.rse.2021.112708; European Commission, JRC): CC BY "
    "4.0, name the source."
)
_WORLDCOVER = (
    "ESA WorldCover 2021 (© ESA WorldCover project, contains modified Copernicus Sentinel data): CC BY 4.0."
)


def model_card(name: str, checkpoint: Checkpoint, facts: Mapping[str, Any], history: Sequence[Any]) -> str:
    """The card in Markdown. `facts` are of `lineage`, `history` the epochs of the training, if known."""
    parts = [
        f"# {name}\n",
        _use(checkpoint),
        _inputs(name, checkpoint),
        _data(checkpoint, facts),
        _val(checkpoint, history),
        _TEST + _NOT_YET,
        _limits(checkpoint),
        _licences(checkpoint, facts),
    ]
    return "".join(parts)


def with_evaluation(card: str, result: Mapping[str, Any]) -> str:
    """The card with the figures of an evaluation (evaluation.json) in their place."""
    before, mark, after = card.partition(_TEST)
    if not mark:
        return card
    rest = after[after.find("\n## ") :] if "\n## " in after else ""
    return before + mark + _measured(result) + rest


def description(card: str) -> str:
    """The card as the description of a version, cut at a line where it is too long."""
    if len(card) <= LONGEST:
        return card
    more = "\n… the whole card is README.md of the model.\n"
    return card[: card.rfind("\n", 0, LONGEST - len(more))] + more


def _use(checkpoint: Checkpoint) -> str:
    return (
        "\n## Intended use\n\n"
        f"Maps of {', '.join(checkpoint.classes)} by pixel of 10 m, from {checkpoint.months} monthly "
        f"composites of Sentinel-1 and Sentinel-2, {_until(checkpoint.window)}. For statistics and maps of "
        "regions like those it was trained on. Not for decisions about single fields or their owners.\n"
    )


def _until(window: Mapping[str, Any]) -> str:
    """When the last month ends: `WindowConfig`."""
    if window["anchor"] == "as_of":
        return "the last of which ends on the as-of date"
    lead = window["lead_months"]
    before = f"{lead} month{'s' * (lead > 1)} before the harvest starts" if lead else "as the harvest starts"
    return f"the last of which ends {before}"


def _inputs(name: str, checkpoint: Checkpoint) -> str:
    return (
        "\n## Input and output\n\n"
        f"`s1`: int16 (samples, 2, {checkpoint.months}, H, W), {checkpoint.s1_quantity} in 0.01 dB, "
        f"{', '.join(checkpoint.s1_bands)}. `s2`: int16 (samples, 10, {checkpoint.months}, H, W), surface "
        f"reflectance / 0.0001, {', '.join(checkpoint.s2_bands)}. -32768 where there is no valid view; H and "
        "W multiples of 16; months oldest first. Output: probabilities float32 (samples, classes, H, W). "
        f"Thresholds: {_thresholds(checkpoint)}.\n\n"
        "```python\n"
        "import mlflow  # MLFLOW_TRACKING_URI says where the registry is\n"
        "import pyarrow.parquet as pq\n\n"
        f'model = mlflow.pyfunc.load_model("models:/{name}@champion")\n'
        'model.predict({"s1": s1, "s2": s2})  # arrays\n'
        'rows = pq.read_table("00000.parquet", columns=["s1", "s2"])  # a shard\n'
        "model.predict(\n"
        '    {name: rows[name].to_numpy(zero_copy_only=False) for name in ("s1", "s2")},\n'
        '    params={"metadata": rows.schema.metadata[b"cropray"].decode()},\n'
        ")\n```\n"
    )


def _thresholds(checkpoint: Checkpoint) -> str:
    chosen = checkpoint.thresholds or ()
    named = zip(checkpoint.classes, chosen, strict=False)
    return ", ".join(f"{name} {value:.2f}" for name, value in named) or "none chosen (0.5)"


def _data(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> str:
    recipe, shards, git = checkpoint.recipe, facts["shards"] or {}, facts["git"]
    samples = ", ".join(
        f"{len(files)} shard{'s' * (len(files) != 1)} of {split}" for split, files in shards.items()
    )
    lines = [
        f"Data fingerprint {checkpoint.data_fingerprint or 'not known'}"
        + (f" ({samples})" if samples else ""),
        f"Unlabelled pixels in the loss: {recipe.get('unlabelled', 'not known')}",
        f"Trained: {recipe.get('stage', 'not known')}, {recipe.get('epochs', '?')} epochs at most",
    ]
    if facts["parent"]:
        parent = facts["parent"]
        weights = f" (weights {parent['weights_xxh3']})" if parent["weights_xxh3"] else ""
        lines.append(f"Started from {parent['reference']}{weights}")
    commit = (
        f"commit {git['commit'][:12]}{' with changes' if git['dirty'] else ''}"
        if git
        else f"commit not known: no checkout, nor {COMMIT}"
    )
    lines.append(f"cropray {checkpoint.code_version}, {commit}")
    return "\n## Training data and recipe\n\n" + "".join(f"- {line}\n" for line in lines)


def _val(checkpoint: Checkpoint, history: Sequence[Any]) -> str:
    head = "\n## While training, on the split val\n\n"
    entry = _epoch_of(checkpoint, history)
    if entry is None:
        return head + "Not known.\n"
    rows = [
        f"| {name} | {figures['average_precision']:.3f} | {figures['f1']:.3f} | {figures['pixels']} |\n"
        for name, figures in entry["val_classes"].items()
        if figures
    ]
    return (
        head + "| class | average precision | F1 | pixels |\n|---|---|---|---|\n" + "".join(rows) + "\n"
        "Epoch and thresholds were chosen on these pixels, so this is no estimate of accuracy.\n"
    )


def _epoch_of(checkpoint: Checkpoint, history: Sequence[Any]) -> Any:
    """The epoch that the checkpoint is of: that of its thresholds; None where there is none."""
    for entry in reversed(history):
        figures = [(entry.get("val_classes") or {}).get(name) for name in checkpoint.classes]
        pairs = zip(figures, checkpoint.thresholds or (), strict=False)
        if any(figures) and all(figure is None or figure["threshold"] == chosen for figure, chosen in pairs):
            return entry
    return None


def _measured(result: Mapping[str, Any]) -> str:
    row = result["methods"]["network"]
    spread = row["interval"]
    between = f" (95 % interval {spread[0]:.3f} to {spread[1]:.3f})" if spread else ""
    columns = [key for key in ("precision", "recall", "f1", "iou", "support") if key in row["per_class"][0]]
    table = [f"| class | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}\n"]
    for figures in row["per_class"]:
        cells = [f"{figures[key]:.3f}" if key != "support" else str(figures[key]) for key in columns]
        table.append(f"| {figures['class']} | {' | '.join(cells)} |\n")
    others = [
        f"{name} {other['score']:.3f}"
        for name, other in result["methods"].items()
        if name != "network" and other["score"] is not None
    ]
    score = "not defined" if row["score"] is None else f"{row['score']:.3f}"
    return (
        f"\n{result['score']} {score}{between} over {result['blocks']} independent blocks of regions of the "
        f"test split, {result['pixels']} pixels whose truth is known ({result['scope']})"
        + (f"; on the same pixels: {', '.join(others)}" if others else "")
        + ".\n\n"
        + "".join(table)
    )


def _limits(checkpoint: Checkpoint) -> str:
    lines = [
        "It knows the land, the season and the sensors that it was trained on; elsewhere measure first.",
        "Scores are not calibrated probabilities; a pixel below all thresholds is none of the classes.",
        "A month without a clear view is told to the network as such, and costs accuracy."
        if checkpoint.normalisation.validity
        else "Missing pixels look like the value 0 to the network: clouds cost accuracy.",
        "It does not tell fields apart.",
    ]
    return "\n## Limits\n\n" + "".join(f"- {line}\n" for line in lines)


def _licences(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> str:
    config, sentinel = facts["config"], _SENTINEL.format(years=_years(checkpoint))
    lines = [
        "Weights: whoever trained them owns them and says here how they may be used; the licence of the "
        "code does not cover them.",
        "Code (cropray, a part of which travels with the weights): Apache-2.0.",
    ]
    if config is None:
        lines.append(f"The run that made it is not known here. If from Sentinel imagery: {sentinel}")
    elif config["source"]["kind"] == "simulated":
        lines.append("Trained on cropray's simulated world: no imagery of third parties.")
    else:
        labels = config["labels"]
        paths = " ".join(
            labels[name]["path"] for name in ("class_map", "land_cover", "truth") if labels[name]
        )
        lines.append(sentinel)
        lines += [_EUCROPMAP] if "eucropmap" in paths.lower() else []
        lines += [_WORLDCOVER] if "land_cover" in paths.lower() or "worldcover" in paths.lower() else []
        lines += ["Parcels: as their owner licensed them to the run."] if labels["parcels"] else []
    return "\n## Licences\n\n" + "".join(f"- {line}\n" for line in lines)


def _years(checkpoint: Checkpoint) -> str:
    """The years of the imagery, as the notice of Copernicus wants them."""
    if not checkpoint.periods:
        return "year not known here"
    first = min(date.fromisoformat(start) for start, _ in checkpoint.periods)
    last = max(date.fromisoformat(end) for _, end in checkpoint.periods) - timedelta(days=1)
    return f"{first.year}" if first.year == last.year else f"{first.year}-{last.year}"
