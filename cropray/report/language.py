"""The language of a page: its sentences, numbers and dates. Sentences in English are the keys of catalogues.

`locale/<code>.po` are gettext catalogues; a sentence that one lacks stays English.
"""

from __future__ import annotations

import gettext
import io
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from typing import Any

import jdatetime

from cropray.figures.crops import shown

LANGUAGES = {"en": "English", "es": "Español", "fa": "فارسی", "fr": "Français"}

_RIGHT_TO_LEFT = ("fa",)
_PERSIAN_DIGITS = str.maketrans("0123456789", "۰۱۲۳۴۵۶۷۸۹")
_THIN = "\u202f"  # no-break space between thousands


def sentence(text: str) -> str:
    """Marks a sentence that is translated elsewhere."""
    return text


_MONTHS = (
    *(sentence("January"), sentence("February"), sentence("March"), sentence("April")),
    *(sentence("May"), sentence("June"), sentence("July"), sentence("August")),
    *(sentence("September"), sentence("October"), sentence("November"), sentence("December")),
)


@dataclass(frozen=True)
class Language:
    """One language. Calls translate: `language("%(n)s crops", n=8)`."""

    code: str
    translations: gettext.NullTranslations

    def __call__(self, sentence: str, **values: Any) -> str:
        translated = self.translations.gettext(sentence)
        return translated % values if values else translated

    @property
    def direction(self) -> str:
        return "rtl" if self.code in _RIGHT_TO_LEFT else "ltr"

    def number(self, value: float | None, digits: int = 0) -> str:
        """A number with its thousands apart, "–" for none."""
        if value is None:
            return "–"
        text = f"{value:,.{digits}f}".replace("-", "−")
        point = {"en": ".", "fa": "٫"}.get(self.code, ",")
        text = text.replace(",", _THIN).replace(".", point)
        return text.translate(_PERSIAN_DIGITS) if self.code == "fa" else text

    def hectares(self, value: float | None) -> str:
        """Hectares to three figures or to whole ones: 12.3, 154, 12 345."""
        if value is None:
            return "–"
        return self.number(value, 1 if 0 < abs(value) < 99.95 else 0)

    def exact(self, value: float | None) -> str:
        """Hectares for a table: with a decimal below 1000."""
        return self.number(value, 1 if value is not None and abs(value) < 999.95 else 0)

    def percent(self, share: float | None, digits: int = 0) -> str:
        """A share in per cent, "–" for none."""
        return "–" if share is None else self("%(number)s %%", number=self.number(100 * share, digits))

    def of_hundred(self, share: float | None) -> str:
        """A share as so many of 100, "–" for none."""
        return self.number(None if share is None else 100 * share)

    def interval(self, low: float | None, high: float | None) -> str:
        """Hectares from low to high, "–" for none."""
        return "–" if low is None or high is None else f"{self.exact(low)}–{self.exact(high)}"

    def day(self, when: date, *, year: bool = True) -> str:
        """A date in words; in Persian of the Jalali calendar."""
        if self.code == "fa":
            jalali = jdatetime.date.fromgregorian(date=when)
            name = jdatetime.date.j_months_fa[jalali.month - 1]
            return f"{jalali.day} {name}{f' {jalali.year}' if year else ''}".translate(_PERSIAN_DIGITS)
        text = f"{when.day} {self(_MONTHS[when.month - 1])}"
        return f"{text} {when.year}" if year else text

    def days(self, first: date, last: date) -> str:
        begin = self.day(first, year=first.year != last.year)
        return self("%(first)s to %(last)s", first=begin, last=self.day(last))

    def crop(self, name: str) -> str:
        """The name of a class for readers."""
        return self.translations.gettext(shown(name))

    def listed(self, parts: list[str]) -> str:
        """a, b and c."""
        if len(parts) < 2:
            return "".join(parts)
        comma = "، " if self.code == "fa" else ", "
        return self("%(first)s and %(last)s", first=comma.join(parts[:-1]), last=parts[-1])


def language(code: str) -> Language:
    """The language of a code in `LANGUAGES`."""
    if code == "en":
        return Language(code, gettext.NullTranslations())
    import polib

    text = files(__package__).joinpath(f"locale/{code}.po").read_text(encoding="utf-8")
    return Language(code, gettext.GNUTranslations(io.BytesIO(polib.pofile(text).to_binary())))
