"""What the ROIs are made from: fingerprints of the files that the settings name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import xxhash

from cropray.config.regions import RoisConfig
from cropray.rois.vectors import matching
from cropray.run import Inputs


def fingerprints(config: RoisConfig) -> Inputs:
    """One hash of the content of each path (or glob) that the settings name.

    One of which no file is there is left out: what was made of it stands, and who reads it says so.
    """
    if config.kind == "table":
        paths = [config.table]
    else:
        paths = [*(crop.path for crop in config.parcels), config.provinces.path, config.calendar.path]
    files = {path: matching(config.data_root, path) for path in paths if path}
    return {path: _content(found) for path, found in files.items() if found}


def _content(files: Iterable[Path]) -> str:
    """One hash of files with what lies beside them under their names, as a shapefile's .dbf and .prj."""
    found = {beside for file in files for beside in file.parent.iterdir() if beside.stem == file.stem}
    whole = xxhash.xxh3_64()
    for path in sorted(found):
        for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if part.is_file():
                whole.update(part.name.encode())
                with part.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        whole.update(block)
    return whole.hexdigest()
