"""How crops are named and coloured, in rasters, pictures, pages and styles alike.

A crop has the same colour wherever it stands in a list of classes. The hues are typical of the crops and
keep apart for colour-blind readers: the least difference in normal sight, protanopia and deuteranopia counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cropray.types import BACKGROUND, UNLABELLED, DoubleArray

Rgb = tuple[int, int, int]

NONE_OF_THEM = "none of the classes"

FAR_ENOUGH = 10.0
"""The least difference of two colours on a map, in OKLab × 100, that is kept as long as there are any."""

# The colour of a crop, and the names it goes by. The first ones are chosen first.
_CROPS: tuple[tuple[str, str], ...] = (
    ("E2A430", "winter wheat, wheat, common wheat, soft wheat"),
    ("EBCB8F", "winter barley, barley, spring barley"),
    ("F9FB6F", "rapeseed, rape, canola, oilseed rape, rape and turnip rape"),
    ("D86C02", "maize, corn, grain maize, silage maize"),
    ("4A2C1C", "potato, potatoes"),
    ("BD273B", "sugar beet, sugarbeet, beet"),
    ("659A74", "pea, peas, dry pulses, legumes, pulses, field peas"),
    ("9162C4", "onion, onions"),
    ("B2E8FA", "cotton, flax, linseed"),
    ("33278D", "lentil, lentils, chickpea, chickpeas"),
    ("F2785C", "tomato, tomatoes"),
    ("3E7D2C", "soya, soy, soybean, soybeans"),
    ("FFC81E", "sunflower, sunflowers"),
    ("4FB7B0", "rice, paddy rice"),
    ("A8D86B", "grass, grassland, pasture, meadow"),
    ("2F6B62", "alfalfa, lucerne, clover"),
    ("C9925E", "spring wheat, durum wheat"),
    ("1F4A2C", "woodland, forest, trees"),
    ("9A8574", "bare arable land, bare soil, fallow"),
)
CROP_NAMES = tuple(name for _, names in _CROPS for name in names.split(", "))
"""The names of crops that have a colour of their own."""

_NONE: Rgb = (0xB3, 0xB8, 0xBF)
UNKNOWN: Rgb = (255, 255, 255)
"""Pixels without a label, and nodata in a map."""

UNSEEN: Rgb = (255, 170, 187)
"""Pixels that a sensor did not see. Tol's light pink: no land, cloud or snow has this colour."""

# Simulated sight: Machado, Oliveira & Fernandes 2009, doi:10.1109/TVCG.2009.113, table for severity 1.
_SIGHT = np.array(
    [
        np.eye(3),
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ]
)
# Ottosson 2020, A perceptual color space for image processing: linear sRGB to cone responses to OKLab.
_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_LEVELS = (0x10, 0x40, 0x70, 0xA0, 0xD0, 0xF8)  # of red, green and blue in the colours of other crops


def shown(name: str) -> str:
    """The name of a class for readers: "sugar_beet" is sugar beet."""
    return " ".join(name.replace("_", " ").split())


UNSURE_COLOUR: Rgb = (110, 110, 110)
"""Of pixels whose class is not sure: darker than none of the classes."""


def class_names(classes: Sequence[str]) -> dict[int, str]:
    """Names of the values of a class map, without nodata."""
    return dict(enumerate(classes)) | {BACKGROUND: NONE_OF_THEM}


def class_colours(classes: Sequence[str]) -> list[Rgb]:
    """The colours of classes, in their order. They depend on the names, and not on their order.

    A crop that has no hue of its own, or whose hue is too near to that of another one of them, gets the
    nearest to its hue that is `FAR_ENOUGH` from all others, or the farthest from them if there is none.
    """
    chosen = _chosen(tuple(sorted(set(classes))))
    return [chosen[name] for name in classes]


def colour_table(classes: Sequence[str]) -> dict[int, Rgb]:
    """Colours of all values of a class map."""
    return dict(enumerate(class_colours(classes))) | {BACKGROUND: _NONE, UNLABELLED: UNKNOWN}


def hexadecimal(rgb: Rgb) -> str:
    """#rrggbb."""
    return f"#{bytes(rgb).hex()}"


def differences(colours: Sequence[Rgb], others: Sequence[Rgb]) -> DoubleArray:
    """(N, M): differences in OKLab × 100 to the eyes that see them least."""
    first, second = _seen(colours), _seen(others)
    return np.asarray(np.linalg.norm(first[:, :, None] - second[:, None], axis=-1).min(axis=0))


def by_area(names: Sequence[str], hectares: Mapping[str, float]) -> list[str]:
    """Classes from the largest to the smallest; none of them is last."""
    return sorted(names, key=lambda name: (name == NONE_OF_THEM, -hectares.get(name, 0.0), name))


@lru_cache
def _chosen(names: tuple[str, ...]) -> dict[str, Rgb]:
    hues = {
        alias: (place, _rgb(hue))
        for place, (hue, aliases) in enumerate(_CROPS)
        for alias in aliases.split(", ")
    }
    found = {name: hues.get(shown(name).casefold()) for name in names}
    order = sorted(names, key=lambda name: (found[name] or (len(_CROPS), None))[0])
    taken, colours = [_NONE, UNKNOWN], dict[str, Rgb]()
    for name in order:
        known = found[name]
        own = None if known is None else known[1]
        if own is None or differences([own], taken).min() < FAR_ENOUGH:
            own = _free(taken, own)
        colours[name] = own
        taken.append(own)
    return colours


def _free(taken: Sequence[Rgb], hue: Rgb | None) -> Rgb:
    """A colour apart from those that are taken, near to a hue if there is one."""
    every = [(r, g, b) for r in _LEVELS for g in _LEVELS for b in _LEVELS if (r, g, b) not in taken]
    candidates = [rgb for rgb in every if max(rgb) >= 0x70 and max(rgb) - min(rgb) >= 0x30]
    least = differences(candidates, taken).min(axis=1)
    far = np.flatnonzero(least >= FAR_ENOUGH)
    if hue is None or not len(far):
        return candidates[int(least.argmax())]
    near = differences([candidates[index] for index in far], [hue])[:, 0]
    return candidates[int(far[near.argmin()])]


def _seen(colours: Sequence[Rgb]) -> npt.NDArray[np.float64]:
    """(3, N, 3): OKLab × 100 of sRGB colours, in normal sight, protanopia and deuteranopia."""
    values = np.asarray(colours, float).reshape(-1, 3) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    sights = np.clip(linear @ _SIGHT.transpose(0, 2, 1), 0, 1)
    return np.asarray(100 * np.cbrt(sights @ _CONES.T) @ _OKLAB.T)


def _rgb(text: str) -> Rgb:
    red, green, blue = bytes.fromhex(text)
    return red, green, blue
