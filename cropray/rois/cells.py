"""Square ROIs on a lattice, for parcels that cover the land: clusters of these would be one.

A cell is labelled by all parcels that touch it, so it has no crop and no harvest of its own. Blocks of cells
are split. Cells within the buffer of another split are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cropray.config.rois import RoisConfig
from cropray.errors import InputError
from cropray.rois.parcels import Parcels
from cropray.rois.provinces import provinces_of
from cropray.rois.shapes import parcels_crs, places_of
from cropray.rois.splits import SPLITS, apart, check_not_empty, deal, held_out
from cropray.rois.store import Dropped, identity
from cropray.types import IndexArray, Roi

_BLOCKS = 9  # enough for three splits
_SIDES = (16, 8, 4, 2, 1)


@dataclass(frozen=True)
class _Cells:
    """Places (K, 2) of cells on the lattice, counted from 0, 0, and (K, C) how many parcels of each crop."""

    places: npt.NDArray[np.int64]
    crops: tuple[str, ...]
    counts: npt.NDArray[np.int64]


def rois_of_cells(
    parcels: Parcels, config: RoisConfig, seed: int
) -> tuple[list[Roi], dict[str, set[str]], list[Dropped]]:
    """An ROI with its split for each cell that has the centroids of `min_samples` parcels.

    Also the crops of each ROI by roi_id, and what is left out. Corners are multiples of `cells.size_m`, so a
    cell keeps its roi_id when parcels change. Raises InputError if no cell is left, and for an empty split.
    """
    crs, size_m = parcels_crs(parcels.frame, config.crs), config.cells.size_m
    cells, dropped = _cells(parcels, crs, config)
    side, block_of = _blocks(cells.places, config.cells.block)
    blocks, first = np.unique(block_of, return_index=True)
    counts = np.zeros((len(blocks), len(cells.crops)))
    np.add.at(counts, block_of, cells.counts)
    names = [f"{x} {y}" for x, y in (cells.places[first] // side).tolist()]
    dealt = deal(names, counts, config.split, seed)[block_of]
    boxes = np.hstack([cells.places, cells.places + 1]) * size_m
    rois, crops = list[Roi](), dict[str, set[str]]()
    for row, province in enumerate(provinces_of(boxes, config, crs)):
        roi_id = identity("cell", [f"{crs} {size_m:g}".encode(), cells.places[row].astype("<i8").tobytes()])
        crops[roi_id] = {cells.crops[crop] for crop in np.flatnonzero(cells.counts[row])}
        min_x, min_y, max_x, max_y = boxes[row].tolist()
        rois.append(
            Roi(
                roi_id=roi_id,
                crop="",
                season="",
                province=province,
                country=config.country,
                split=SPLITS[dealt[row]],
                bounds=(min_x, min_y, max_x, max_y),
                crs=crs,
            )
        )
    held = held_out(rois, config.split)
    rois = [replace(roi, split="test") if own else roi for roi, own in zip(rois, held, strict=True)]
    kept, near = apart(rois, config.split)
    remedy = f"{len(rois)} cells lie in {len(blocks)} blocks of {side} x {side} cells. Lower rois.cells.block"
    check_not_empty(kept, config.split, remedy)
    reason = f"less than {config.split.buffer_m:g} m from a cell of another split"
    dropped += [Dropped("", "", "", f"cell {roi.roi_id}", reason) for roi in near]
    return kept, {roi.roi_id: crops[roi.roi_id] for roi in kept}, dropped


def _cells(parcels: Parcels, crs: str, config: RoisConfig) -> tuple[_Cells, list[Dropped]]:
    """The cells with enough parcels, and the parcels in others."""
    frame = parcels.frame.drop_duplicates("parcel_id", ignore_index=True)
    lattice = np.floor(places_of(frame, crs)[0] / config.cells.size_m)
    places, cell_of, sizes = np.unique(
        lattice.astype(np.int64), axis=0, return_inverse=True, return_counts=True
    )
    crops, crop_of = np.unique(frame["crop"].to_numpy(str), return_inverse=True)
    counts = np.zeros((len(places), len(crops)), np.int64)
    np.add.at(counts, (cell_of, crop_of), 1)
    full = sizes >= config.min_samples
    reason = f"fewer than {config.min_samples} parcels in its cell"
    if not full.any():
        raise InputError(f"every parcel has {reason}. Lower rois.min_samples or raise rois.cells.size_m.")
    few = frame[~full[cell_of]]
    rows = zip(few["file"], few["crop"], few["parcel_id"], strict=True)
    dropped = [Dropped(file, crop, "", f"parcel {parcel_id}", reason) for file, crop, parcel_id in rows]
    return _Cells(places[full], tuple(crops.tolist()), counts[full]), dropped


def _blocks(places: npt.NDArray[np.int64], side: int | None) -> tuple[int, IndexArray]:
    """The side of the blocks in cells, and (K,) the number of each cell's block."""
    for chosen in _SIDES if side is None else (side,):
        blocks, block_of = np.unique(places // chosen, axis=0, return_inverse=True)
        if len(blocks) >= _BLOCKS:
            break
    return chosen, block_of
