"""Crop maps at least a month before harvest, from partly annotated parcels and Sentinel time series."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cropray.api.runs import composite, load_model, open_run, predict

__version__ = "0.1.0"
__all__ = ["__version__", "composite", "load_model", "open_run", "predict"]


def __getattr__(name: str) -> Any:
    """The faces for Python are imported when they are asked for: `import cropray` stays light."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cropray.api import runs

    return getattr(runs, name)
