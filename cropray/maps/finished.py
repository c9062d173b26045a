"""The finished map of a run, with its files at hand, for what is made from it later."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cropray.errors import InputError
from cropray.figures.crops import class_names
from cropray.maps.catalogue import read_item
from cropray.maps.mosaic import CONFIDENCE, MAP, MONTHS, SCORES
from cropray.maps.strata import Units, class_index, mapped
from cropray.run import Run
from cropray.storage import Folder
from cropray.types import DoubleArray


@dataclass(frozen=True)
class FinishedMap:
    """The map of a run, and a local directory with its rasters."""

    folder: Folder
    directory: Path
    item: Mapping[str, Any]

    @property
    def path(self) -> str:
        return str(self.directory / MAP)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.item["properties"]["cropray:thresholds"])

    @property
    def names(self) -> list[str]:
        """Names of the classes, then of none of them."""
        return list(class_names(self.classes).values())

    @property
    def checksum(self) -> str:
        with (self.directory / MAP).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]

    def hectares(self, units: Units) -> DoubleArray:
        """Mapped hectares (U + 1, K) of the classes and of none of them."""
        return mapped(self.path, units)[1][:, class_index(self.classes) >= 0]


@contextmanager
def open_map(run: Run) -> Iterator[FinishedMap]:
    """The map of a run. Raises InputError if there is none, or one for each ROI."""
    name = run.config.predict.name
    folder = run.folder.child(f"maps/{name}")
    summary = run.summary("predict")
    if summary is None:
        raise InputError(f"{folder} holds no finished map. Run cropray predict --run {run.folder} first.")
    if [made["name"] for made in summary["maps"]] != [""]:
        raise InputError(
            f"{folder} holds {len(summary['maps'])} maps, one for each ROI. ROIs are places with parcels, so "
            "their hectares say nothing about a region. Map an area: cropray predict --area …"
        )
    with open_folder(folder) as source:
        yield source


@contextmanager
def open_folder(folder: Folder) -> Iterator[FinishedMap]:
    """The map in a folder."""
    item = read_item(folder)
    if folder.is_local:
        yield FinishedMap(folder, folder.local(), item)
        return
    with tempfile.TemporaryDirectory(prefix="cropray-") as directory:
        for file in (MAP, SCORES, CONFIDENCE, MONTHS):
            if folder.exists(file):
                (Path(directory) / file).write_bytes(folder.read_bytes(file))
        yield FinishedMap(folder, Path(directory), item)
