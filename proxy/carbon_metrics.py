"""Energy by cause and carbon as Prometheus counters, in joules and grams.

A share of a window is counted when the window is divided, under the request it belongs to; shares
of requests that are still running wait for their record. Where none comes within WAIT_S, another
replica may have divided its windows: the ledger knows. Where it knows none either, since no meter
reads there or it is away, the estimate is counted, and shares that come later are not. Each replica
counts the requests that it served, so sums over replicas are right. No user or key is ever a label.
"""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Gauge

from meters.carbon import modelled_host_j, operational_g, overhead_j
from meters.intensity import IntensityBook
from meters.types import CACHE_HITS, Attribution, Evidence, UsageRecord
from proxy.dashboard.sites import Sites
from proxy.flight import Flight
from proxy.tallies import Tally

REMEMBERED = 50_000  # requests whose windows may still come, and shares whose request may
WAIT_S = 30.0  # windows are divided some 20 s after their end at the latest
METHOD = "location"


class _Known(NamedTuple):
    """What the labels of a request's energy need."""

    team: str
    model: str
    backend: str
    zone: str
    pue: float
    g_per_kwh: float | None  # set by this organisation; None: the grid's


class _Waiting(NamedTuple):
    """Energy at a moment: a share whose request is not recorded yet, or an estimate."""

    energy_j: float
    at_s: float
    evidence: Evidence


