"""Numbers, masses, energies and dates as readers of German, English and French write them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from zoneinfo import ZoneInfo

from babel import Locale
from babel.dates import format_date, format_datetime, format_interval
from babel.numbers import get_decimal_symbol, get_group_symbol

from proxy.dashboard.periods import parse

LANGUAGES = ("en", "de", "fr")
UNKNOWN = "–"
_STEPS = tuple(Decimal(1).scaleb(-digits) for digits in range(10))
_EXACT = Context(prec=400, rounding=ROUND_HALF_EVEN)  # as many digits as a float may have
_DECIMAL = re.compile(r"(?<![\w.:@-])\d+\.\d+(?![\w@-]|\.\d)")  # standing alone in a sentence
_NARROW = "\u202f"  # thin space between number and unit, does not break


def language_of(wanted: str | None, accepted: str | None) -> str:
    """One of LANGUAGES: the one asked for, else the browser's first that is known, else English."""
    if wanted in LANGUAGES:
        return str(wanted)
    for part in (accepted or "").split(","):
        code = part.split(";")[0].strip().split("-")[0].lower()
        if code in LANGUAGES:
            return code
    return "en"


class Numbers:
    """Writes figures for one language. Unknown (None) is a dash, never 0."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._locale = Locale.parse({"en": "en_GB", "de": "de_DE", "fr": "fr_FR"}[language])
        self._symbols = str.maketrans(
            {
                ",": get_group_symbol(self._locale),
                ".": get_decimal_symbol(self._locale),
                "-": "−",
            }
        )

    def plain(self, value: float | None, digits: int = 0) -> str:
        """A number with grouping and that many decimals."""
        if value is None or not math.isfinite(value):
            return UNKNOWN
        # Rounded as decimals are (half to even), not as the binary number nearest to them.
        exact = Decimal(str(value)).quantize(_STEPS[digits], context=_EXACT)
        text = f"{exact:,f}".translate(self._symbols)
        return "0" if not digits and text == "−0" else text

    def significant(self, value: float | None, figures: int = 3) -> str:
        """A number with that many significant figures, never in powers of ten."""
        if value is None or not math.isfinite(value):
            return UNKNOWN
        if value == 0:
            return "0"
        digits = figures - 1 - math.floor(math.log10(abs(value)))
        return self.plain(round(value, digits), max(0, min(digits, 9)))

    def short(self, value: float | None) -> str:
        """A count: 941, 12,400, 1.21 M."""
        if value is None:
            return UNKNOWN
        if abs(value) >= 1e9:
            return f"{self.significant(value / 1e9)}{_NARROW}G"
        if abs(value) >= 1e6:
            return f"{self.significant(value / 1e6)}{_NARROW}M"
        return self.plain(value)

    def count(self, value: float | None, one: str, short: bool = False) -> str:
        """A count with its noun: "1 request", "12,400 requests", short "1.21 M requests"."""
        written = self.short(value) if short else self.plain(value)
        return f"{written} {one if value == 1 else one + 's'}"

    def exact(self, decimal: str) -> str:
        """A decimal as exports write it, with this language's sign for its point; not grouped."""
        return decimal.replace("-", "−").replace(".", get_decimal_symbol(self._locale))

    def prose(self, text: str) -> str:
        """Words of ours with the decimals in them as this language writes them. Names and versions
        ("llama-3.3-70b", "0.11.3") stay what they are."""
        return _DECIMAL.sub(lambda found: self.exact(found[0]), text)

    def sentence(self, text: str, figures: Sequence[float | str] = ()) -> str:
        """``text`` with its figures in place of ``{}``, ``{:2}`` (decimals) and ``{:%}``."""
        return text.format(*(_Figure(self, each) for each in figures)) if figures else text

    def mass(self, ug: float | None, signed: bool = False) -> str:
        """Micro-grams as mg, g, kg or t."""
        if ug is None:
            return UNKNOWN
        if ug == 0:
            return f"0{_NARROW}g"
        for unit, per in (("t", 1e12), ("kg", 1e9), ("g", 1e6), ("mg", 1e3)):
            if abs(ug) >= per or unit == "mg":
                sign = "+" if signed and ug > 0 else ""
                return f"{sign}{self.significant(ug / per)}{_NARROW}{unit}"
        return UNKNOWN

    def same_mass(self, ug: Sequence[float], signed: bool = False) -> Callable[[float], str]:
        """Writes masses that stand under each other: one unit, as many decimals for all."""
        most = max((abs(each) for each in ug), default=0.0)
        units = (("t", 1e12), ("kg", 1e9), ("g", 1e6), ("mg", 1e3))
        unit, per = next((u for u in units if most >= u[1]), units[-1])
        digits = max(0, 3 - math.floor(math.log10(most / per))) if most > 0 else 0

        def write(value: float) -> str:
            text = self.plain(value / per, min(digits, 3))
            sign = "+" if signed and value > 0 else ""
            return f"{sign}{text}{_NARROW}{unit}"

        return write

    def kg(self, ug: float | None, digits: int = 3) -> str:
        """Micro-grams as kilograms for columns: fixed decimals, more for what is small."""
        return UNKNOWN if ug is None else self._column(ug / 1e9, digits)

    def exact_kg(self, ug: float | None) -> str:
        """Micro-grams as kilograms to the milligram, for columns that are added up."""
        return UNKNOWN if ug is None else self.plain(ug / 1e9, 6)

    def kwh(self, uj: float | None, digits: int = 3) -> str:
        """Micro-joules as kilowatt-hours for columns: fixed decimals, more for what is small."""
        return UNKNOWN if uj is None else self._column(uj / 3.6e12, digits)

    def _column(self, value: float, digits: int) -> str:
        small = 0 < abs(value) < 10.0 ** (2 - digits)
        return self.significant(value) if small else self.plain(value, digits)

    def energy(self, uj: float | None) -> str:
        """Micro-joules as J, Wh, kWh or MWh."""
        if uj is None:
            return UNKNOWN
        for unit, per in (("MWh", 3.6e15), ("kWh", 3.6e12), ("Wh", 3.6e9)):
            if abs(uj) >= per:
                return f"{self.significant(uj / per)}{_NARROW}{unit}"
        return f"{self.significant(uj / 1e6)}{_NARROW}J"

    def joules(self, j: float | None) -> str:
        """Joules, as joules."""
        return UNKNOWN if j is None else f"{self.significant(j)}{_NARROW}J"

    def litres(self, ml: float | None) -> str:
        return UNKNOWN if ml is None else f"{self.significant(ml / 1000)}{_NARROW}L"

    def percent(self, share: float | None, digits: int = 0, signed: bool = False) -> str:
        """A share of 1 as per cent."""
        if share is None or not math.isfinite(share):
            return UNKNOWN
        least = 0.5 * 10.0 ** (-2 - digits)
        if 0 < share < least:  # something, and never written as nothing
            return f"<\u200a{self.plain(10.0**-digits, digits)}{_NARROW}%"
        sign = "+" if signed and share > 0 else ""
        return f"{sign}{self.plain(share * 100, digits)}{_NARROW}%"

    def change(self, now: float | None, before: float | None) -> str:
        """Relative change as "▲ 12 %" or "▼ 12 %"; a dash when there is nothing to compare."""
        if now is None or not before:
            return UNKNOWN
        share = now / before - 1.0
        if abs(share) < 0.0005:
            return f"= 0{_NARROW}%"
        if share > 9.99:
            return f"▲ ×{self.significant(share + 1, 2)}"
        return (
            f"{'▲' if share > 0 else '▼'} {self.percent(abs(share), 0 if abs(share) >= 0.1 else 1)}"
        )

    def day(self, day: date | str) -> str:
        """A day, in words short enough for a table."""
        if isinstance(day, str):
            day = date.fromisoformat(day)
        return str(format_date(day, "medium", locale=self._locale))

    def period(self, name: str) -> str:
        """A period of a link in words: "October 2026", "1–22 Sept 2026"."""
        period = parse(name)
        first, last = period.first, period.last
        if len(name) == 4:
            return name
        if len(name) == 7:
            return str(format_date(first, "LLLL y", locale=self._locale))
        if first == last:
            return self.day(first)
        return str(format_interval(first, last, "yMMMd", locale=self._locale))

    def month(self, day: date) -> str:
        return str(format_date(day, "LLL y", locale=self._locale))

    def moment(self, unix_s: float | None, time_zone: str) -> str:
        """A moment in a time zone, with the zone's offset beside it."""
        if unix_s is None:
            return UNKNOWN
        at = datetime.fromtimestamp(unix_s, ZoneInfo(time_zone))
        return f"{format_datetime(at, 'd MMM y HH:mm:ss', locale=self._locale)} {at:%z}"


class _Figure:
    """One figure of a sentence, written as its place says."""

    def __init__(self, numbers: Numbers, value: float | str) -> None:
        self._numbers = numbers
        self._value = value

    def __format__(self, how: str) -> str:
        if isinstance(self._value, str):
            return self._value
        if how == "%":
            return self._numbers.percent(self._value)
        return self._numbers.plain(self._value, int(how or 0))
