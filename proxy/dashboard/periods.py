"""Periods as they are written in a link, in a team's own time zone.

``2026`` a year, ``2026-10`` a month, ``2026-10-07`` a day, ``2026-10-01..2026-10-14`` days, both
included. A period starts at local midnight, so its days have 23, 24 or 25 hours.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from meters.intensity.hours import day_start_s, hours_between

_DAY = r"(\d{4}-\d{2}-\d{2})"
LONGEST_DAYS = 400


class BadPeriod(ValueError):
    """Not a period; the message says how one is written."""


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """Local days from ``first`` to ``last``, both included."""

    name: str  # as in a link
    first: date
    last: date
    time_zone: str

    @property
    def start_s(self) -> int:
        return day_start_s(self.first, self.time_zone)

    @property
    def end_s(self) -> int:
        """Unix time of the midnight after the last day."""
        return day_start_s(self.last + timedelta(days=1), self.time_zone)

    @property
    def days(self) -> list[date]:
        count = (self.last - self.first).days + 1
        return [self.first + timedelta(days=n) for n in range(count)]

    def hours_of_day(self, hour: str) -> list[int]:
        """Its UTC hours that begin in that local hour of the day, "0" to "23"; none for no hour."""
        zone = ZoneInfo(self.time_zone)
        return [
            hour_s
            for hour_s in hours_between(self.start_s, self.end_s)
            if str(datetime.fromtimestamp(hour_s, zone).hour) == hour
        ]

    @property
    def previous(self) -> Period:
        """The month before a month, the year before a year, else as many days before."""
        if re.fullmatch(r"\d{4}", self.name):
            return parse(str(self.first.year - 1), self.time_zone)
        if re.fullmatch(r"\d{4}-\d{2}", self.name):
            return parse(f"{self.first - timedelta(days=1):%Y-%m}", self.time_zone)
        length = self.last - self.first + timedelta(days=1)
        return _days(self.first - length, self.first - timedelta(days=1), self.time_zone)

    def compared(self, now_s: float) -> Period:
        """What to compare with: the period before, or as many of its days as have begun of a
        period that is not over."""
        before = self.previous
        if not self.start_s <= now_s < self.end_s:
            return before
        begun = (local_day(now_s, self.time_zone) - self.first).days
        last = min(before.first + timedelta(days=begun), before.last)
        return before if last == before.last else _days(before.first, last, self.time_zone)

    @property
    def next(self) -> Period:
        if re.fullmatch(r"\d{4}", self.name):
            return parse(str(self.first.year + 1), self.time_zone)
        if re.fullmatch(r"\d{4}-\d{2}", self.name):
            return parse(f"{self.last + timedelta(days=1):%Y-%m}", self.time_zone)
        length = self.last - self.first + timedelta(days=1)
        return _days(self.last + timedelta(days=1), self.last + length, self.time_zone)


def known_zone(name: str) -> bool:
    """Whether ``name`` is an IANA time zone."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def this_month(now_s: float, time_zone: str) -> Period:
    """The month of ``now_s`` in that zone."""
    return parse(f"{datetime.fromtimestamp(now_s, ZoneInfo(time_zone)):%Y-%m}", time_zone)


def parse(text: str, time_zone: str = "UTC") -> Period:
    """The period of that name. Raises BadPeriod."""
    if not known_zone(time_zone):
        raise BadPeriod(f"{time_zone!r} is no IANA time zone; write one like Europe/Berlin.")
    try:
        if re.fullmatch(r"\d{4}", text):
            year = int(text)
            return _named(text, date(year, 1, 1), date(year, 12, 31), time_zone)
        if re.fullmatch(r"\d{4}-\d{2}", text):
            first = date.fromisoformat(f"{text}-01")
            following = date(first.year + first.month // 12, first.month % 12 + 1, 1)
            return _named(text, first, following - timedelta(days=1), time_zone)
        if found := re.fullmatch(rf"{_DAY}(?:\.\.{_DAY})?", text):
            first = date.fromisoformat(found[1])
            return _days(first, date.fromisoformat(found[2] or found[1]), time_zone)
    except (ValueError, OverflowError) as error:
        if isinstance(error, BadPeriod):
            raise
    raise BadPeriod(
        f"{text!r} is no period; write 2026, 2026-10, 2026-10-07 or 2026-10-01..2026-10-14."
    )


def _days(first: date, last: date, time_zone: str) -> Period:
    if last < first:
        raise BadPeriod(f"{last} is before {first}; write the earlier day first.")
    if (last - first).days >= LONGEST_DAYS:
        raise BadPeriod(f"A period has at most {LONGEST_DAYS} days.")
    name = str(first) if first == last else f"{first}..{last}"
    return _named(name, first, last, time_zone)


def _named(name: str, first: date, last: date, time_zone: str) -> Period:
    if not 1971 <= first.year <= 9000:
        raise BadPeriod(f"{first.year} is outside what the ledger can hold.")
    return Period(name=name, first=first, last=last, time_zone=time_zone)


def local_day(unix_s: float, time_zone: str) -> date:
    """The local day of a moment."""
    return datetime.fromtimestamp(unix_s, UTC).astimezone(ZoneInfo(time_zone)).date()
