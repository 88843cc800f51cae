"""What the page Where shows: energy by hour of the day, and how clean the grids are by hour."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import numpy as np

from meters.intensity import IntensityBook
from proxy.dashboard import charts
from proxy.dashboard.account import Account
from proxy.dashboard.links import View
from proxy.dashboard.numbers import Numbers
from proxy.dashboard.periods import Period, parse
from proxy.dashboard.snapshot import Snapshot
from proxy.dashboard.viewers import Viewer

if TYPE_CHECKING:
    from proxy.dashboard.pages import Dashboard

CLEANEST = 8  # zones shown beside the team's own; the others on demand
UJ_PER_KWH = 3.6e12
TIER_WORDS = {
    "hourly": "this hour, actual",
    "hourly_estimated": "this hour, estimated or provisional",
    "live": "an hour at most 2 h older",
    "last_value": "an hour at most 6 h older",
    "climatology": "mean of this hour over 28 days",
    "annual_zone": "annual mean of the zone",
    "annual_country": "annual mean of the country",
    "world": "annual mean of the world",
    "fixed": "set by hand",
}


def where(
    dashboard: Dashboard, view: View, s: Snapshot, n: Numbers, query: Mapping[str, str], who: Viewer
) -> dict[str, Any]:
    """Hours of the day by month for each zone, the team's energy over them, regions beside."""
    book = dashboard.snapshots.book
    zone = ZoneInfo(s.time_zone)
    by_hour = [0.0] * 24
    for line in s.lines["hour"]:
        at = datetime.fromisoformat(line.key.replace("Z", "+00:00")).astimezone(zone)
        by_hour[at.hour] += line.facility_uj / UJ_PER_KWH
    by_zone = _zone_hours(dashboard.snapshots.account(view.team, view.period, s.simulated), zone)
    grids = []
    for factor in s.factors:
        own = by_zone.get(factor.zone, [0.0] * 24)
        months, rows, values = _heat(book, factor.zone, view.period, zone, n)
        link = partial(_hour_figures, view, factor.zone, months)
        link_own = partial(_hour_requests, view, factor.zone)
        chart = (
            charts.heat(
                rows,
                values,
                lambda g: f"{n.plain(g)} g/kWh",
                f"{factor.zone}: g/kWh by hour and month, and your energy there",
                own,
                lambda kwh: n.energy(kwh * UJ_PER_KWH),
                link,
                link_own,
            )
            if any(v is not None for row in values for v in row)
            else None
        )
        grids.append((factor, chart, rows, values, own, link, link_own))
    zones = sorted(
        {r.zone for r in book.table.regions.values()}
        | {f.zone for f in s.factors}
        | set(book.zones)
    )
    now_s = dashboard.clock()
    regions = sorted((book.at(z, now_s) for z in zones if z != "world"), key=lambda i: i.g_per_kwh)
    return {
        "energy_chart": charts.columns(
            by_hour,
            lambda kwh: n.energy(kwh * UJ_PER_KWH),
            "Energy by hour of the day",
            lambda hour: view.link("requests", hour=str(hour)),
        ),
        "energy_by_hour": by_hour,
        "grids": grids,
        "regions": regions,
        "near": [
            i
            for place, i in enumerate(regions)
            if place < CLEANEST or i.zone in {f.zone for f in s.factors}
        ],
        "used_zones": {f.zone for f in s.factors},
        "tier_words": TIER_WORDS,
        "marginal": [m for f in s.factors if (m := book.marginal_at(f.zone, now_s)) is not None],
        "region_map": sorted(book.table.regions.values(), key=lambda r: r.name),
        "asked_zone": query.get("zone", ""),
        "asked_hour": query.get("hour", ""),
        "figures": [
            seen
            for hour_s in view.period.hours_of_day(query.get("hour", ""))
            for seen in book.hourly(query.get("zone", ""), hour_s, hour_s + 1)
        ],
    }


def _hour_figures(view: View, zone: str, months: list[str], row: int, hour: int) -> str:
    """Where a cell of a zone's hours and months leads: to its figures, day by day."""
    return view.link("where", period=months[row], zone=zone, hour=str(hour)) + "#figures"


def _hour_requests(view: View, zone: str, hour: int) -> str:
    return view.link("requests", zone=zone, hour=str(hour))


def _zone_hours(account: Account, zone: ZoneInfo) -> dict[str, list[float]]:
    """Kilowatt-hours at the facility by grid zone and local hour of the day."""
    c = account.cells
    hours, at = np.unique(c.hour_s, return_inverse=True)
    local = np.array([datetime.fromtimestamp(h, zone).hour for h in hours.tolist()] or [0])
    found: dict[str, list[float]] = {}
    for place, name in enumerate(account.zones):
        mine = c.zone == place
        kwh = np.zeros(24)
        np.add.at(kwh, local[at[mine]], (c.energy_uj + c.overhead_uj)[mine] / UJ_PER_KWH)
        found[name or "world"] = kwh.tolist()
    return found


def _heat(
    book: IntensityBook, name: str, period: Period, zone: ZoneInfo, n: Numbers
) -> tuple[list[str], list[str], list[list[float | None]]]:
    """Up to twelve months until the period's end, as in a link and as words: mean g/kWh by local
    hour; None: no figures."""
    first = date(period.last.year - 1, period.last.month, 1)
    months = []
    for _ in range(12):
        first = date(first.year + first.month // 12, first.month % 12 + 1, 1)
        months.append(first)
    names, rows, values = [], [], []
    for month in months:
        span = parse(f"{month:%Y-%m}", period.time_zone)
        sums: list[list[float]] = [[] for _ in range(24)]
        for seen in book.hourly(name, span.start_s, span.end_s):
            at = datetime.fromtimestamp(seen.hour_s, UTC).astimezone(zone)
            sums[at.hour].append(seen.g_per_kwh)
        if any(sums):
            names.append(span.name)
            rows.append(n.month(month))
            values.append([sum(v) / len(v) if v else None for v in sums])
    return names, rows, values
