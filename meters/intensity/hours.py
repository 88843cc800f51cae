"""Local days as UTC hours. A day has 23 or 25 of them when clocks change."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from zoneinfo import ZoneInfo

from meters.intensity.types import HOUR_S


def hour_of(unix_s: float) -> int:
    """The Unix time at which the UTC hour of ``unix_s`` starts."""
    return int(unix_s // HOUR_S) * HOUR_S


def day_start_s(day: date, tz: str) -> int:
    """Unix time of local midnight. Raises ZoneInfoNotFoundError for an unknown IANA zone."""
    return int(datetime.combine(day, time(), ZoneInfo(tz)).timestamp())


def hours_between(start_s: int, end_s: int) -> list[int]:
    """The UTC hours that start in [start_s, end_s)."""
    first = -(-start_s // HOUR_S) * HOUR_S
    return list(range(first, end_s, HOUR_S))


def parse_hour(text: str) -> int:
    """Unix time of an ISO 8601 stamp with its offset ("2026-10-25T02:00:00+02:00" or "…Z").

    Raises ValueError for a stamp without an offset: it would mean two hours once a year.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no UTC offset; write it as {text}Z or {text}+00:00")
    return int(moment.timestamp())


def iso(unix_s: float) -> str:
    """UTC, to the second, ending in Z."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
