"""The STAC collection of a prediction: the items of its maps, and of the model that they are derived from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from typing import Any

import pystac
from pystac.utils import make_relative_href

from cropray.maps.products import COLLECTION, MODEL_ITEM, MapIdentity, collection_id
from cropray.maps.tables import ITEM
from cropray.models.checkpoint import WEIGHTS, Checkpoint
from cropray.storage import Folder
from cropray.tracking.documents import model_item


def publish_catalogue(
    output: Folder, names: Sequence[str], identity: MapIdentity, checkpoint: Checkpoint, model: Folder
) -> None:
    """Write collection.json and model.json beside the maps of these names, whose items exist.

    `model` is the folder of the checkpoint. All links are relative, so the folder of a run can move.
    """
    data = _model(checkpoint, identity, make_relative_href(f"{model.uri}/{WEIGHTS}", output.uri, True))
    output.write_text(MODEL_ITEM, json.dumps(data, indent=1, ensure_ascii=False))
    files = [f"{name}/{ITEM}" if name else ITEM for name in names]
    items = [pystac.Item.from_dict(json.loads(output.read_text(file))) for file in files]
    collection = pystac.Collection(
        id=collection_id(identity),
        title=identity.title,
        description=f"{identity.title}, as of {identity.settings.as_of}, by the model {identity.model}",
        extent=pystac.Extent.from_items(items),
        license="other",
    )
    for file in [*files, MODEL_ITEM]:
        collection.add_link(pystac.Link(pystac.RelType.ITEM, f"./{file}", pystac.MediaType.GEOJSON))
    shown = collection.to_dict(include_self_link=False, transform_hrefs=False)
    output.write_text(COLLECTION, json.dumps(shown, indent=1, ensure_ascii=False))


def _model(checkpoint: Checkpoint, identity: MapIdentity, weights: str) -> dict[str, Any]:
    """The item of the model, whose time is the end of its last training data, or else the as-of date."""
    known = date.fromisoformat(checkpoint.periods[-1][1]) if checkpoint.periods else identity.settings.as_of
    item = model_item(checkpoint, identity.model, datetime.combine(known, time(), UTC))
    own, stored = item["assets"].pop("model"), item["assets"]["weights"]
    stored |= {key: own[key] for key in ("bands", "mlm:artifact_type")}
    stored |= {"href": weights, "roles": [*own["roles"], *stored["roles"]]}
    stored["mlm:artifact_type"] = "safetensors"
    collection = {"rel": "collection", "href": f"./{COLLECTION}", "type": str(pystac.MediaType.JSON)}
    return item | {"collection": collection_id(identity), "links": [collection]}
