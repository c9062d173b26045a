"""The imagery source that the settings name."""

from __future__ import annotations

from cropray.config import Config
from cropray.imagery.source import ImagerySource
from cropray.types import InputError


def open_source(config: Config) -> ImagerySource:
    """The source of `source.kind`. Raises InputError where its settings are not complete."""
    match config.source.kind:
        case "simulated":
            from cropray.imagery.simulated import SimulatedSource

            return SimulatedSource(config.source.simulated)
        case "stac":
            from cropray.imagery.stac import StacSource

            return StacSource(config.source.stac)
        case "earthengine":
            raise InputError(
                "source.kind: earthengine is not there yet; use stac (any ItemCollection or API with "
                "Sentinel-2 L2A and calibrated Sentinel-1) or simulated (the built-in world)"
            )
