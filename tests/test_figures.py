"""Pictures show what they should, in the colours of the classes."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from cropray.figures import pictures
from cropray.figures.charts import curves_chart
from cropray.figures.crops import UNSEEN, class_colours, colour_table
from cropray.figures.pictures import map_picture
from cropray.types import BACKGROUND, UNLABELLED
from tests.map_inputs import CLASSES, GRID

AB = ("a", "b")


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png)).convert("RGB"))


def share(image: np.ndarray, rgb: tuple[int, int, int]) -> float:
    return float((np.abs(image.astype(int) - rgb).max(axis=2) <= 2).mean())


def test_true_colour_stretches_the_clearest_month_and_leaves_gaps_white() -> None:
    s2 = np.full((10, 3, 50, 50), -32768, np.int16)
    s2[:, 1] = np.random.default_rng(0).integers(300, 3000, (10, 50, 50))
    s2[:, 1, :5] = -32768
    rgb = pictures.true_colour(s2)
    assert (rgb[:5] == 1).all()
    red = s2[2, 1, 5:].astype(float)
    low, high = np.percentile(red, (2, 98))
    assert np.allclose(rgb[5:, :, 0], np.clip((red - low) / (high - low), 0, 1), atol=1e-6)


def test_pictures_show_classes_in_their_colours() -> None:
    classes = np.zeros((60, 60), np.uint8)
    classes[:, 30:] = 1
    swapped = 1 - classes
    red, blue, grey = *class_colours(AB), colour_table(AB)[BACKGROUND]
    unseen = np.full((10, 1, 60, 60), -32768, np.int16)
    both = pixels(pictures.comparison_picture(classes, swapped, AB, unseen, "one"))
    assert share(both, red) == pytest.approx(share(both, blue), rel=0.05)
    alone = pixels(pictures.comparison_picture(0 * classes, 0 * classes, AB, unseen, "two"))
    assert share(alone, red) > 0.3
    assert max(share(alone, blue), share(alone, grey)) < 0.001  # smooth edges of the letters apart


def test_a_sample_shows_unseen_pixels_in_a_colour_of_their_own() -> None:
    rng = np.random.default_rng(0)
    s2, s1 = (rng.integers(300, 3000, (bands, 2, 32, 32)).astype(np.int16) for bands in (10, 2))
    label = np.zeros((32, 32), np.uint8)

    def shares(s2: np.ndarray, s1: np.ndarray, label: np.ndarray) -> tuple[float, float]:
        image = pixels(pictures.sample_picture(s2, s1, label, AB, ["March", "April"]))
        return share(image, UNSEEN), share(image, class_colours(AB)[0])

    unseen, labelled = shares(s2, s1, label)
    assert unseen < 0.001 < labelled
    s2[:, 1] = -32768  # April of Sentinel-2: one panel of four, each as large as that of the label
    assert shares(s2, s1, label)[0] == pytest.approx(labelled, rel=0.1)
    s1[:, 0] = -32768
    assert shares(s2, s1, label)[0] == pytest.approx(2 * labelled, rel=0.1)
    assert shares(s2, s1, label + UNLABELLED)[1] < 0.001


def test_curves_take_a_history_with_gaps() -> None:
    history = [
        {"epoch": 1, "train_loss": 1.0, "val_mean_f1": None, "val_classes": {"a": {"f1": 0.1}}, "lr": 1e-3},
        {"epoch": 2, "train_loss": 0.5, "val_mean_f1": 0.4, "val_classes": {"a": None}, "lr": 1e-3},
    ]
    image = pixels(curves_chart(history, "finetune"))
    assert share(image, (0xCC, 0x66, 0x77)) > 0.001
    pixels(curves_chart([{"epoch": 1, "train_loss": 1.0}]))


def test_the_map_picture_has_class_colours_scale_bar_and_frame() -> None:
    values = np.zeros(GRID.shape, np.uint8)
    values[:, 200:] = 2
    image = pixels(map_picture(values, GRID, CLASSES, "title"))
    first, last = class_colours(CLASSES)[0], class_colours(CLASSES)[2]
    assert share(image, first) == pytest.approx(share(image, last) * 200 / 130, rel=0.1)
    # The bar is 500 m of the map's 3,300 m: the longest black run, but for the frame.
    coloured = np.abs(image.astype(int) - last).max(axis=2) <= 2
    columns = np.flatnonzero((np.abs(image.astype(int) - first).max(axis=2) <= 2).any(axis=0))
    width = np.flatnonzero(coloured.sum(axis=0) > 100)[-1] - columns[0]
    black = (image[:, columns[0] : columns[0] + width].max(axis=2) < 40).sum(axis=1) / width
    assert black[black < 0.9].max() == pytest.approx(500 / 3300, rel=0.06)
