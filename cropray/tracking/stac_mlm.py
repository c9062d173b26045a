"""A model as a STAC item with the Machine Learning Model extension, so that catalogues can find it.

https://github.com/stac-extensions/mlm, version 1.4.0; inputs name their dimension `bands`, as 1.5 wants.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version as installed_version
from typing import Any

import pystac

from cropray.bands import NODATA, S1_BANDS, S2_BANDS, Band
from cropray.models.checkpoint import WEIGHTS, Checkpoint
from cropray.models.normalisation import FixedNormalisation

_MLM = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"
_RASTER = "https://stac-extensions.github.io/raster/v2.0.0/schema.json"
_CLASSIFICATION = "https://stac-extensions.github.io/classification/v2.0.0/schema.json"
_NAME = re.compile(r"[^a-zA-Z0-9_.\- ]")
_FLOAT_BYTES = 4


def mlm_item(checkpoint: Checkpoint, name: str, created: datetime, description: str) -> dict[str, Any]:
    """The item of a model as JSON; its assets lie beside it.

    It has no geometry: nobody knows for which land it holds. Classes are not exclusive; the output is
    a probability for each of them.
    """
    network = checkpoint.network.build_empty()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    source = checkpoint.recipe.get("init") or None
    item = pystac.Item(
        id=_NAME.sub("_", name),
        geometry=None,
        bbox=None,
        datetime=created,
        properties={
            "description": description,
            "bands": [*_bands(S2_BANDS), *_bands(S1_BANDS)],
            "mlm:name": _NAME.sub("_", name),
            "mlm:architecture": "Dual 3-D U-Net",
            "mlm:tasks": ["semantic-segmentation"],
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
        stac_extensions=[_MLM, _RASTER, _CLASSIFICATION],
    )
    item.add_asset("model", _asset("./MLmodel", "MLflow model", "mlflow", "application/yaml", "mlm:model"))
    weights = _asset(
        f"./artifacts/checkpoint/{WEIGHTS}",
        "Weights",
        "safetensors",
        "application/octet-stream; application=safetensors",
        "mlm:weights",
    )
    item.add_asset("weights", weights)
    return item.to_dict(include_self_link=False)


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
            f"{sensor}, {checkpoint.months} monthly composites, oldest first, as stored integers "
            f"(physical value = stored × {bands[0].scale:g}; {NODATA} where there is no valid view). "
            "The model itself applies the scaling below, on stored values; pixels without a view become 0."
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
    """By band, of stored integers; a scheme that is no formula of one band is named instead."""
    normalisation = checkpoint.normalisation
    if not isinstance(normalisation, FixedNormalisation):
        kind = type(normalisation)
        return [
            {"type": "processing", "format": "python", "expression": f"{kind.__module__}:{kind.__name__}"}
        ]
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
        "tasks": ["semantic-segmentation"],
        "result": {
            "shape": [-1, len(checkpoint.classes), -1, -1],
            "dim_order": ["batch", "class", "height", "width"],
            "data_type": "float32",
        },
        "classification:classes": [
            {"value": value, "name": _NAME.sub("_", name).replace(" ", "_").replace(".", "_"), "title": name}
            for value, name in enumerate(checkpoint.classes)
        ],
        "post_processing_function": None,
    }


def _asset(href: str, title: str, artifact_type: str, media_type: str, role: str) -> pystac.Asset:
    return pystac.Asset(
        href, title, media_type=media_type, roles=[role], extra_fields={"mlm:artifact_type": artifact_type}
    )
