"""The plain sentences of a map's page and summary, computed from its facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from cropray.figures.crops import NONE_OF_THEM
from cropray.report.hectares import Hectares, Row
from cropray.report.language import Language
from cropray.report.place import Harvest, Place
from cropray.report.seen import Seen
from cropray.report.trust import FAIR, GOOD, CropTrust, Trust


@dataclass(frozen=True)
class Part:
    """A sentence, and whether a reader must not miss it."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Tile:
    """A figure with what it means."""

    figure: str
    text: str


@dataclass(frozen=True)
class Facts:
    """What is known of a map. `trust` is None where its model was not tested in this run."""

    as_of: date
    hectares: Hectares
    trust: Trust | None
    seen: Seen
    place: Place

    @property
    def verdicts(self) -> dict[str, str]:
        """good, fair or weak of each crop that was tested."""
        return {} if self.trust is None else {name: crop.verdict for name, crop in self.trust.crops.items()}

    @property
    def harvests(self) -> tuple[Harvest, ...]:
        """Of the crops that the map shows."""
        shown = {row.name for row in self.hectares.whole.crops}
        return tuple(harvest for harvest in self.place.harvests if harvest.crop in shown)

    @property
    def days_left(self) -> int | None:
        """From the as-of date to the first harvest; None if it is unknown or has begun."""
        days = (self.harvests[0].begins - self.as_of).days if self.harvests else 0
        return days if days > 0 else None

    def crops_of(self, verdict: str) -> list[Row]:
        return [row for row in self.hectares.whole.crops if self.verdicts.get(row.name) == verdict]


def verdict_words(_: Language) -> dict[str, str]:
    return {"good": _("good"), "fair": _("use with care"), "weak": _("not alone")}


def headline(_: Language, facts: Facts) -> str:
    """The largest crop, its hectares, and how long before the harvest they are known."""
    whole = facts.hectares.whole
    if not whole.crops:
        return _("No crop is mapped on %(all)s hectares", all=_.hectares(whole.mapped))
    largest = whole.crops[0]
    crop = _.crop(largest.name)
    values = {
        "crop": crop[:1].upper() + crop[1:],
        "ha": _.hectares(largest.best),
        "all": _.hectares(whole.under_crops),
    }
    if facts.days_left is None:
        return _("%(crop)s is the largest crop: %(ha)s of %(all)s hectares under crops", **values)
    return _(
        "%(crop)s is the largest crop: %(ha)s of %(all)s hectares under crops, "
        "mapped %(days)s days before the first harvest",
        **values,
        days=_.number(facts.days_left),
    )


def lead(_: Language, facts: Facts) -> list[Part]:
    """What the hectares are, how the map did where it was tested, and what must not be used alone."""
    parts = [_hectares_part(_, facts.hectares)]
    trust = facts.trust
    if trust is None:
        return [*parts, Part(_("The model of this map was not tested in this run."), strong=True)]
    right, on_crops = _.of_hundred(trust.accuracy), _.of_hundred(trust.on_crops)
    if trust.whole:
        parts.append(
            Part(
                _(
                    "On test sites the map is right for %(right)s of 100 pixels, and for %(crops)s of 100 "
                    "where one of the crops grows.",
                    right=right,
                    crops=on_crops,
                )
            )
        )
    else:
        parts.append(
            Part(
                _(
                    "On the annotated parcels of test sites the map names the right crop for %(right)s of "
                    "100 pixels.",
                    right=on_crops,
                )
            )
        )
    good, weak = (facts.crops_of(verdict) for verdict in ("good", "weak"))
    if good:
        parts.append(Part(_("Well mapped there: %(crops)s.", crops=_names(_, good))))
    if weak:
        parts.append(
            Part(_("Do not use these figures alone: %(crops)s.", crops=_names(_, weak)), strong=True)
        )
        parts.append(Part(_weakness(_, trust.crops[weak[0].name])))
    return parts


def _hectares_part(_: Language, hectares: Hectares) -> Part:
    if not hectares.method:
        return Part(
            _("The hectares are counts of mapped pixels, not estimates: no sample of this land was checked.")
        )
    if not hectares.by_sample:
        return Part(
            _(
                "The hectares are rough estimates from the model's validation sites, not from this land: "
                "their intervals may be far too short."
            ),
            strong=True,
        )
    points = _.number(hectares.whole.reference)
    return Part(
        _(
            "The hectares are estimates from %(points)s checked points of this land, with 95 %% intervals.",
            points=points,
        )
    )


def _weakness(_: Language, crop: CropTrust) -> str:
    """What is wrong with a crop: the worse of its two shares."""
    name = _.crop(crop.name)
    if crop.right is not None and (crop.found is None or crop.right < crop.found):
        return _(
            "Of 100 hectares that are mapped as %(crop)s, %(right)s are %(crop)s.",
            crop=name,
            right=_.of_hundred(crop.right),
        )
    if not crop.missed_as:
        return _(
            "Of 100 hectares of %(crop)s, the map finds %(found)s.", crop=name, found=_.of_hundred(crop.found)
        )
    return _(
        "Of 100 hectares of %(crop)s, the map finds %(found)s and takes %(missed)s for %(other)s.",
        crop=name,
        found=_.of_hundred(crop.found),
        missed=_.of_hundred(crop.missed),
        other=_.crop(crop.missed_as),
    )


