"""A finished map from Python: its rasters, tables and picture."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cropray.api.cubes import classes_raster, raster
from cropray.errors import InputError
from cropray.figures.crops import class_names, colour_table, hexadecimal
from cropray.figures.crops import shown as plain_name
from cropray.grid import Grid
from cropray.maps.catalogue import read_item
from cropray.maps.field_files import PARQUET
from cropray.maps.mosaic import CONFIDENCE, MAP, SCORES
from cropray.maps.tables import AREAS_TABLE
from cropray.rasters import read_physical, read_reduced
from cropray.storage import Folder
from cropray.types import BACKGROUND, UNLABELLED

if TYPE_CHECKING:
    import geopandas as gpd
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes

_PLOT_PIXELS = 2000


@dataclass(frozen=True)
class Map:
    """The files of a map's folder, which docs/maps.md lists."""

    folder: Folder

    def __repr__(self) -> str:
        return f"Map({self.folder.uri!r}, as of {self.item['properties'].get('cropray:as_of', 'unknown')})"

    @cached_property
    def item(self) -> dict[str, Any]:
        """The STAC item. Raises InputError if the folder has no finished map."""
        return dict(read_item(self.folder))

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.item["properties"]["cropray:thresholds"])

    @property
    def crops(self) -> xr.DataArray:
        """The class (y, x) of each pixel, as its index in `classes`, 254 for none of them, 255 for nodata."""
        values, grid = self._whole(MAP)
        class_hw = np.where(np.isnan(values[0]), UNLABELLED, values[0]).astype(np.uint8)
        return classes_raster(class_hw, grid, self.classes, "crops")

    @property
    def scores(self) -> xr.DataArray:
        """Calibrated scores (class, y, x), 0 to 1. Raises InputError if none were written."""
        values, grid = self._whole(SCORES)
        return raster(values, grid, ("class",), **{"class": list(self.classes)}).rename("scores")

    @property
    def confidence(self) -> xr.DataArray:
        """The score (y, x) of what is mapped, 0 to 1."""
        values, grid = self._whole(CONFIDENCE)
        return raster(values[0], grid).rename("confidence")

    @property
    def areas(self) -> pd.DataFrame:
        """Hectares by unit and class: mapped ones, and estimates where there are any (areas.csv)."""
        import pandas as pd

        return pd.read_csv(io.BytesIO(self.folder.read_bytes(AREAS_TABLE)))

    @property
    def fields(self) -> gpd.GeoDataFrame:
        """The fields with their crops. Raises InputError for a map that was made without predict.fields."""
        import geopandas as gpd

        if not self.folder.exists(PARQUET):
            raise InputError(
                f"{self.folder} has no fields. Predict with predict.fields=FILE, such as a cadastre."
            )
        return gpd.read_parquet(io.BytesIO(self.folder.read_bytes(PARQUET)))

    @property
    def report(self) -> str:
        """The address of the map's page."""
        return self.folder.path("report.html")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the map with its legend, from an overview if it is large. Returns the axes."""
        import matplotlib.pyplot as plt
        from matplotlib.colors import BoundaryNorm, ListedColormap
        from matplotlib.patches import Patch
        from matplotlib.ticker import MaxNLocator

        with self._file(MAP) as path:
            values, grid = read_reduced(path, _PLOT_PIXELS)
        table, names = colour_table(self.classes), class_names(self.classes)
        codes = [*range(len(self.classes)), BACKGROUND]
        ax = ax or plt.gca()
        left, bottom, right, top = grid.bounds
        colours = ListedColormap([hexadecimal(table[code]) for code in codes])
        shown = np.ma.masked_equal(values[0], UNLABELLED)
        norm = BoundaryNorm([-0.5, *(code + 0.5 for code in codes)], len(codes))
        ax.imshow(shown, cmap=colours, norm=norm, extent=(left, right, bottom, top), interpolation="nearest")
        sizes = {code: int((shown == code).sum()) for code in codes}
        largest = sorted(
            (code for code in codes if sizes[code]), key=lambda code: (code == BACKGROUND, -sizes[code])
        )
        handles = [Patch(color=hexadecimal(table[code]), label=plain_name(names[code])) for code in largest]
        ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0, frameon=False)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(4))
        ax.ticklabel_format(style="plain", useOffset=False)
        as_of = self.item["properties"].get("cropray:as_of", "")
        ax.set(xlabel=f"x (m, {grid.crs})", ylabel="y (m)", title=f"As of {as_of}")
        return ax

    def _whole(self, name: str) -> tuple[Any, Grid]:
        with self._file(name) as path:
            return read_physical(path)

    @contextmanager
    def _file(self, name: str) -> Iterator[str]:
        """A local path of a file. Raises InputError if the map has none of that name."""
        if not self.folder.exists(name):
            raise InputError(f"{self.folder} has no {name}. docs/maps.md says what makes it.")
        if self.folder.is_local:
            yield str(self.folder.local(name))
            return
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / name
            path.write_bytes(self.folder.read_bytes(name))
            yield str(path)
