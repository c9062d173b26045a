"""One fixed colour a class, the same in rasters, pictures and legends, and safe for colour-blind eyes.

Colours by Paul Tol (2021), Colour Schemes, SRON technical note SRON/EPS/TN/09-002: "muted" for up to
nine classes, "discrete rainbow" beyond.
"""

from __future__ import annotations

import numpy as np

from cropray.types import BACKGROUND, UNLABELLED, ByteArray

Rgb = tuple[int, int, int]

_MUTED = "CC6677 332288 DDCC77 117733 88CCEE 882255 44AA99 999933 AA4499"
_RAINBOW = (
    "D1BBD7 AE76A3 882E72 1965B0 5289C7 7BAFDE 4EB265 90C987 CAE0AB F7F056 F6C141 F1932D "
    "E8601C DC050C 72190E D9CCE3 BA8DB4 994F88 437DBF 6195CF F7CB45 F4A736 E65518 A5170E 42150A"
)
_BACKGROUND: Rgb = (221, 221, 221)  # Tol's pale grey
UNKNOWN: Rgb = (255, 255, 255)  # without a label, or in a map nodata
UNSEEN: Rgb = (255, 170, 187)  # Tol's light pink: no land, cloud or snow has this colour


def class_colours(n_classes: int) -> list[Rgb]:
    """Colours of classes 0..n-1; beyond 25 classes they repeat."""
    names = (_MUTED if n_classes <= 9 else _RAINBOW).split()
    return [_rgb(names[index % len(names)]) for index in range(n_classes)]


def colour_table(n_classes: int) -> dict[int, Rgb]:
    """Colours of all values of a class map."""
    return dict(enumerate(class_colours(n_classes))) | {BACKGROUND: _BACKGROUND, UNLABELLED: UNKNOWN}


def colourised(class_hw: ByteArray, n_classes: int) -> ByteArray:
    """(H, W, 3) of a class map."""
    table = np.zeros((256, 3), np.uint8)
    for value, rgb in colour_table(n_classes).items():
        table[value] = rgb
    coloured: ByteArray = table[class_hw]
    return coloured


def _rgb(name: str) -> Rgb:
    red, green, blue = bytes.fromhex(name)
    return red, green, blue
