"""The registered model as code: MLflow runs this script where the model is loaded.

It stands on its own: the network and the normalisation travel beside it, Ray does not.
"""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel

from cropray.models.checkpoint import load_checkpoint
from cropray.models.inference import Predictor, stored_inputs
from cropray.storage import Folder
from cropray.types import FloatArray

_BATCH = 16  # samples through the network at once: bounds memory, whatever is given


class CropModel(PythonModel):  # type: ignore[misc]  # MLflow's types are not followed: its base is Any
    """Probabilities (B, K, H, W) of stored integers: s1 (B, 2, T, H, W) and s2 (B, 10, T, H, W).

    Or of the columns s1 and s2 of shards, arrays (B,) of bytes. The parameter `metadata` may be the JSON
    that stands in a shard's Parquet schema; compact shards need it.
    """

    def load_context(self, context: Any) -> None:
        self.predictor = Predictor(load_checkpoint(Folder(context.artifacts["checkpoint"])))

    # It is a mapping of arrays, checked by the signature; but MLflow warns of any other hint.
    def predict(self, model_input: np.ndarray, params: dict[str, Any] | None = None) -> FloatArray:
        inputs: Any = model_input
        description = (params or {}).get("metadata", "")
        s1, s2 = stored_inputs(self.predictor.checkpoint, inputs, description)
        steps = [slice(start, start + _BATCH) for start in range(0, len(s1), _BATCH)]
        return np.concatenate([self.predictor.probabilities(s1[step], s2[step]) for step in steps])


mlflow.models.set_model(CropModel())
