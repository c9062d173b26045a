"""What every source of imagery offers: composites, and its identity for the record."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from cropray.types import Composite, ImageRequest


@runtime_checkable
class ImagerySource(Protocol):
    """A source of Sentinel-1 and Sentinel-2 composites. Instances pickle and hold no open files."""

    def identity(self) -> dict[str, Any]:
        """JSON that names what the pixels depend on: it enters the recipe hash of every part.

        Holds at least `kind` and `s1_quantity` ("gamma0" or "sigma0").
        """
        ...

    def composite(self, request: ImageRequest) -> Composite:
        """The composites of a request; a period without any scene is all invalid, not an error.

        Raises InputError where the scenes cannot be used (units unknown, offset ambiguous, ...)
        and where `request.maps` names a map that the source does not offer.
        """
        ...


@runtime_checkable
class MeteredSource(ImagerySource, Protocol):
    """A source whose requests cost money or quota."""

    def preflight(self, request: ImageRequest) -> None:
        """Ask for next to nothing of a request. Raises InputError where account or settings are wrong."""
        ...

    def estimate(self, requests: Iterable[ImageRequest]) -> dict[str, Any]:
        """JSON: what these requests would take; nothing is sent."""
        ...
