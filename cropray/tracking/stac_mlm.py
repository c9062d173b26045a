"""A model as a STAC item with the Machine Learning Model extension, so that catalogues can find it.

STAC 1.1 and https://github.com/stac-extensions/mlm 1.4.0; also valid for 1.5.0, which asks for the dimension
`bands` in inputs and allows an artifact type only on the model's own asset.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version as installed_version
from typing import Any

from cropray.bands import NODATA, S1_BANDS, S2_BANDS, Band
from cropray.models.checkpoint import WEIGHTS, Checkpoint
from cropray.models.normalisation import FixedNormalisation

_EXTENSIONS = (
    "https://stac-extensions.github.io/mlm/v1.4.0/schema.json",
    "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
)
_TASKS = ["semantic-segmentation"]
_FLOAT_BYTES = 4


def mlm_item(checkpoint: Checkpoint, name: str, created: datetime, description: str) -> dict[str, Any]:
    """The item of a model as JSON. Its assets are files beside it.

    It has no geometry, because nobody knows where the model holds. `created` is in UTC. Classes are not
    exclusive: the output is a probability for each.
    """
    network = checkpoint.network.build_empty()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    source = checkpoint.recipe.get("init")
    bands = [*_bands(S2_BANDS), *_bands(S1_BANDS)]
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(_EXTENSIONS),
        "id": name,
        "geometry": None,
        "properties": {
            "datetime": created.isoformat().replace("+00:00", "Z"),
            "description": description,
            "bands": bands,
            "mlm:name": _mlm_name(name),
            "mlm:architecture": "Dual 3-D U-Net",
            "mlm:tasks": _TASKS,
            "mlm:framework": "PyTorch",
            "mlm:framework_version": installed_version("torch").split("+")[0],
            "mlm:memory_size": parameters * _FLOAT_BYTES,
            "mlm:total_parameters": parameters,
            "mlm:pretrained": True,
            **({"mlm:pretrained_source": str(source)} if source else {}),
            "mlm:accelerator": None,
            "mlm:accelerator_constrained": False,
            "mlm:hyperparameters": checkpoint.recipe or {"stage": "unknown"},
            "mlm:input": [
                _input("s1", checkpoint, checkpoint.s1_bands, S1_BANDS),
                _input("s2", checkpoint, checkpoint.s2_bands, S2_BANDS),
            ],
            "mlm:output": [_output(checkpoint)],
        },
        "links": [],
        "assets": {
            "model": {
                "href": "./MLmodel",
                "title": "MLflow model",
                "type": "application/yaml",
                "roles": ["mlm:model"],
                "mlm:artifact_type": "mlflow",
                # STAC allows bands in properties only if an asset has some too.
                "bands": [{"name": band["name"]} for band in bands],
            },
            "weights": {
                "href": f"./artifacts/checkpoint/{WEIGHTS}",
                "title": "Weights",
                "type": "application/octet-stream; application=safetensors",
                "roles": ["mlm:weights"],
            },
        },
    }


def _mlm_name(name: str) -> str:
    """A name that the extension accepts: a letter first, a letter or digit last."""
    plain = re.sub(r"[^a-zA-Z0-9_.\- ]", "_", name).strip("_.- ")
    return plain if re.match(r"[a-zA-Z].{2}", plain) else f"model {plain}".strip()


def _bands(bands: Sequence[Band]) -> list[dict[str, Any]]:
    return [
        {
            "name": band.name,
            "data_type": "int16",
            "nodata": NODATA,
            "unit": "1" if band.unit == "reflectance" else band.unit,
            "raster:scale": band.scale,
            "raster:spatial_resolution": band.resolution_m,
        }
        for band in bands
    ]


def _input(name: str, checkpoint: Checkpoint, names: Sequence[str], bands: Sequence[Band]) -> dict[str, Any]:
    sensor = (
        "Sentinel-2 surface reflectance" if name == "s2" else f"Sentinel-1 {checkpoint.s1_quantity} in dB"
    )
    return {
        "name": name,
        "description": (
            f"{sensor}, {checkpoint.months} monthly composites, oldest first, as stored integers (physical "
            f"value = stored × {bands[0].scale:g}; {NODATA} without a valid view). The model applies the "
            "scaling below to the stored values; pixels without a view become 0."
        ),
        "bands": list(names),
        "input": {
            "shape": [-1, len(names), checkpoint.months, -1, -1],
            "dim_order": ["batch", "bands", "time", "height", "width"],
            "data_type": "int16",
        },
        "value_scaling": _scaling(name, checkpoint, bands),
        "resize_type": None,
    }


def _scaling(name: str, checkpoint: Checkpoint, bands: Sequence[Band]) -> list[dict[str, Any]]:
    """By band, for stored integers. A scheme that is not one formula per band is named instead."""
    normalisation = checkpoint.normalisation
    if not isinstance(normalisation, FixedNormalisation):
        scheme = f"{type(normalisation).__module__}:{type(normalisation).__name__}"
        return [{"type": "processing", "format": "python", "expression": scheme}]
    means = normalisation.s2_mean if name == "s2" else normalisation.s1_mean
    stds = normalisation.s2_std if name == "s2" else normalisation.s1_std
    return [
        {"type": "z-score", "mean": mean / band.scale, "stddev": std / band.scale}
        for band, mean, std in zip(bands, means, stds, strict=True)
    ]


def _output(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "name": "probabilities",
        "description": "Probability of each class at each pixel, by sigmoid: classes are not exclusive.",
        "tasks": _TASKS,
        "result": {
            "shape": [-1, len(checkpoint.classes), -1, -1],
            "dim_order": ["batch", "class", "height", "width"],
            "data_type": "float32",
        },
        "classification:classes": [
            {"value": value, "name": re.sub(r"[^a-zA-Z0-9_-]", "_", name), "title": name}
            for value, name in enumerate(checkpoint.classes)
        ],
        "post_processing_function": None,
    }
