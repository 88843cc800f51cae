"""Ledgers with made-up rows for the dashboard's tests: a rich month, a first day, nothing."""

from __future__ import annotations

from pathlib import Path

from meters.intensity import IntensityBook, Observation
from meters.intensity.hours import hours_between
from meters.intensity.table import AnnualTable
from meters.ledger import Ledger
from meters.types import Attribution, Evidence, UsageRecord, Window
from proxy.dashboard.periods import parse
from proxy.dashboard.sample import sample_hours

TIME_ZONE = "Europe/Berlin"
MONTH = parse("2026-10", TIME_ZONE)


def fill(
    path: Path,
    start_s: int,
    hours: int,
    evidence: Evidence = Evidence.METERED,
    scale: float = 0.35,
) -> Ledger:
    """A ledger with the sample's rows from ``start_s``, labelled with ``evidence``."""
    ledger = Ledger(str(path))
    records: list[UsageRecord] = []
    attributions: list[Attribution] = []
    windows: list[Window] = []
    for hour in sample_hours(start_s, hours, evidence, scale=scale):
        records += hour.records
        attributions += hour.attributions
        windows += hour.windows
    ledger.write(records, attributions, windows)
    return ledger


def two_months(path: Path, evidence: Evidence = Evidence.METERED, scale: float = 0.35) -> Ledger:
    """October 2026 and the September before it, in Berlin; October has a day of 25 hours."""
    start_s = MONTH.previous.start_s
    return fill(path, start_s, (MONTH.end_s - start_s) // 3600, evidence, scale)


def hourly_book() -> IntensityBook:
    """Hours of DE and FR for both months: cleanest at 13:00 and at 03:00 UTC, by turns."""
    book = IntensityBook(AnnualTable())
    for zone, middle, best in (("DE", 330.0, 13), ("FR", 45.0, 3)):
        book.put(
            Observation(
                zone=zone,
                hour_s=hour_s,
                g_per_kwh=middle * (0.7 + 0.05 * min(abs(hour_s // 3600 % 24 - best), 12)),
                source="electricity_maps",
                estimated=hour_s // 3600 % 7 == 0,
            )
            for hour_s in hours_between(MONTH.previous.start_s, MONTH.end_s)
        )
    return book
