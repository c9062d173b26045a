"""The imagery source that the settings name."""

from __future__ import annotations

from cropray.config import Config
from cropray.imagery.memory import Seats
from cropray.imagery.quota import RequestQuota
from cropray.imagery.source import ImagerySource


def open_source(
    config: Config, quota: RequestQuota | None = None, seats: Seats | None = None
) -> ImagerySource:
    """The source of `source.kind`. Raises InputError where its settings are not complete.

    `quota` is what this process shares with others; a source that needs one has its own without.
    `seats` are what the threads of this process work on.
    """
    match config.source.kind:
        case "simulated":
            from cropray.imagery.simulated import SimulatedSource

            return SimulatedSource(config.source.simulated)
        case "stac":
            from cropray.imagery.stac import StacSource

            return StacSource(config.source.stac)
        case "earthengine":
            from cropray.imagery.earthengine import EarthEngineSource

            return EarthEngineSource(config.source.earthengine, quota, seats)
