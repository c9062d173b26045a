"""The documents in a registered model's folder: its model card and its STAC item.

The templates beside this module hold their text. The card follows Mitchell et al. 2019, "Model Cards for
Model Reporting", doi:10.1145/3287560.3287596. The item has STAC's Machine Learning Model extension 1.4.0,
https://github.com/stac-extensions/mlm. It is valid for 1.5.0 too, which wants the dimension `bands` in inputs
and an artifact type only on the model's own asset.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from importlib.metadata import version as installed_version
from typing import Any

from jinja2 import Environment, PackageLoader

from cropray.bands import NODATA, S1_BANDS, S2_BANDS, Band
from cropray.models.checkpoint import WEIGHTS, Checkpoint
from cropray.models.normalisation import FixedNormalisation
from cropray.tracking.lineage import COMMIT

LONGEST = 5000
"""Characters of a version's description that MLflow's database holds."""

_EVALUATION = "\n## Measured on held-out land\n"
_LABELS = ("class_map", "land_cover", "truth")


def model_card(name: str, checkpoint: Checkpoint, facts: Mapping[str, Any], history: Sequence[Any]) -> str:
    """The card in Markdown. `facts` come from `lineage`; `history` has the epochs of the training."""
    config = facts["config"]
    paths = [config["labels"][kind]["path"] for kind in _LABELS if config["labels"][kind]] if config else []
    thresholds = zip(checkpoint.classes, checkpoint.thresholds or (), strict=False)
    return _render(
        "card.md",
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
    return before + mark + _render("evaluation.md", result=result) + rest


def description(card: str) -> str:
    """The card as the description of a version, cut at the end of a line if it is too long."""
    if len(card) <= LONGEST:
        return card
    more = "\n… the whole card is README.md of the model.\n"
    return card[: card.rfind("\n", 0, LONGEST - len(more))] + more


def model_item(checkpoint: Checkpoint, name: str, created: datetime) -> dict[str, Any]:
    """The STAC item of a model created at a time in UTC, as JSON. Its assets are files beside it.

    It has no geometry, because nobody knows where the model holds. Classes are not exclusive: the output is
    a probability for each.
    """
    # The extension wants a name that starts with a letter and ends with a letter or digit.
    plain = re.sub(r"[^a-zA-Z0-9_.\- ]", "_", name).strip("_.- ")
    quantity = checkpoint.s1_quantity
    radar = "no Sentinel-1" if quantity == "none" else f"Sentinel-1 {quantity} in dB"
    text = _render(
        "item.json",
        name=name,
        mlm_name=plain if re.match(r"[a-zA-Z].{2}", plain) else f"model {plain}".strip(),
        checkpoint=checkpoint,
        created=created.isoformat().replace("+00:00", "Z"),
        s1_bands=S1_BANDS,
        s2_bands=S2_BANDS,
        nodata=NODATA,
        parameters=checkpoint.network.count_parameters(),
        torch_version=installed_version("torch").split("+")[0],
        weights=WEIGHTS,
        inputs=[
            _input("s1", radar, checkpoint, S1_BANDS),
            _input("s2", "Sentinel-2 surface reflectance", checkpoint, S2_BANDS),
        ],
        classes=[
            {"value": value, "name": re.sub(r"[^a-zA-Z0-9_-]", "_", label), "title": label}
            for value, label in enumerate(checkpoint.classes)
        ],
    )
    return dict(json.loads(text))


def _render(template: str, **values: Any) -> str:
    # Neither Markdown nor JSON is escaped as HTML is.
    environment = Environment(loader=PackageLoader("cropray.tracking", ""), keep_trailing_newline=True)  # noqa: S701
    return environment.get_template(f"{template}.j2").render(**values)


def _epoch_of(checkpoint: Checkpoint, history: Sequence[Any]) -> Any:
    """The epoch of the checkpoint, if it was validated. None if it is unknown."""
    entries = (entry for entry in history if checkpoint.epoch and entry.get("epoch") == checkpoint.epoch)
    return next((entry for entry in entries if any((entry.get("val_classes") or {}).values())), None)


def _years(checkpoint: Checkpoint) -> str:
    """The years of the imagery, as the notice of Copernicus requires them."""
    if not checkpoint.periods:
        return "year unknown here"
    first = min(date.fromisoformat(start) for start, _ in checkpoint.periods)
    last = max(date.fromisoformat(end) for _, end in checkpoint.periods) - timedelta(days=1)
    return f"{first.year}" if first.year == last.year else f"{first.year}-{last.year}"


def _input(name: str, sensor: str, checkpoint: Checkpoint, bands: Sequence[Band]) -> dict[str, Any]:
    """What differs between the two inputs. Scaling is by band, for stored integers."""
    normalisation, names = checkpoint.normalisation, getattr(checkpoint, f"{name}_bands")
    bands = [band for band in bands if band.name in names]
    if isinstance(normalisation, FixedNormalisation):
        means, stds = getattr(normalisation, f"{name}_mean"), getattr(normalisation, f"{name}_std")
        scaling: list[dict[str, Any]] = [
            {"type": "z-score", "mean": mean / band.scale, "stddev": std / band.scale}
            for band, mean, std in zip(bands, means, stds, strict=True)
        ]
    else:  # a scheme that is not one formula per band is named instead
        scheme = f"{type(normalisation).__module__}:{type(normalisation).__name__}"
        scaling = [{"type": "processing", "format": "python", "expression": scheme}]
    return {
        "name": name,
        "sensor": sensor,
        "scale": f"{bands[0].scale:g}",
        "bands": list(names),
        "scaling": scaling,
    }