def tiles(_: Language, facts: Facts) -> list[Tile]:
    """Up to four figures."""
    whole, trust = facts.hectares.whole, facts.trust
    share = whole.under_crops / whole.mapped if whole.mapped else 0.0
    found = [
        Tile(
            f"{_.hectares(whole.mapped)} {_('ha')}",
            _("mapped, %(share)s of it under crops", share=_.percent(min(share, 1.0))),
        )
    ]
    if whole.crops:
        largest, *others = whole.crops
        after = _.listed([f"{_.crop(row.name)} {_.hectares(row.best)}" for row in others[:3]])
        figure = f"{_.hectares(largest.best)} {_('ha')} {_.crop(largest.name)}"
        found.append(Tile(figure, _("then %(crops)s", crops=after) if after else ""))
    if trust is not None:
        shown = trust.accuracy if trust.whole else trust.on_crops
        sites = _.number(trust.regions)
        text = _("pixels right on %(sites)s test sites", sites=sites)
        if trust.whole:
            text = _(
                "pixels right on %(sites)s test sites; %(crops)s of 100 on crop land",
                sites=sites,
                crops=_.of_hundred(trust.on_crops),
            )
        found.append(Tile(_("%(n)s of 100", n=_.of_hundred(shown)), text))
    if facts.days_left is not None:
        first = facts.harvests[0]
        crop, day = _.crop(first.crop), _.day(first.begins, year=False)
        text = _("before the harvest of %(crop)s begins (%(day)s)", crop=crop, day=day)
        found.append(Tile(_("%(n)s days", n=_.number(facts.days_left)), text))
    return found


def hectares_text(_: Language, facts: Facts) -> str:
    """What the table of hectares shows."""
    if not facts.hectares.method:
        return _(
            "Counts of mapped pixels, measured on the ellipsoid. They are not estimates of cultivated land: "
            "these correct the errors of the map by a random sample of checked points (cropray areas)."
        )
    if not facts.hectares.by_sample:
        return _(
            "The mapped hectares, divided as the model was right on its validation sites. This land may "
            "differ: check a sample of it (cropray areas sample)."
        )
    return _(
        "Mapped hectares beside estimates that correct the errors of the map by checked points. An interval "
        "holds the true hectares in 95 of 100 such samples."
    )


def verdict_text(_: Language) -> str:
    return _(
        "Verdict: good, if at least %(good)s of 100 hectares that are mapped as the crop are this crop, and "
        "at least %(good)s of 100 hectares of it are found; use with care, at least %(fair)s; not alone, "
        "below.",
        good=_.of_hundred(GOOD),
        fair=_.of_hundred(FAIR),
    )


@dataclass(frozen=True)
class TrustText:
    tested: str
    right: str
    crops: str
    squares: int  # of 100 that are filled
    surest: str
    score_title: str
    score: str
    notes: str


def trust_text(_: Language, trust: Trust) -> TrustText:
    """The block on trust, in words."""
    share = trust.accuracy if trust.whole else (trust.on_crops or 0.0)
    numbers = {"sites": _.number(trust.regions), "pixels": _.number(trust.pixels)}
    if trust.whole:
        tested = _("Tested on %(sites)s whole sites (%(pixels)s pixels) that no training saw.", **numbers)
        crops = _(
            "This counts all land, also what is none of the crops, which is easier. Where one of the crops "
            "grows, the map names it for %(crops)s of 100 pixels. So each crop has a verdict of its own.",
            crops=_.of_hundred(trust.on_crops),
        )
        score = _(
            "Each crop gets a mark from 0 to 1 (F1). It falls when the crop is missed, and when it is mapped "
            "where it does not grow. The score is the mean over the crops; 1 is a perfect map."
        )
    else:
        tested = _(
            "Tested on the annotated parcels (%(pixels)s pixels) of %(sites)s sites that no training saw.",
            **numbers,
        )
        crops = _(
            "Only some parcels of the sites are annotated. So nobody can say how much of what is mapped as a "
            "crop is that crop."
        )
        score = _("The score is the mean over the crops of the share of their pixels that is found (recall).")
    if trust.interval is not None:
        score += " " + _(
            "If other sites had been drawn, it would lie between %(low)s and %(high)s in 95 of 100 cases.",
            low=_.number(trust.interval[0], 2),
            high=_.number(trust.interval[1], 2),
        )
    surest = ""
    if trust.surest_half is not None:
        right = _.of_hundred(trust.surest_half)
        surest = _(
            "The half of the land with the highest confidence is right for %(right)s of 100.", right=right
        )
    notes = ""
    if trust.thresholds_chosen_on == "val":
        notes = _(
            "Thresholds were chosen on validation sites. The test sites were read once, for this evaluation."
        )
    return TrustText(
        tested=tested,
        right=_("%(n)s of 100 pixels are right", n=_.of_hundred(share)),
        crops=crops,
        squares=round(100 * share),
        surest=surest,
        score_title=_("What the score of %(score)s means", score=_.number(trust.score, 2)),
        score=score,
        notes=notes,
    )


def seen_text(_: Language, seen: Seen) -> str:
    """The largest gap, or that there is none."""
    worst = seen.worst
    known = [month.clear for month in seen.months if month.clear is not None]
    if not known:
        return _("The source of imagery does not say what was seen when.")
    if worst is None:
        return _(
            "In each month Sentinel-2 saw at least %(share)s of the land without cloud.",
            share=_.percent(min(known)),
        )
    return _(
        "The largest gap: from %(days)s, %(share)s of the land was never seen without cloud by Sentinel-2. "
        "Sentinel-1 sees through cloud.",
        days=_.days(worst.first, worst.last),
        share=_.percent(1 - (worst.clear or 0.0)),
    )


def harvest_text(_: Language, harvests: Sequence[Harvest]) -> str:
    if not harvests:
        return ""
    days = [f"{_.crop(each.crop)} {_.day(each.begins, year=False)}" for each in harvests]
    return _("Harvests begin: %(days)s.", days=_.listed(days))


def _names(_: Language, rows: Sequence[Row]) -> str:
    return _.listed([_.crop(row.name) for row in rows if row.name != NONE_OF_THEM])
