"""The intensity of a zone at a moment, from memory, with a ladder for what is not known.

Reading takes no lock and does no I/O, so that the request path may ask. Writers replace a
zone's sorted hours whole; a reader sees either the old or the new list.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from bisect import bisect_right
from collections.abc import Iterable, Sequence

import msgspec

from meters.intensity.hours import hour_of, iso
from meters.intensity.table import AnnualTable
from meters.intensity.types import HOUR_S, Intensity, Observation, Tier

LIVE_S = 2 * HOUR_S
LAST_VALUE_S = 6 * HOUR_S
CLIMATOLOGY_S = 72 * HOUR_S
TRAILING_DAYS = 28
FEWEST_DAYS = 3  # a mean of fewer days is no climate
DAY_S = 24 * HOUR_S
RESTATED_SHARE = 0.01  # smaller changes are taken in silently
_KEPT_CLIMATES = 4096

log = logging.getLogger("joulegate.intensity")


class Restatement(msgspec.Struct, frozen=True, kw_only=True):
    """A source changed its mind by more than one percent about an hour it had given before."""

    zone: str
    hour_s: int
    before_g_per_kwh: float
    after_g_per_kwh: float
    source: str


class _Series:
    """One zone's hours, sorted; replaced whole on every change."""

    __slots__ = ("at", "hours")

    def __init__(self, at: dict[int, Observation]) -> None:
        self.at = at
        self.hours: Sequence[int] = sorted(at)

    def latest(self, hour_s: int) -> Observation | None:
        """The newest hour that is not after ``hour_s``."""
        place = bisect_right(self.hours, hour_s)
        return self.at[self.hours[place - 1]] if place else None


