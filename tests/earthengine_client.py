"""The real Earth Engine client, turned to a server of the tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import ee
import numpy as np
from google.auth.credentials import AnonymousCredentials

from cropray.grid import Grid

_connections: list[tuple[str, str]] = []


@contextmanager
def connected(url: str, project: str = "any") -> Iterator[None]:
    """The client of this process asks `url`, without retries; afterwards what it asked before."""
    _connections.append((url, project))
    # Its list of deprecated assets lies outside the server.
    with mock.patch("ee.deprecation._FetchDataCatalogStac", return_value={}):
        try:
            _connect(url, project)
            yield
        finally:
            _connections.pop()
            if _connections:
                _connect(*_connections[-1])
            else:
                ee.Reset()


def _connect(url: str, project: str) -> None:
    ee.Reset()
    ee.Initialize(AnonymousCredentials(), project=project, url=url)
    ee.data.setMaxRetries(0)


def pixels_of(image: Any, grid: Grid) -> np.ndarray:
    """A structured array (H, W) of an image, asked for as pixels."""
    a, b, c, d, e, f = grid.transform
    return pixels_on(image, grid.crs, (a, b, c, d, e, f), grid.shape)


def pixels_on(image: Any, crs: str, affine: tuple[float, ...], shape: tuple[int, int]) -> np.ndarray:
    names = ("scaleX", "shearX", "translateX", "shearY", "scaleY", "translateY")
    return ee.data.computePixels(
        {
            "expression": image,
            "fileFormat": "NUMPY_NDARRAY",
            "grid": {
                "dimensions": {"height": shape[0], "width": shape[1]},
                "affineTransform": dict(zip(names, affine, strict=True)),
                "crsCode": crs,
            },
        }
    )
