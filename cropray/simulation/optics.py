"""Optics of the simulated world: ten Sentinel-2 bands mixed from soil, green leaves and dry matter.

Mixing is linear in the shares of the ground, as in spectral mixture analysis (Roberts et al. 1998,
doi:10.1016/S0034-4257(98)00037-6). Spectra are rounded from closed canopies, wet and dry bare soil and
stubble measured over Flanders in 2018-2019. What was not measured is assumed: rapeseed, whose flowers
are yellow to Sentinel-2 (d'Andrimont et al. 2020, doi:10.1016/j.rse.2020.111660), pea and onion,
between the crops that were, and woods, water and roofs.
Shapes: F fields, C the ten bands in the order of `bands.S2_BANDS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt

from cropray.simulation.fields import LANDS, Fields, field_normal, field_uniform
from cropray.simulation.noise import Array, smooth
from cropray.simulation.phenology import Canopy
from cropray.types import FloatArray

# Closed green canopy: B02 B03 B04 B05 B06 B07 B08 B8A B11 B12.
_GREEN = {
    "winter_wheat": (0.040, 0.054, 0.030, 0.080, 0.290, 0.420, 0.440, 0.447, 0.138, 0.068),
    "winter_barley": (0.039, 0.059, 0.028, 0.086, 0.345, 0.490, 0.515, 0.515, 0.138, 0.061),
    "rapeseed": (0.036, 0.070, 0.034, 0.108, 0.365, 0.470, 0.490, 0.505, 0.180, 0.085),
    "maize": (0.037, 0.067, 0.038, 0.102, 0.315, 0.440, 0.455, 0.465, 0.205, 0.100),
    "potato": (0.042, 0.082, 0.045, 0.135, 0.435, 0.545, 0.560, 0.565, 0.225, 0.112),
    "sugar_beet": (0.042, 0.085, 0.046, 0.135, 0.410, 0.500, 0.520, 0.525, 0.178, 0.092),
    "pea": (0.040, 0.080, 0.038, 0.122, 0.395, 0.505, 0.530, 0.535, 0.200, 0.095),
    "onion": (0.050, 0.084, 0.058, 0.117, 0.305, 0.390, 0.412, 0.422, 0.172, 0.092),
    "grass": (0.036, 0.062, 0.034, 0.102, 0.325, 0.430, 0.475, 0.465, 0.180, 0.090),
    "trees": (0.024, 0.045, 0.025, 0.080, 0.245, 0.320, 0.345, 0.350, 0.140, 0.062),
    "built": (0.040, 0.065, 0.045, 0.105, 0.280, 0.350, 0.370, 0.380, 0.190, 0.105),
    "water": (0.040, 0.060, 0.040, 0.080, 0.200, 0.250, 0.260, 0.260, 0.100, 0.050),
    "fallow": (0.042, 0.072, 0.048, 0.115, 0.290, 0.360, 0.380, 0.390, 0.205, 0.112),
}
_COVER_GREEN = (0.034, 0.070, 0.038, 0.120, 0.360, 0.430, 0.455, 0.460, 0.190, 0.098)
_FLOWER = (0.060, 0.190, 0.165, 0.235, 0.370, 0.440, 0.460, 0.475, 0.200, 0.110)
_DRY = (0.098, 0.142, 0.192, 0.225, 0.258, 0.285, 0.298, 0.318, 0.352, 0.275)
_SOIL_DRY = (0.098, 0.142, 0.192, 0.225, 0.258, 0.285, 0.298, 0.318, 0.352, 0.275)
_SOIL_WET = (0.054, 0.082, 0.106, 0.131, 0.162, 0.180, 0.192, 0.202, 0.186, 0.130)
_GROUND = {  # what lies under the canopy where it is no soil
    "built": (0.110, 0.122, 0.132, 0.145, 0.160, 0.170, 0.180, 0.188, 0.200, 0.180),
    "water": (0.046, 0.046, 0.032, 0.028, 0.022, 0.020, 0.018, 0.017, 0.012, 0.009),
    "trees": (0.030, 0.040, 0.045, 0.060, 0.100, 0.120, 0.130, 0.140, 0.130, 0.090),
}
# Wetness of the top soil by month, January to December, of which single days stray: from bare
# fields over Flanders 2018-2019.
_WETNESS = (0.95, 0.90, 0.85, 0.55, 0.25, 0.35, 0.30, 0.35, 0.45, 0.60, 0.85, 0.95)

# Spread between fields of one land (standard deviation of a factor), by groups of bands that vary
# together: visible (pigments), red edge, near infrared (structure), short-wave infrared (water).
_GROUPS = np.array((0, 0, 0, 1, 2, 2, 2, 2, 3, 3))
_GREEN_SPREAD = np.array((0.18, 0.14, 0.11, 0.15))
_UNEVEN = {"grass": 1.5, "sugar_beet": 1.4, "maize": 1.2}  # spreads of the green, times this
_SOIL_SPREAD, _DRY_SPREAD = 0.13, 0.14
# Within a field: of the green share, and of soil and dry matter, by pixel.
_WITHIN = {"built": (0.45, 0.35), "trees": (0.12, 0.20), "water": (0.0, 0.12)}
_WITHIN_FIELD = (0.085, 0.085)


@dataclass(frozen=True)
class Leaf:
    """What stays of a field's optics through a season: its own spectra, (F, C) each."""

    green: Array
    cover: Array
    soil_dry: Array
    soil_wet: Array
    dry: Array
    within: Array  # (F, 2) spread of the pixels: of vigour, of soil


