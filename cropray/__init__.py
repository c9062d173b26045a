"""Crop maps at least a month before harvest, from partly annotated parcels and Sentinel time series."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "composite", "load_model", "open_run", "predict"]


def __getattr__(name: str) -> Any:
    """The faces for Python are imported when they are asked for: `import cropray` stays light.

    By name, since the registered model takes along all that the package imports.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("cropray.api.runs"), name)
