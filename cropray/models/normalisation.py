"""Stored integers to the network's floats. A normalisation is fixed and travels in the checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from cropray.bands import NODATA, S1_BANDS, S2_BANDS, Band
from cropray.types import InputError

# Mean and standard deviation over all pixels and months of crops, grass, orchards and vines in
# Flanders (2018-08 to 2019-11) and Corsica (2021-09 to 2023-01), every site, cover and month with
# equal weight, from the reference series of ESA WorldCereal; rounded. Order: `bands.S2_NAMES`,
# `bands.S1_NAMES`.
_S2_MEAN = (0.05, 0.08, 0.08, 0.13, 0.25, 0.30, 0.31, 0.33, 0.22, 0.14)
_S2_STD = (0.03, 0.04, 0.05, 0.05, 0.08, 0.10, 0.10, 0.11, 0.08, 0.07)
_S1_MEAN = (-9.5, -16.8)
_S1_STD = (2.7, 2.6)


@dataclass(frozen=True)
class Normalisation(ABC):
    """Base: decodes the stored integers and keeps the validity; subclasses scale."""

    def apply(self, s1_bcthw: Tensor, s2_bcthw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Float32 s1, s2 of the same shapes, and valid (B, 2, T, H, W), channel 0 s2, 1 s1.

        Inputs are int16 as stored, on any device. A pixel is valid where every band of the sensor is.
        """
        valid_s1_b1thw = s1_bcthw.amin(dim=1, keepdim=True) != NODATA  # the lowest int16 there is
        valid_s2_b1thw = s2_bcthw.amin(dim=1, keepdim=True) != NODATA
        s1 = self._scaled_s1(s1_bcthw.float(), valid_s1_b1thw.float())
        s2 = self._scaled_s2(s2_bcthw.float(), valid_s2_b1thw.float())
        return s1, s2, torch.cat((valid_s2_b1thw, valid_s1_b1thw), dim=1)

    # Both are given stored values as floats, which they may overwrite, and 1 or 0 for valid or not.
    # Operations of floats in place: mixed types and copies cost several times more on a CPU.
    @abstractmethod
    def _scaled_s1(self, x_bcthw: Tensor, valid_b1thw: Tensor) -> Tensor: ...

    @abstractmethod
    def _scaled_s2(self, x_bcthw: Tensor, valid_b1thw: Tensor) -> Tensor: ...

    def to_json(self) -> dict[str, Any]:
        return {"kind": _KIND_OF[type(self)], **asdict(self)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Normalisation:
        """Raises InputError for a kind that is not known or parameters that do not fit it."""
        parameters = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "kind"}
        try:
            return NORMALISATIONS[data["kind"]](**parameters)
        except (KeyError, TypeError) as error:
            raise InputError(
                f"normalisation {data!r} is not known; wanted one of {', '.join(NORMALISATIONS)} "
                "with its parameters"
            ) from error


@dataclass(frozen=True)
class FixedNormalisation(Normalisation):
    """(x - mean) / std by band, in physical units, clipped to ± `clip`; 0 where not valid."""

    s2_mean: tuple[float, ...] = _S2_MEAN
    s2_std: tuple[float, ...] = _S2_STD
    s1_mean: tuple[float, ...] = _S1_MEAN
    s1_std: tuple[float, ...] = _S1_STD
    clip: float = 6.0

    def _scaled_s1(self, x_bcthw: Tensor, valid_b1thw: Tensor) -> Tensor:
        return self._standardised(x_bcthw, valid_b1thw, S1_BANDS, self.s1_mean, self.s1_std)

    def _scaled_s2(self, x_bcthw: Tensor, valid_b1thw: Tensor) -> Tensor:
        return self._standardised(x_bcthw, valid_b1thw, S2_BANDS, self.s2_mean, self.s2_std)

    def _standardised(
        self,
        x_bcthw: Tensor,
        valid_b1thw: Tensor,
        bands: tuple[Band, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> Tensor:
        factor = _by_band(tuple(band.scale / s for band, s in zip(bands, std, strict=True)), x_bcthw)
        offset = _by_band(tuple(-m / s for m, s in zip(mean, std, strict=True)), x_bcthw)
        return x_bcthw.mul_(factor).add_(offset).clamp_(-self.clip, self.clip).mul_(valid_b1thw)


@dataclass(frozen=True)
class SeedNormalisation(Normalisation):
    """The published network's, for its weights.

    A missing pixel becomes 0 (reflectance, or dB!) first. Reflectance is clipped to `unit_range`.
    Sentinel-1 is clipped to `s1_range_db`, scaled by the minimum and maximum over both
    polarisations of each patch and month, and clipped to `unit_range`.
    """

    s1_range_db: tuple[float, float] = (-25.0, 10.0)
    unit_range: tuple[float, float] = (0.0001, 0.9999)

    def _scaled_s1(self, x_bcthw: Tensor, valid_b1thw: Tensor) -> Tensor:
        db_bcthw = x_bcthw.mul_(S1_BANDS[0].scale).mul_(valid_b1thw).clamp_(*self.s1_range_db)
        low, high = (extreme(db_bcthw, dim=(1, 3, 4), keepdim=True) for extreme in (torch.amin, torch.amax))
        span = (high - low).clamp_(min=torch.finfo(db_bcthw.dtype).tiny)  # a constant month becomes 0
        return db_bcthw.sub_(low).div_(span).clamp_(*self.unit_range)

    def _scaled_s2(self, x_bcthw: Tensor, valid_b1thw: Tensor) -> Tensor:
        return x_bcthw.mul_(S2_BANDS[0].scale).mul_(valid_b1thw).clamp_(*self.unit_range)


NORMALISATIONS: dict[str, type[Normalisation]] = {"fixed": FixedNormalisation, "seed": SeedNormalisation}
"""By the name that configurations and checkpoints use."""

_KIND_OF = {cls: kind for kind, cls in NORMALISATIONS.items()}


def _by_band(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device).view(1, -1, 1, 1, 1)
