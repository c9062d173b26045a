"""Under which conditions a trained network may draw a map: its months, its imagery, its bands."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from cropray.bands import S1_NAMES, S2_NAMES
from cropray.config import Config
from cropray.config.regions import WindowConfig
from cropray.maps.tiles import PredictionSettings
from cropray.models.checkpoint import Checkpoint, check_classes, check_inputs
from cropray.rois.windows import periods_for
from cropray.run import flat
from cropray.types import InputError, Period

_FAR_DAYS = 31


def prediction_settings(checkpoint: Checkpoint, config: Config) -> PredictionSettings:
    """What tiles are predicted with. Raises InputError, see `prediction_periods`.

    Raises InputError also for an overlap of more than half a patch (a third patch would reach in).
    """
    predict, size = config.predict, config.patch.size
    if predict.overlap > size // 2:
        raise InputError(f"predict.overlap is {predict.overlap}; wanted at most half of patch.size, {size}")
    if config.classes:
        check_classes(checkpoint, config.classes, predict.model or "of this run")
    check_imagery(checkpoint, config)
    as_of = given_as_of(config)
    return PredictionSettings(
        periods=prediction_periods(checkpoint, as_of, predict.assume_harvest),
        as_of=as_of,
        recipe=config.composite.recipe(),
        size=size,
        overlap=predict.overlap,
        batch_size=predict.batch_size,
    )


def given_as_of(config: Config) -> date:
    """Raises InputError where no as-of date is set: there is no sensible one to assume."""
    if config.predict.as_of is None:
        raise InputError(
            "prediction needs an as-of date, the last day whose scenes may be used: "
            "--as-of YYYY-MM-DD, or predict.as_of in the configuration"
        )
    return config.predict.as_of


def prediction_periods(
    checkpoint: Checkpoint, as_of: date, assume_harvest: date | None
) -> tuple[Period, ...]:
    """The months that the network is to see.

    A network trained on windows that end on an as-of date sees those that end on this one. One
    trained on windows before the harvest needs a harvest, which of a pixel of unknown crop nobody
    knows: refused, unless the user assumes one, and then nothing after `as_of` may be needed.
    """
    window = checkpoint.window
    months, lead_months = checkpoint.months, int(window["lead_months"])
    if window["anchor"] == "as_of":
        return periods_for(WindowConfig(anchor="as_of", months=months, as_of=as_of), None)
    if assume_harvest is None:
        raise InputError(
            "this model was trained on windows before the harvest of the crop, which is not known where "
            "the crop is to be found; train with window.anchor=as_of, or say which harvest start to assume: "
            "--assume-harvest YYYY-MM-DD"
        )
    harvest = WindowConfig(anchor="harvest", months=months, lead_months=lead_months)
    periods = periods_for(harvest, assume_harvest)
    if periods[-1].end.toordinal() - 1 > as_of.toordinal():
        raise InputError(
            f"with a harvest assumed on {assume_harvest} the model sees scenes up to {periods[-1].end} "
            f"(exclusive, {lead_months} months before), which is after the as-of date {as_of}; "
            "give a later as-of date or an earlier harvest"
        )
    return periods


def season_warning(checkpoint: Checkpoint, as_of: date) -> str | None:
    """What to say where the as-of date lies in another season than the training's."""
    trained = checkpoint.window.get("as_of")
    if checkpoint.window["anchor"] != "as_of" or trained is None:
        return None
    apart = abs(as_of.timetuple().tm_yday - date.fromisoformat(trained).timetuple().tm_yday)
    days = min(apart, 365 - apart)
    if days <= _FAR_DAYS:
        return None
    return (
        f"the model was trained as of {trained}, {days} days of the year away from {as_of}: "
        "crops look different then, and the map may be wrong"
    )


def check_imagery(checkpoint: Checkpoint, config: Config) -> None:
    """Raises InputError where grid or composites are set otherwise than what was trained on."""
    now = flat(config.model_dump(mode="json", include=set(checkpoint.imagery)))
    differing = [
        f"{key}: {was!r} then, {now.get(key)!r} now"
        for key, was in flat(checkpoint.imagery).items()
        if now.get(key) != was
    ]
    if differing:
        raise InputError(
            f"the model was trained on other imagery ({'; '.join(differing)}): set these as they were, or "
            "use a model trained with the present ones"
        )


def check_source(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Raises InputError where a source of imagery offers other bands or backscatter than was trained on."""
    check_inputs(
        checkpoint,
        s2_bands=S2_NAMES,
        s1_bands=S1_NAMES,
        s1_quantity=identity["s1_quantity"],
        where=f"the source {identity['kind']}",
    )
