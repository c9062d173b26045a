"""Imagery: what every source offers, and how to open the configured one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from cropray.types import Composite, ImageRequest

if TYPE_CHECKING:
    from threading import Semaphore

    from cropray.config import Config
    from cropray.imagery.earthengine.quota import RequestQuota


@runtime_checkable
class ImagerySource(Protocol):
    """A source of Sentinel-1 and Sentinel-2 composites. Instances can be pickled and hold no open files."""

    def identity(self) -> dict[str, Any]:
        """JSON of everything that the pixels depend on. It is part of the recipe hash of every part.

        It has at least `kind` and `s1_quantity` ("gamma0", "sigma0", or "none" without Sentinel-1).
        """
        ...

    def composite(self, request: ImageRequest) -> Composite:
        """The composites of a request. A period without scenes is all invalid, which is no error.

        An acquisition counts once, and the radar orbits of a season are those of `orbits.choose_season`.
        Raises InputError for a scene of which the unit or offset is unknown, for more than
        `recipe.max_lost` scenes that are dead or impossible, for an impossible composite, and if the source
        lacks a map of `request.maps`.
        """
        ...


@runtime_checkable
class MeteredSource(ImagerySource, Protocol):
    """A source whose requests cost money or count against a quota."""

    def preflight(self, request: ImageRequest) -> None:
        """Send one minimal request. Raises InputError where the account or the settings are wrong."""
        ...

    def estimate(self, requests: Iterable[ImageRequest]) -> dict[str, Any]:
        """JSON of what these requests will cost. Sends nothing."""
        ...


def identity_of(source: ImagerySource, config: Config) -> dict[str, Any]:
    """The identity of a source that is read by these settings: without Sentinel-1, no `s1_quantity`."""
    without = {} if "s1" in config.composite.sensors else {"s1_quantity": "none"}
    return source.identity() | without


def open_source(
    config: Config, quota: RequestQuota | None = None, slots: Semaphore | None = None
) -> ImagerySource:
    """The source that `source.kind` names. Raises InputError where its settings are incomplete.

    `quota` limits the requests of all processes; without it, a metered source limits its own. Each calling
    thread holds one of `slots`, which a source may release while it waits for an answer.
    """
    match config.source.kind:
        case "simulated":
            from cropray.imagery.simulated import SimulatedSource

            return SimulatedSource(config.source.simulated)
        case "stac":
            from cropray.imagery.stac import StacSource

            stac = config.source.stac
            unread = {"s2", "s1"} - set(config.composite.sensors)
            plain = {name: type(getattr(stac, name))() for name in unread}  # whose items are not asked for
            return StacSource(stac.model_copy(update=plain))
        case "earthengine":
            from cropray.imagery.earthengine.source import EarthEngineSource

            return EarthEngineSource(config.source.earthengine, quota, slots)
