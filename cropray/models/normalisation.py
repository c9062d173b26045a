"""Stored integers to the network's floats. A normalisation is fixed and travels in the checkpoint.

Integers are clipped, shifted and masked twice as fast as floats on a CPU. So means and limits are rounded to
stored integers (0.0001 of reflectance, 0.01 dB).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cropray.bands import NODATA, S1_BANDS, S1_NAMES, S2_BANDS, S2_NAMES
from cropray.errors import InputError

# Mean and standard deviation over all pixels and months of crops, grass, orchards and vines in Flanders
# (2018-08 to 2019-11) and Corsica (2021-09 to 2023-01), with equal weights of sites, covers and months, from
# the reference series of ESA WorldCereal; rounded. Order: `bands.S2_NAMES`, `bands.S1_NAMES`.
_S2_MEAN = (0.05, 0.08, 0.08, 0.13, 0.25, 0.30, 0.31, 0.33, 0.22, 0.14)
_S2_STD = (0.03, 0.04, 0.05, 0.05, 0.08, 0.10, 0.10, 0.11, 0.08, 0.07)
_S1_MEAN = (-9.5, -16.8)
_S1_STD = (2.7, 2.6)
_MAX = torch.iinfo(torch.int16).max
_IN_CACHE = 64 * 64 * 6 * 10  # values of a patch


@dataclass(frozen=True)
class Normalisation(ABC):
    """Keeps the validity; subclasses scale the values."""

    validity: ClassVar[bool] = True
    """Whether a network trained with it is given the validity beside the values."""

    def apply(self, s1_bcthw: Tensor, s2_bcthw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Float32 s1 and s2 of the same shapes, and their validity (B, 2, T, H, W), channel 0 s2, 1 s1.

        Inputs are int16 as stored, on any device. The validity is int16: 1 where every band of the sensor is
        valid, else 0.
        """
        B, _, *size = s2_bcthw.shape
        valid_b2thw = s2_bcthw.new_empty(B, 2, *size)
        # One patch, or as many small ones, stays in a core's cache. A graph that is exported has no loop.
        at_once = s2_bcthw.device.type != "cpu" or torch.compiler.is_compiling()
        n = max(1, _IN_CACHE // max(1, s2_bcthw[0].numel()))
        parts = [slice(None)] if at_once else [slice(first, first + n) for first in range(0, B, n)]
        floats = []
        sensors = (("s1", s1_bcthw, valid_b2thw[:, 1:]), ("s2", s2_bcthw, valid_b2thw[:, :1]))
        for sensor, stored, valid in sensors:
            x = torch.empty_like(stored, dtype=torch.float32)
            scratch = torch.empty_like(stored[parts[0]])
            for part in parts:
                values = (scratch if at_once else scratch[: len(stored[part])]).copy_(stored[part])
                # NODATA is the lowest int16. This is faster than comparing.
                torch.amin(values, dim=1, keepdim=True, out=valid[part])
                self._scale(sensor, values, valid[part].clamp_(max=NODATA + 1).sub_(NODATA), x[part])
            floats.append(x)
        return floats[0], floats[1], valid_b2thw

    @abstractmethod
    def _scale(self, sensor: str, x_bcthw: Tensor, valid_b1thw: Tensor, out: Tensor) -> None:
        """From stored values, which may be overwritten, and 1 or 0 (valid or not), both int16, to `out`."""

    def to_json(self) -> dict[str, Any]:
        return {"kind": _KIND_OF[type(self)], **asdict(self)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Normalisation:
        """Raises InputError for an unknown kind or for parameters that it does not have."""
        parameters = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "kind"}
        try:
            return NORMALISATIONS[data["kind"]](**parameters)
        except (KeyError, TypeError) as error:
            raise InputError(
                f"normalisation {data!r} is unknown; expected one of {', '.join(NORMALISATIONS)} with its "
                "parameters"
            ) from error


@dataclass(frozen=True)
class FixedNormalisation(Normalisation):
    """(x - mean) / std by band, in physical units, clipped to ± `clip`; 0 where invalid."""

    s2_mean: tuple[float, ...] = _S2_MEAN
    s2_std: tuple[float, ...] = _S2_STD
    s1_mean: tuple[float, ...] = _S1_MEAN
    s1_std: tuple[float, ...] = _S1_STD
    clip: float = 6.0

    def __post_init__(self) -> None:
        scales = [S2_BANDS[0].scale] * len(self.s2_std) + [S1_BANDS[0].scale] * len(self.s1_std)
        reach = max(self.clip * s / scale for s, scale in zip(self.s2_std + self.s1_std, scales, strict=True))
        if reach > _MAX:
            raise InputError(f"clip {self.clip} standard deviations exceeds the range of stored values")

    def _scale(self, sensor: str, x_bcthw: Tensor, valid_b1thw: Tensor, out: Tensor) -> None:
        # A trace must not leave its own tensors in the cache.
        limits = _limits.__wrapped__ if torch.compiler.is_compiling() else _limits
        low, high, middle, factor = limits(self, sensor, x_bcthw.device)
        torch.maximum(x_bcthw, low, out=x_bcthw)
        torch.minimum(x_bcthw, high, out=x_bcthw)
        out.copy_(x_bcthw.sub_(middle).mul_(valid_b1thw)).mul_(factor)


@dataclass(frozen=True)
class SeedNormalisation(Normalisation):
    """That of the published network, for its weights.

    Missing pixels become 0 first, in reflectance and even in dB. Reflectance is clipped to `unit_range`.
    Sentinel-1 is clipped to `s1_range_db`, scaled by minimum and maximum over both polarisations of each
    patch and month, and clipped to `unit_range`.
    """

    validity: ClassVar[bool] = False

    s1_range_db: tuple[float, float] = (-25.0, 10.0)
    unit_range: tuple[float, float] = (0.0001, 0.9999)

    def _scale(self, sensor: str, x_bcthw: Tensor, valid_b1thw: Tensor, out: Tensor) -> None:
        x_bcthw.mul_(valid_b1thw)
        if sensor == "s2":
            unit = S2_BANDS[0].scale
            out.copy_(x_bcthw.clamp_(*(round(limit / unit) for limit in self.unit_range))).mul_(unit)
            return
        db = x_bcthw.clamp_(*(round(limit / S1_BANDS[0].scale) for limit in self.s1_range_db))
        low, high = (extreme(db, dim=(1, 3, 4), keepdim=True) for extreme in (torch.amin, torch.amax))
        span = (high - low).clamp_(min=1)  # a constant month becomes 0
        out.copy_(db.sub_(low)).div_(span.float()).clamp_(*self.unit_range)


NORMALISATIONS: dict[str, type[Normalisation]] = {"fixed": FixedNormalisation, "seed": SeedNormalisation}
"""By the name that configurations and checkpoints use."""

_KIND_OF = {cls: kind for kind, cls in NORMALISATIONS.items()}


def make_normalisation(
    kind: str, s2_bands: Sequence[str], s1_bands: Sequence[str], clip: float = FixedNormalisation.clip
) -> Normalisation:
    """That of a name, for data sets that have some of the bands only."""
    if kind == "seed":
        return SeedNormalisation()
    s2, s1 = map(S2_NAMES.index, s2_bands), map(S1_NAMES.index, s1_bands)
    s2_mean, s2_std = zip(*((_S2_MEAN[i], _S2_STD[i]) for i in s2), strict=True)
    s1_mean, s1_std = zip(*((_S1_MEAN[i], _S1_STD[i]) for i in s1), strict=True)
    return FixedNormalisation(s2_mean, s2_std, s1_mean, s1_std, clip)


@lru_cache
def _limits(scheme: FixedNormalisation, sensor: str, device: torch.device) -> tuple[Tensor, ...]:
    """By band: the lowest, highest and mean stored integer, and the factor to standard deviations."""
    unit = (S1_BANDS if sensor == "s1" else S2_BANDS)[0].scale
    mean, std = (np.array(getattr(scheme, f"{sensor}_{name}")) for name in ("mean", "std"))
    middle, reach = mean / unit, scheme.clip * std / unit
    integers = [np.rint(x).clip(-_MAX, _MAX) for x in (middle - reach, middle + reach, middle)]
    arrays = [*(x.astype(np.int16) for x in integers), (unit / std).astype(np.float32)]
    return tuple(torch.from_numpy(x).to(device).view(1, -1, 1, 1, 1) for x in arrays)
