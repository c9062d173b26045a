"""The registered model as code: MLflow runs this script where the model is loaded.

It stands on its own: the network and the normalisation travel beside it, Ray does not.
"""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel

from cropray.models.checkpoint import load_checkpoint
from cropray.models.predictor import Predictor
from cropray.storage import Folder
from cropray.types import FloatArray


class CropModel(PythonModel):  # type: ignore[misc]  # MLflow's types are not followed: its base is Any
    """Probabilities (B, K, H, W) of stored integers: s1 (B, 2, T, H, W) and s2 (B, 10, T, H, W)."""

    def load_context(self, context: Any) -> None:
        self.predictor = Predictor(load_checkpoint(Folder(context.artifacts["checkpoint"])))

    # It is a mapping of arrays, checked by the signature; but MLflow warns of any other hint.
    def predict(self, model_input: np.ndarray) -> FloatArray:
        s1, s2 = (np.asarray(model_input[name], dtype=np.int16) for name in ("s1", "s2"))
        return self.predictor.probabilities(s1, s2)


mlflow.models.set_model(CropModel())
