"""The small phrases of a policy file: ``97 % of asked``, ``> 4000``, ``22-6``.

Every reader takes what YAML gives (text or a number) with the path of its key, and raises
PolicyError with that path, a sentence and, for a misspelt word, the nearest known one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

Path = tuple[str | int, ...]

_NUMBER = r"\d+(?:\.\d+)?(?:e-?\d+)?"
_EXPONENT = re.compile(r"^\d+(?:\.\d*)?[eE][+-]?\d+$")
_SHARE = re.compile(rf"^({_NUMBER})\s*(%?)(?:\s+of\s+(?P<of>\S+))?$")
_RANGE = re.compile(
    rf"^(?:(?P<sign><=|>=|<|>)\s*(?P<edge>{_NUMBER})\s*(?P<unit>%?)"
    rf"|(?P<low>{_NUMBER})\s*-\s*(?P<high>{_NUMBER})\s*(?P<unit2>%?))$"
)


class PolicyError(Exception):
    """A policy that cannot be meant: where, what, and the nearest known word if there is one.

    ``path`` leads from the config's ``policies`` mapping to the key, so that whoever has the file
    can name its line.
    """

    def __init__(self, path: Path, message: str, nearest: str | None = None) -> None:
        self.path = path
        self.message = message
        self.nearest = nearest
        hint = f". Did you mean {nearest!r}?" if nearest else ""
        super().__init__(f"{'.'.join(map(str, path))}: {message}{hint}")


class Range(msgspec.Struct, frozen=True):
    """Numbers from ``low`` to ``high``; ``strict`` leaves out the ends that were written."""

    low: float | None = None
    high: float | None = None
    strict: bool = False

    def covers(self, other: Range) -> bool:
        """Whether every number in the other lies in it."""
        below = self.low is None or (
            other.low is not None
            and (other.low > self.low or (other.low == self.low and self.strict <= other.strict))
        )
        return below and (
            self.high is None
            or (other.high is not None and other.high < self.high)
            or (other.high == self.high and self.strict <= other.strict)
        )

    def meets(self, least: float, most: float) -> bool:
        """Whether any number from ``least`` to ``most`` lies in it."""
        low = least if self.low is None else max(least, self.low)
        high = most if self.high is None else min(most, self.high)
        return low < high or (low == high and self.holds(low))

    def holds(self, value: float) -> bool:
        """Whether a value lies in it."""
        if self.strict:
            above = self.low is None or value > self.low
            return above and (self.high is None or value < self.high)
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


class Hours(msgspec.Struct, frozen=True):
    """Hours of a day from ``start`` until before ``end``; over midnight when that is smaller."""

    start: int
    end: int

    def covers(self, other: Hours) -> bool:
        """Whether every hour of the other is one of these."""
        return all(self.holds(hour) for hour in range(24) if other.holds(hour))

    def holds(self, hour: int) -> bool:
        """Whether an hour 0..23 lies in it."""
        if self.start < self.end:
            return self.start <= hour < self.end
        return hour >= self.start or hour < self.end


def nearest(word: object, known: Collection[str]) -> str | None:
    """The known word that was probably meant."""
    alike = [each for each in known if str(each).lower() == str(word).lower()]
    close = alike or difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return close[0] if close else None


def mapping(value: object, known: Collection[str] | None, path: Path) -> Mapping[str, Any]:
    """A mapping whose keys are all known (any, if None)."""
    if not isinstance(value, Mapping):
        raise PolicyError(path, "should be a mapping of keys to values")
    for key in value:
        if not isinstance(key, str):
            raise PolicyError((*path, str(key)), "keys should be words")
        if known is not None and key not in known:
            message = f"there is no {key!r} here; known: {', '.join(known)}"
            raise PolicyError((*path, key), message, nearest(key, known))
    return value


def word(value: object, known: Collection[str], path: Path) -> str:
    """One of the known words."""
    if value not in known or not isinstance(value, str):
        message = f"{value!r} is none of: {', '.join(known)}"
        raise PolicyError(path, message, nearest(value, known))
    return value


def words(value: object, path: Path) -> tuple[str, ...]:
    """One name or a list of names."""
    given = value if isinstance(value, list) else [value]
    if not given:
        raise PolicyError(path, "an empty list allows nothing; leave it out or name some")
    for one in given:
        if not isinstance(one, str):
            message = f"should be a name or a list of names, not {one!r}"
            if isinstance(one, bool | int | float):  # such as Norway's, which YAML takes for false
                message += "; if that is a name, put it in quotes"
            raise PolicyError(path, message)
    return tuple(given)


def text(value: object, path: Path) -> str:
    """Free text."""
    if not isinstance(value, str):
        raise PolicyError(path, "should be text")
    return value


def flag(value: object, path: Path) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise PolicyError(path, "should be true or false")
    return value


def number(value: object, path: Path, above: float | None = 0.0) -> float:
    """A number, more than ``above``. YAML takes ``2e-4`` and ``3.6e9`` for text."""
    if isinstance(value, str) and _EXPONENT.match(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise PolicyError(path, f"should be a number, not {value!r}")
    if above is not None and value <= above:
        raise PolicyError(path, f"should be more than {above:g}, not {value:g}")
    return float(value)


def whole(value: object, path: Path) -> int:
    """A whole number of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PolicyError(path, f"should be a whole number of 1 or more, not {value!r}")
    return value


