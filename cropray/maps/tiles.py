"""One tile of a map: patches on a lattice of the whole map are predicted and blended.

All tiles share the lattice. A patch that crosses the border of two tiles is predicted for both from the
same pixels, so borders never show and the size of the tiles does not matter. Shape suffixes: N patches,
K classes, H rows, W columns, and those of `types`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

import numpy as np

from cropray.bands import NODATA as VALUE_NODATA
from cropray.grid import Grid, Window
from cropray.imagery import ImagerySource
from cropray.maps.observed import Observed, arrays_of, observe, observed_of
from cropray.models.blending import blended, patches_over
from cropray.models.inference import Predictor
from cropray.models.shift import outside
from cropray.shards.schema import quantise_composite
from cropray.types import (
    UNLABELLED,
    BoolArray,
    ByteArray,
    CompositeRecipe,
    ImageRequest,
    Period,
    Precision,
)

NODATA = UNLABELLED
"""Value of a class or percentage in a map outside the area, or without a valid view in any month."""


@dataclass(frozen=True)
class PredictionSettings:
    """The settings that all tiles of a map share. `size` and `overlap` are of patches, in pixels."""

    periods: tuple[Period, ...]
    as_of: date
    recipe: CompositeRecipe
    size: int = 64
    overlap: int = 16
    batch_size: int = 16
    sure: bool = False
    precision: Precision = "auto"

    def request(self, extent: Grid, window: Window, name: str) -> ImageRequest:
        """What a window of a map's grid needs of the imagery source."""
        return ImageRequest(
            grid=extent.window(window),
            extent=extent,
            periods=self.periods,
            recipe=self.recipe,
            not_after=self.as_of,
            name=name,
        )


class TileResult(NamedTuple):
    class_hw: ByteArray  # 0..K-1, BACKGROUND if no class reaches its threshold, or NODATA
    percent_khw: ByteArray  # score of each class, 0..100, or NODATA
    lost: tuple[str, ...] = ()  # scenes that could not be used, with the reason
    observed: Observed | None = None
    sure_hw: ByteArray | None = None  # as class_hw, and UNSURE where another class may be
    outside: tuple[int, int] = (0, 0)  # values outside those of the training, and all (`shift.outside`)


def encode_tile(result: TileResult) -> bytes:
    """A part of a map: the arrays of a tile as a compressed npz file."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"class_hw": result.class_hw, "percent_khw": result.percent_khw}
    arrays |= {"lost": np.array(result.lost, np.str_), "outside": np.array(result.outside, np.int64)}
    if result.observed is not None:
        arrays |= arrays_of(result.observed)
    if result.sure_hw is not None:
        arrays["sure_hw"] = result.sure_hw
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def decode_tile(data: bytes) -> TileResult:
    """The tile of `encode_tile`."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        lost = tuple(arrays["lost"].tolist())
        beyond, total = arrays["outside"].tolist()
        return TileResult(
            arrays["class_hw"],
            arrays["percent_khw"],
            lost,
            observed_of(arrays),
            arrays.get("sure_hw"),
            (beyond, total),
        )


def predict_tile(
    core: Window,
    wanted_hw: BoolArray,
    grid: Grid,
    source: ImagerySource,
    predictor: Predictor,
    settings: PredictionSettings,
) -> TileResult:
    """Classes and probabilities of the pixels of `core`, a window of the map's `grid`.

    `wanted_hw` (H, W of `core`) is True in the area. One request fetches the imagery of all patches
    that touch a wanted pixel.
    """
    n_classes = len(predictor.checkpoint.classes)
    class_hw = np.full(wanted_hw.shape, NODATA, np.uint8)
    percent_khw = np.full((n_classes, *wanted_hw.shape), NODATA, np.uint8)
    patches = [
        patch
        for patch in patches_over(core, grid.shape, settings.size, settings.overlap)
        if wanted_hw[patch.shared(core).within(core).slices].any()
    ]
    if not patches:
        return TileResult(class_hw, percent_khw)
    hull = Window.around(patches)
    composite = source.composite(settings.request(grid, hull, f"{core.row:07d}-{core.col:07d}"))
    seen_hw = np.any(composite.s2_valid_thw | composite.s1_valid_thw, axis=0)
    observed = observe(composite, hull, core, wanted_hw, grid)
    s1_cthw, s2_cthw = quantise_composite(
        composite, predictor.checkpoint.s1_bands, predictor.checkpoint.s2_bands
    )
    lost = composite.lost
    del composite
    windows = [patch.within(hull) for patch in patches]
    blended_khw = blended(
        predictor, s1_cthw, s2_cthw, windows, settings.overlap, settings.batch_size, grid.window(hull)
    )

    decision = predictor.decision(len(settings.periods))
    shared = hull.shared(core)
    in_core, in_hull = shared.within(core).slices, shared.within(hull).slices
    shown_hw = wanted_hw[in_core] & seen_hw[in_hull]
    inside = [np.where(shown_hw, cube[:, :, *in_hull], VALUE_NODATA) for cube in (s1_cthw, s2_cthw)]
    beyond = outside(inside[0], inside[1], predictor.checkpoint.input_range)
    probabilities_khw = np.nan_to_num(blended_khw[:, *in_hull])
    percent = np.rint(probabilities_khw * 100).astype(np.uint8)
    class_hw[in_core] = np.where(shown_hw, decision.decide(probabilities_khw), NODATA)
    percent_khw[:, *in_core] = np.where(shown_hw, percent, NODATA)
    sure_hw = None
    if settings.sure:
        sure_hw = np.full(wanted_hw.shape, NODATA, np.uint8)
        sure_hw[in_core] = np.where(shown_hw, decision.decide(probabilities_khw, unsure=True), NODATA)
    return TileResult(class_hw, percent_khw, lost, observed, sure_hw, beyond)
