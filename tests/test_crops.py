"""Names and colours of crops: typical, apart for colour-blind eyes, the same wherever a crop is listed."""

from itertools import combinations

import numpy as np
import pytest
import yaml

from cropray.figures.crops import (
    FAR_ENOUGH,
    by_area,
    class_colours,
    colour_table,
    differences,
    hexadecimal,
    shown,
)
from cropray.types import BACKGROUND, UNLABELLED
from tests.conftest import ROOT

DEMO = ("winter_wheat", "winter_barley", "rapeseed", "maize", "potato", "sugar_beet", "pea", "onion")
STRANGERS = ("teff", "quinoa", "Sesam", "hemp", "cassava", "yam", "okra", "dates", "fig")


def configured(name: str) -> tuple[str, ...]:
    return tuple(yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())["classes"])


def least(classes: tuple[str, ...]) -> float:
    """Of all pairs of classes, with none of them and with nodata."""
    colours = list(colour_table(classes).values())
    return min(differences([one], [other])[0, 0] for one, other in combinations(colours, 2))


def test_differences_are_those_of_the_eyes_that_see_them_least() -> None:
    assert differences([(0, 0, 0)], [(255, 255, 255)])[0, 0] == pytest.approx(100, abs=0.1)
    red, green = (200, 60, 40), (110, 110, 30)
    assert differences([red], [green])[0, 0] < 8  # to normal sight they are 17 apart
    assert np.array_equal(differences([red], [green, red])[0] == 0, [False, True])


@pytest.mark.parametrize(
    "classes",
    [DEMO, STRANGERS, (*DEMO[:4], *STRANGERS[:5]), configured("iran"), configured("canada")],
)
def test_up_to_nine_classes_keep_apart_for_colour_blind_readers(classes: tuple[str, ...]) -> None:
    assert len(classes) <= 9
    assert least(classes) > FAR_ENOUGH


def test_many_classes_have_colours_of_their_own() -> None:
    classes = configured("europe")
    assert len(set(colour_table(classes).values())) == len(classes) + 2 == 23


def test_a_crop_has_its_colour_in_any_list_and_by_any_name() -> None:
    assert [hexadecimal(rgb) for rgb in class_colours(DEMO)] == [
        *("#e2a430", "#ebcb8f", "#f9fb6f", "#d86c02", "#4a2c1c", "#bd273b", "#659a74", "#9162c4"),
    ]
    assert class_colours(DEMO[::-1]) == class_colours(DEMO)[::-1]
    assert class_colours(["Sugarbeet", "canola"]) == class_colours(["rapeseed", "sugar_beet"])[::-1]
    assert colour_table(DEMO)[BACKGROUND] == (0xB3, 0xB8, 0xBF)
    assert colour_table(DEMO)[UNLABELLED] == (255, 255, 255)


def test_two_wheats_differ_but_look_alike() -> None:
    winter, spring = class_colours(["winter_wheat", "wheat"])
    apart = differences([winter], [spring])[0, 0]
    assert FAR_ENOUGH <= apart < 25


def test_classes_are_listed_by_area_with_none_of_them_last() -> None:
    hectares = {"a": 1.0, "none of the classes": 90.0, "b": 2.0}
    assert by_area([*hectares], hectares) == ["b", "a", "none of the classes"]
    assert shown("sugar_beet") == "sugar beet"