def leaves(seed: int, fields: Fields, land: npt.NDArray[np.uint8], season: int) -> Leaf:
    """Each field's own spectra: its land's, varied in groups of bands that vary together."""
    spread = np.stack([field_normal(seed, fields, f"pigment {group}", season) for group in range(4)], axis=-1)
    spread *= np.array([_UNEVEN.get(name, 1.0) for name in LANDS])[land, None]
    factor = np.exp(spread * _GREEN_SPREAD)[:, _GROUPS]
    conifer = (np.array(LANDS)[land] == "trees") & (field_uniform(seed, fields, "line", season) >= 0.5)
    green = np.array([_GREEN[name] for name in LANDS])[land] * factor
    green[conifer] *= np.array((0.85, 0.75, 0.85, 0.70, 0.62, 0.58, 0.57, 0.58, 0.58, 0.65))
    soil = np.exp(_SOIL_SPREAD * field_normal(seed, fields, "soil brightness"))
    hue = 0.05 * field_normal(seed, fields, "soil hue")[:, None] * np.linspace(-1, 1, 10)
    soil_factor = soil[:, None] * np.exp(hue)
    soil_dry, soil_wet = np.tile(_SOIL_DRY, (len(land), 1)), np.tile(_SOIL_WET, (len(land), 1))
    for name, ground in _GROUND.items():
        here = land == LANDS.index(name)
        soil_dry[here] = soil_wet[here] = ground
    dry = np.array(_DRY) * np.exp(_DRY_SPREAD * field_normal(seed, fields, "straw", season))[:, None]
    within = np.array([_WITHIN.get(name, _WITHIN_FIELD) for name in LANDS])[land]
    return Leaf(
        green, np.array(_COVER_GREEN) * factor, soil_dry * soil_factor, soil_wet * soil_factor, dry, within
    )


def wetness(seed: int, fields: Fields, day: date) -> Array:
    """Wetness of the top soil (F,), 0 to 1: the month's, and the last rains, 30 km across."""
    month = np.interp(_year_part(day), (np.arange(-1, 13) + 0.5) / 12, _wrapped(_WETNESS))
    rain = 0.16 * smooth(seed, "rain", fields.x, fields.y, 30_000.0, day.toordinal() // 4)
    own = 0.07 * field_normal(seed, fields, "drainage")
    return np.clip(month + rain + own, 0.0, 1.0)


def signatures(leaf: Leaf, canopy: Canopy, wet: Array) -> FloatArray:
    """(F, 3, C): mean reflectance of each field; change by one deviation of vigour; of soil."""
    green_spectrum = np.where(canopy.is_cover[:, None], leaf.cover, leaf.green)
    flower = canopy.flower[:, None]
    green_spectrum = (1 - 0.75 * flower) * green_spectrum + 0.75 * flower * np.array(_FLOWER)
    # Straw and stubble darken when wet, as soil does.
    dry_spectrum = leaf.dry * (1.08 - 0.30 * wet[:, None])
    soil = leaf.soil_dry + (leaf.soil_wet - leaf.soil_dry) * wet[:, None]
    green, dry = canopy.green[:, None], canopy.dry[:, None]
    bare = np.maximum(1 - green - dry, 0.0)
    under = (bare * soil + dry * dry_spectrum) / np.maximum(bare + dry, 1e-6)
    mean = green * green_spectrum + bare * soil + dry * dry_spectrum
    # Vigour moves green against what lies under it; a closed canopy also varies in its own depth.
    by_vigour = leaf.within[:, :1] * green * (green_spectrum - under + 0.35 * green_spectrum * _DEPTH)
    by_soil = leaf.within[:, 1:] * (bare * soil + dry * dry_spectrum)
    return np.stack([mean, by_vigour, by_soil], axis=1).astype(np.float32)


# More leaf layers: darker in the visible and short-wave infrared, brighter in the near infrared.
_DEPTH = np.array((-1.2, -1.0, -1.6, -0.9, 0.4, 1.0, 1.0, 1.0, -0.7, -1.0))


def _year_part(day: date) -> float:
    return (day - date(day.year, 1, 1)).days / 365.25


def _wrapped(months: tuple[float, ...]) -> tuple[float, ...]:
    return (months[-1], *months, months[0])