class CarbonMetrics:
    """Counters of energy and carbon. Implements accounts.Observer, and hands on to ``after``.

    ``clock`` gives Unix time; ``refresh`` sets the gauges and is called before they are read.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        book: IntensityBook,
        sites: Sites,
        request_counted: Callable[[Flight, UsageRecord], None] | None = None,
        window_counted: Callable[[Attribution], None] | None = None,
        alone: bool = True,
    ) -> None:
        """``alone``: no other process serves requests on the same nodes."""
        self._alone = alone
        self._book = book
        self.sites = sites
        # Zones that are asked for now: of others the newest hour is of long ago, as it should be.
        self.fetched: Callable[[], Collection[str]] | None = None
        self._begun_s = time.time()
        self._request_counted = request_counted
        self._window_counted = window_counted
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._waiting: OrderedDict[str, list[_Waiting]] = OrderedDict()
        self._unmetered: OrderedDict[str, tuple[float, _Known, _Waiting]] = OrderedDict()
        self._counted: OrderedDict[str, None] = OrderedDict()  # without a window of ours
        self.energy = Tally(
            "joulegate_energy_joules",
            "Energy by cause: metered shares of requests, or their estimate where no meter reads.",
            ["team", "model", "backend", "component", "evidence"],
            registry,
        )
        self.co2e = Tally(
            "joulegate_co2e_grams",
            "Operational CO2e, location-based: energy with host and facility times intensity.",
            ["team", "backend", "zone", "method"],
            registry,
        )
        self.avoided = Tally(
            "joulegate_avoided_co2e_grams",
            "Counterfactual less served as estimated; requests that avoid nothing count as zero.",
            ["team", "lever", "bound"],
            registry,
        )
        self.unattributed = Tally(
            "joulegate_energy_unattributed_joules",
            "Metered energy that nobody can be charged for.",
            [],
            registry,
        )
        self.intensity = Gauge(
            "joulegate_grid_intensity_grams_per_kwh",
            "Grid intensity used for a zone now.",
            ["zone", "source"],
            registry=registry,
        )
        self.age = Gauge(
            "joulegate_grid_intensity_age_seconds",
            "Age of the newest hour known of a zone; since the start where a source gave none yet.",
            ["zone"],
            registry=registry,
        )

    def request(self, flight: Flight, record: UsageRecord) -> None:
        """Count a finished request, and the shares that waited for it."""
        if self._request_counted is not None:
            self._request_counted(flight, record)
        self.finished(record)

    def finished(self, record: UsageRecord) -> None:
        """Likewise, from the record alone."""
        if record.backend:
            known = self._labels(record)
            self._known[record.request_id] = known
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
            shares = self._waiting.pop(record.request_id, ())
            for share in shares:
                self._count(known, share)
            self._expect(record, known, bool(shares))
        self._count_avoided(record)

    def _expect(self, record: UsageRecord, known: _Known, metered: bool) -> None:
        """Count what is of others' APIs; what a window may still say of an engine waits."""
        hosted = self.sites.is_hosted(record.backend, record.evidence is Evidence.MODELLED)
        whole_j = record.energy_j or 0.0
        hosted_j = whole_j if hosted and record.hosted_j is None else record.hosted_j or 0.0
        if hosted_j > 0:
            self._count(known, _Waiting(hosted_j, record.start_s, record.evidence))
        if whole_j - hosted_j > 0 and not metered:
            estimate = _Waiting(whole_j - hosted_j, record.start_s, record.evidence)
            self._unmetered[record.request_id] = record.end_s + WAIT_S, known, estimate
            if len(self._unmetered) > REMEMBERED:
                self.count_late([next(iter(self._unmetered))], {})

    def late(self, now_s: float) -> list[str]:
        """Requests that no window came for, here, though it is time."""
        due = itertools.takewhile(lambda one: one[1][0] <= now_s, self._unmetered.items())
        return [request_id for request_id, _ in due]

    def count_late(self, request_ids: Iterable[str], metered_j: Mapping[str, float]) -> None:
        """Count these: what windows of other replicas gave them, or else what was estimated."""
        for request_id in request_ids:
            waiting = self._unmetered.pop(request_id, None)
            if waiting is None:
                continue  # a window came meanwhile
            _, known, part = waiting
            read_j = metered_j.get(request_id)
            if read_j is not None:
                made_up = part.evidence is Evidence.SIMULATED
                how = Evidence.SIMULATED if made_up else Evidence.METERED
                part = _Waiting(read_j, part.at_s, how)
            self._count(known, part)
            self._counted[request_id] = None
            if len(self._counted) > REMEMBERED:
                self._counted.popitem(last=False)

    def divided(self, attribution: Attribution) -> None:
        """Count a divided window."""
        if self._window_counted is not None:
            self._window_counted(attribution)
        middle_s = (attribution.start_s + attribution.end_s) / 2
        for share in attribution.shares:
            if share.energy_j <= 0 or share.request_id in self._counted:
                continue
            self._unmetered.pop(share.request_id, None)
            part = _Waiting(share.energy_j, middle_s, attribution.evidence)
            known = self._known.get(share.request_id)
            if known is not None:
                self._count(known, part)
                continue
            self._waiting.setdefault(share.request_id, []).append(part)
            if len(self._waiting) > REMEMBERED:
                _, lost = self._waiting.popitem(last=False)
                if self._alone:  # else others count what they served
                    self.unattributed.add((), sum(each.energy_j for each in lost))
        if attribution.idle_j > 0:
            site = self.sites.site(attribution.node)
            node = _Known(
                site.owner or "",
                "",
                attribution.node,
                site.zone or "",
                site.pue or self.sites.default_pue,
                site.g_per_kwh,
            )
            self._count(node, _Waiting(attribution.idle_j, middle_s, attribution.evidence), "idle")
        if attribution.unattributed_j > 0:
            self.unattributed.add((), attribution.unattributed_j)

    def refresh(self, now_s: float) -> None:
        """Set the gauges of every zone in use."""
        zones = {site.zone for site in self.sites.nodes.values() if site.zone}
        zones |= set(self._book.zones)
        fetched = self._book.zones if self.fetched is None else self.fetched()
        self.intensity.clear()  # of sources that were used before, and of zones that are not now
        self.age.clear()
        for zone in sorted(zones | set(fetched)):
            answer = self._book.at(zone, now_s)
            self.intensity.labels(zone, answer.source).set(answer.g_per_kwh)
            if zone in fetched:
                newest_s = self._book.newest_s(zone)
                self.age.labels(zone).set(
                    max(0.0, now_s - (self._begun_s if newest_s is None else newest_s))
                )

    def _labels(self, record: UsageRecord) -> _Known:
        site = self.sites.site(record.node or "")
        return _Known(
            record.team,
            record.group or record.backend or "",
            record.backend or "",
            record.zone or site.zone or "",
            record.pue or site.pue or self.sites.default_pue,
            site.g_per_kwh,
        )

    def _count(self, known: _Known, part: _Waiting, component: str = "gpu_active") -> None:
        labels = known.team, known.model, known.backend
        evidence = part.evidence.value
        self.energy.add((*labels, component, evidence), part.energy_j)
        whole_j = part.energy_j
        read = part.evidence is Evidence.METERED  # of an engine that was asked before an API
        if read or not self.sites.is_hosted(known.backend, part.evidence is Evidence.MODELLED):
            host_j = modelled_host_j(part.energy_j)
            told = evidence if part.evidence is Evidence.SIMULATED else Evidence.MODELLED.value
            self.energy.add((*labels, "host", told), host_j)
            whole_j += host_j
        self.energy.add((*labels, "overhead", evidence), overhead_j(whole_j, known.pue))
        g_per_kwh = known.g_per_kwh
        if g_per_kwh is None:
            g_per_kwh = self._book.at(known.zone or None, part.at_s).g_per_kwh
        grams = operational_g(whole_j, known.pue, g_per_kwh)
        method = METHOD if part.evidence is not Evidence.SIMULATED else "simulated"
        self.co2e.add((known.team, known.backend, known.zone or "world", method), grams)

    def _count_avoided(self, record: UsageRecord) -> None:
        if record.counterfactual_carbon_g is None or record.carbon_g is None or record.simulated:
            return
        low_j, high_j = record.energy_low_j, record.energy_high_j
        middle = record.energy_j or 0.0
        width = 0.0
        if low_j is not None and high_j is not None and middle > 0:
            width = (high_j - low_j) / 2 / middle
        avoided = record.counterfactual_carbon_g - record.carbon_g
        half = width * (record.counterfactual_carbon_g**2 + record.carbon_g**2) ** 0.5
        lever = "cache" if record.cache in CACHE_HITS else "route"
        for bound, grams in (("low", avoided - half), ("mid", avoided), ("high", avoided + half)):
            self.avoided.add((record.team, lever, bound), max(0.0, grams))
