"""Energy by cause and carbon as Prometheus counters, in joules and grams.

A share of a window is counted when the window is divided, under the request it belongs to; shares
of requests that are still running wait for their record. Where none comes within WAIT_S, since no
meter reads there or it is away, the estimate is counted, and shares that come later are not. Each
replica counts the windows that it divided, so sums over replicas are right. No user or key is ever
a label.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
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
    ) -> None:
        self._book = book
        self.sites = sites
        # Zones that are asked for now: of others the newest hour is of long ago, as it should be.
        self.fetched: Callable[[], Collection[str]] | None = None
        self._request_counted = request_counted
        self._window_counted = window_counted
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._waiting: OrderedDict[str, list[_Waiting]] = OrderedDict()
        self._unmetered: OrderedDict[str, tuple[float, _Known, _Waiting]] = OrderedDict()
        self._estimated: OrderedDict[str, None] = OrderedDict()  # counted without a window
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
            "Age of the newest hour known of a zone.",
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
            if record.energy_j and not shares:
                self._expect(record, known)
            self._count_estimates(record.end_s)
        self._count_avoided(record)

    def _expect(self, record: UsageRecord, known: _Known) -> None:
        """A request with an estimate and, so far, no window."""
        estimate = _Waiting(record.energy_j or 0.0, record.start_s, record.evidence)
        if self.sites.is_hosted(record.backend, record.evidence is Evidence.MODELLED):
            self._count(known, estimate)
        else:
            self._unmetered[record.request_id] = record.end_s + WAIT_S, known, estimate

    def _count_estimates(self, now_s: float) -> None:
        """Count the estimates of requests that no window came for."""
        waiting = self._unmetered
        while waiting:
            request_id, (due_s, known, estimate) = next(iter(waiting.items()))
            if due_s > now_s and len(waiting) <= REMEMBERED:
                break
            del waiting[request_id]
            self._count(known, estimate)
            self._estimated[request_id] = None
            if len(self._estimated) > REMEMBERED:
                self._estimated.popitem(last=False)

    def divided(self, attribution: Attribution) -> None:
        """Count a divided window."""
        if self._window_counted is not None:
            self._window_counted(attribution)
        middle_s = (attribution.start_s + attribution.end_s) / 2
        for share in attribution.shares:
            if share.energy_j <= 0 or share.request_id in self._estimated:
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
        """Set the gauges of every zone in use, and count what is due."""
        self._count_estimates(now_s)
        zones = {site.zone for site in self.sites.nodes.values() if site.zone}
        fetched = None if self.fetched is None else self.fetched()
        self.intensity.clear()  # of sources that were used before, and of zones that are not now
        self.age.clear()
        for zone in sorted(zones | set(self._book.zones)):
            answer = self._book.at(zone, now_s)
            self.intensity.labels(zone, answer.source).set(answer.g_per_kwh)
            newest_s = self._book.newest_s(zone)
            if newest_s is not None and (fetched is None or zone in fetched):
                self.age.labels(zone).set(max(0.0, now_s - newest_s))

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
        if not self.sites.is_hosted(known.backend, part.evidence is Evidence.MODELLED):
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