class IntensityBook:
    """Answers ``at(zone, unix_s)``; fed by sources through ``put``.

    The inventory uses average intensities. Marginal ones are kept apart and only ever answered
    by ``marginal_at``: mixing the two is the commonest mistake in carbon accounts.
    """

    def __init__(self, table: AnnualTable) -> None:
        self.table = table
        self.restatements: list[Restatement] = []
        self._series: dict[str, _Series] = {}
        self._marginal: dict[str, _Series] = {}
        self._lock = threading.Lock()
        self._digest = 0
        self._version = self._name_version()
        self._climates: dict[tuple[str, int], tuple[float | None, ...]] = {}

    @property
    def version(self) -> str:
        """Names the set of factors. The same contents give the same name on every replica."""
        return self._version

    @property
    def zones(self) -> tuple[str, ...]:
        """Zones with hourly figures."""
        return tuple(sorted(self._series))

    def at(self, zone: str | None, unix_s: float) -> Intensity:
        """The average intensity of ``zone`` in the hour of ``unix_s``.

        Always answers; ``tier`` says from how far down the ladder. ``None`` and unknown zones
        get the world's figure: never the place the caller happens to be in.
        """
        hour_s = hour_of(unix_s)
        region = self.table.regions.get(zone) if zone else None
        if region is not None and region.zone in self._series:
            zone = region.zone  # hours of the region's grid are nearer than its annual figure
        series = self._series.get(zone) if zone else None
        found = series.latest(hour_s) if series else None
        if zone and series and found:
            age_s = hour_s - found.hour_s
            if age_s <= LAST_VALUE_S:
                return self._answer(found, hour_s, _tier(found, age_s))
            if age_s <= CLIMATOLOGY_S:
                mean = self._climate(zone, series, hour_s)
                if mean is not None:
                    return Intensity(
                        zone=zone,
                        hour_s=hour_s,
                        g_per_kwh=mean,
                        source=found.source,
                        tier=Tier.CLIMATOLOGY,
                        estimated=True,
                        factor_type=found.factor_type,
                        method=f"mean of this hour over {TRAILING_DAYS} days",
                        fetched_s=found.fetched_s,
                        set_version=self._version,
                    )
        annual = self.table.annual(zone)
        return Intensity(
            zone=zone or "world",
            hour_s=hour_s,
            g_per_kwh=annual.g_per_kwh,
            source=annual.source,
            tier=annual.tier,
            estimated=True,
            method="annual mean",
            set_version=self._version,
        )

    def marginal_at(self, zone: str, unix_s: float) -> Intensity | None:
        """The marginal intensity, for decisions only; None when not known within six hours."""
        hour_s = hour_of(unix_s)
        series = self._marginal.get(zone)
        found = series.latest(hour_s) if series else None
        if found is None or hour_s - found.hour_s > LAST_VALUE_S:
            return None
        return self._answer(found, hour_s, _tier(found, hour_s - found.hour_s))

    def newest_s(self, zone: str) -> int | None:
        """The newest hour known of ``zone``."""
        series = self._series.get(zone)
        return series.hours[-1] if series and series.hours else None

    def hourly(
        self, zone: str, start_s: float, end_s: float, marginal: bool = False
    ) -> list[Observation]:
        """What sources said of the hours that start in [start_s, end_s)."""
        series = (self._marginal if marginal else self._series).get(zone)
        if series is None:
            return []
        return [series.at[h] for h in series.hours if start_s <= h < end_s]

    def put(self, observations: Iterable[Observation]) -> list[Restatement]:
        """Take figures in; the later word on an hour replaces the earlier one.

        Returns the restatements of more than one percent, which are also logged.
        """
        restated: list[Restatement] = []
        with self._lock:
            fresh: dict[tuple[bool, str], dict[int, Observation]] = {}
            for seen in observations:
                marginal = seen.factor_type == "marginal"
                shelf = self._marginal if marginal else self._series
                key = (marginal, seen.zone)
                if key not in fresh:
                    old = shelf.get(seen.zone)
                    fresh[key] = dict(old.at) if old else {}
                before = fresh[key].get(seen.hour_s)
                fresh[key][seen.hour_s] = seen
                self._digest ^= (_digest(before) if before else 0) ^ _digest(seen)
                if before is None or marginal:
                    continue
                change = abs(seen.g_per_kwh - before.g_per_kwh)
                if change > RESTATED_SHARE * before.g_per_kwh:
                    restated.append(_restatement(before, seen))
            for (marginal, zone), at in fresh.items():
                (self._marginal if marginal else self._series)[zone] = _Series(at)
            if fresh:
                self._climates.clear()
                self._version = self._name_version()
            self.restatements.extend(restated)
        for one in restated:
            log.info(
                "intensity restated: zone=%s hour=%s before=%.1f after=%.1f source=%s",
                one.zone,
                iso(one.hour_s),
                one.before_g_per_kwh,
                one.after_g_per_kwh,
                one.source,
            )
        return restated

    def _answer(self, found: Observation, hour_s: int, tier: Tier) -> Intensity:
        return Intensity(
            zone=found.zone,
            hour_s=hour_s,
            g_per_kwh=found.g_per_kwh,
            source=found.source,
            tier=tier,
            estimated=found.estimated or tier not in (Tier.HOURLY,),
            of_hour_s=found.hour_s,
            factor_type=found.factor_type,
            method=found.method,
            fetched_s=found.fetched_s,
            set_version=self._version,
        )

    def _climate(self, zone: str, series: _Series, hour_s: int) -> float | None:
        day = hour_s // DAY_S
        means = self._climates.get((zone, day))
        if means is None:
            means = _means(series, day)
            if len(self._climates) >= _KEPT_CLIMATES:
                self._climates.clear()
            self._climates[zone, day] = means
        return means[hour_s // HOUR_S % 24]

    def _name_version(self) -> str:
        return f"{self.table.version}-{self._digest:012x}"


def _tier(found: Observation, age_s: int) -> Tier:
    if age_s == 0:
        return Tier.ESTIMATED if found.estimated else Tier.HOURLY
    return Tier.LIVE if age_s <= LIVE_S else Tier.LAST_VALUE


def _means(series: _Series, day: int) -> tuple[float | None, ...]:
    """Mean by UTC hour over the days before ``day``: no hour may look at its own future."""
    values: list[list[float]] = [[] for _ in range(24)]
    for hour_s in series.hours:
        if (day - TRAILING_DAYS) * DAY_S <= hour_s < day * DAY_S:
            values[hour_s // HOUR_S % 24].append(series.at[hour_s].g_per_kwh)
    return tuple(sum(v) / len(v) if len(v) >= FEWEST_DAYS else None for v in values)


def _digest(seen: Observation) -> int:
    """48 bits of what matters for an account; when it was fetched does not."""
    text = f"{seen.zone}|{seen.hour_s}|{seen.g_per_kwh!r}|{seen.source}|{seen.factor_type}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _restatement(before: Observation, after: Observation) -> Restatement:
    return Restatement(
        zone=after.zone,
        hour_s=after.hour_s,
        before_g_per_kwh=before.g_per_kwh,
        after_g_per_kwh=after.g_per_kwh,
        source=after.source,
    )
