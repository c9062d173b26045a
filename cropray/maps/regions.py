"""Fields where nobody has a file of them: regions of a map whose pixels have similar scores.

The segmentation is that of Felzenszwalb and Huttenlocher, Efficient graph-based image segmentation,
International Journal of Computer Vision 59 (2004), as scikit-image has it. Shape suffixes: K classes,
H rows, W columns.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cropray.errors import InputError
from cropray.maps.mosaic import SCORES
from cropray.maps.tiles import NODATA
from cropray.rasters import outlines, read_grid, read_window

if TYPE_CHECKING:
    import geopandas as gpd

AUTO = "auto"
"""Value of `predict.fields` for regions in the place of a file."""

_BLOCK = 1024  # pixels a side: about 250 MB for eight classes
# Best of the values tried on the simulated world, by overlap with its fields (docs/fields.md). The median
# takes noise away and, unlike the usual Gaussian, leaves no strips of mixed scores along the edges of fields.
_SCALE, _MEDIAN, _LEAST = 2, 3, 100
_BEYOND = 2.0  # of pixels without data: no score is near it, so that they are regions of their own


def check_installed() -> None:
    """Raises InputError if scikit-image, which is optional, is missing."""
    if importlib.util.find_spec("skimage") is None:
        raise InputError(
            f"predict.fields={AUTO} needs scikit-image. Install it: pip install 'cropray[fields]'. "
            "Or give a file of fields."
        )


def find_regions(directory: Path) -> gpd.GeoDataFrame:
    """The regions of a map in its directory, with the columns of `fields.read_fields`, in the map's CRS.

    A region has 100 pixels or more, but where pixels without data cut it. Regions end at lines 1,024 pixels
    apart, since the map is read block by block: memory grows with their number alone.
    """
    import geopandas as gpd
    from scipy.ndimage import median_filter
    from skimage.segmentation import felzenszwalb

    path = str(directory / SCORES)
    grid, shapes = read_grid(path), []
    for block in grid.blocks(_BLOCK):
        percent_khw = read_window(path, block)
        unseen_hw = percent_khw[0] == NODATA
        if unseen_hw.all():
            continue
        smooth_khw = median_filter(percent_khw, size=(1, _MEDIAN, _MEDIAN)) / 100
        scores_hwk = np.moveaxis(np.where(unseen_hw, _BEYOND, smooth_khw), 0, -1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got image with third dimension", RuntimeWarning)  # classes
            region_hw = felzenszwalb(scores_hwk, scale=_SCALE, sigma=0, min_size=_LEAST, channel_axis=-1)
        shapes += outlines(np.where(unseen_hw, 0, region_hw + 1).astype(np.int32), grid.window(block))
    numbers = [str(number) for number in range(1, len(shapes) + 1)]
    return gpd.GeoDataFrame({"field": numbers, "declared": ""}, geometry=shapes, crs=grid.crs)