def share(value: object, path: Path, most: float = 1.0) -> float:
    """A share such as ``0.97`` or ``97 %``, between 0 and ``most``."""
    amount, of = share_of(value, path, most)
    if of is not None:
        raise PolicyError(path, f"should be a share such as 5 %, not a share of {of!r}")
    return amount


def share_of(value: object, path: Path, most: float = 1.0) -> tuple[float, str | None]:
    """A share, and of what when it says so: ``97 % of asked`` is (0.97, "asked")."""
    found = _SHARE.match(str(value).strip()) if not isinstance(value, bool) else None
    if found is None:
        raise PolicyError(path, f"should be a share such as 0.97 or 97 %, not {value!r}")
    amount = float(found[1]) / (100.0 if found[2] else 1.0)
    if amount > most:
        hint = f" Write {amount:g} % if that is meant." if amount <= 100 and not found[2] else ""
        raise PolicyError(path, f"should be at most {most:.0%}, not {amount:.0%}.{hint}")
    return amount, found["of"]


def span(value: object, path: Path, of_a_whole: bool = False) -> Range:
    """A range: ``> 4000``, ``1000-4000``, and where it is ``of_a_whole`` also ``< 20 %``."""
    found = _RANGE.match(str(value).strip())
    if found is None:
        message = f"should be a range such as '> 4000' or '1000-4000', not {value!r}"
        raise PolicyError(path, message)
    scale = 100.0 if found["unit"] or found["unit2"] else 1.0
    if scale > 1.0 and not of_a_whole:
        raise PolicyError(path, f"is no share of anything, so {value!r} cannot be meant")
    if found["sign"]:
        edge, strict = float(found["edge"]) / scale, len(found["sign"]) == 1
        if found["sign"].startswith(">"):
            return Range(low=edge, strict=strict)
        return Range(high=edge, strict=strict)
    low, high = float(found["low"]) / scale, float(found["high"]) / scale
    if low > high:
        raise PolicyError(path, f"starts at {low:g} and ends before it, at {high:g}")
    return Range(low, high)


def hours(value: object, path: Path) -> Hours:
    """Hours of the day: ``22-6`` is from 22:00 until 6:00, ``9`` from 9:00 until 10:00."""
    found = re.match(r"^(\d{1,2})(?:\s*-\s*(\d{1,2}))?$", str(value).strip())
    if found is None or isinstance(value, bool):
        raise PolicyError(path, f"should be hours such as 22-6, not {value!r}")
    start = int(found[1])
    end = int(found[2]) if found[2] else start + 1
    if start > 23 or end > 24:
        raise PolicyError(path, f"hours go from 0 to 24, so {value!r} is none")
    if start == end:
        raise PolicyError(path, f"from {start} until {end} is no time at all")
    return Hours(start, end)
