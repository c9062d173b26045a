"""The registered model as code: MLflow runs this script where the model is loaded.

It stands on its own: the network and the normalisation travel beside it, Ray does not.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel

from cropray.errors import InputError
from cropray.models.checkpoint import load_checkpoint
from cropray.models.inference import Predictor, stored_inputs
from cropray.storage import Folder
from cropray.tracking.model_inputs import from_geotiffs, from_xarray
from cropray.types import ByteArray, FloatArray

_OUTPUTS = ("probabilities", "class", "sure")
_BATCH = 16  # samples through the network at once: bounds memory, whatever is given


class CropModel(PythonModel):  # type: ignore[misc]  # MLflow's types are not followed: its base is Any
    """Probabilities (B, K, H, W), or classes (B, H, W), of s1 (B, 2, T, H, W) and s2 (B, 10, T, H, W).

    Inputs are int16 as stored, or floats in dB and reflectance with NaN where nothing was seen, or the
    columns s1 and s2 of shards, arrays (B,) of bytes. The parameter `output` is "probabilities" or "class":
    the index of the class by the thresholds, 254 for none of the classes; or "sure": the same, and 253 where
    it may be another. The parameter `metadata` may be
    the JSON that stands in a shard's Parquet schema; compact shards need it.
    """

    def load_context(self, context: Any) -> None:
        checkpoint = load_checkpoint(Folder(context.artifacts["checkpoint"]))
        self.predictor = Predictor(checkpoint)
        self.from_geotiffs = partial(from_geotiffs, checkpoint)
        self.from_xarray = partial(from_xarray, checkpoint)

    # It is a mapping of arrays, checked by the signature; but MLflow warns of any other hint.
    def predict(
        self, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> FloatArray | ByteArray:
        inputs: Any = model_input
        options = {"metadata": "", "output": "probabilities"} | (params or {})
        try:
            if options["output"] not in _OUTPUTS:
                raise InputError(f"output is {options['output']!r}; expected one of {', '.join(_OUTPUTS)}")
            s1, s2 = stored_inputs(self.predictor.checkpoint, inputs, options["metadata"])
            decision = self.predictor.decision(s1.shape[2])
            if options["output"] == "sure" and not decision.quantiles:
                raise InputError('the model does not know how sure it is; ask for output "class"')
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        steps = [slice(start, start + _BATCH) for start in range(0, len(s1), _BATCH)]
        values = np.concatenate([self.predictor.probabilities(s1[step], s2[step]) for step in steps])
        if options["output"] == "probabilities":
            return values
        return decision.decide(values, unsure=options["output"] == "sure")


mlflow.models.set_model(CropModel())
