"""Prometheus counters and histograms whose increments are plain additions.

prometheus_client's own take a lock and look labels up by texts made anew for each increment; a
request makes a dozen. These are added to from the event loop only, and read when scraped.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

Labels = tuple[str, ...]


class Tally(Collector):
    """A counter by labels, or one number when it has none."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self.name = name
        self.documentation = documentation
        self.labels = tuple(labels)
        self.sums: defaultdict[Labels, float] = defaultdict(float)
        if not labels:
            self.sums[()] = 0.0
        registry.register(self)

    def add(self, labels: Labels, amount: float = 1.0) -> None:
        """``labels`` in the order of the names. Raises ValueError for a negative amount."""
        if amount < 0:
            raise ValueError(f"{self.name} never falls: {amount}")
        self.sums[labels] += amount

    def describe(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self.name, self.documentation, labels=self.labels)

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self.name, self.documentation, labels=self.labels)
        for labels, value in list(self.sums.items()):
            family.add_metric(labels, value)
        yield family


class Spread(Collector):
    """A histogram by labels."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        """``bounds``: upper ends of the buckets, ascending; one without end comes on top."""
        self.name = name
        self.documentation = documentation
        self.labels = tuple(labels)
        self.bounds = tuple(map(float, bounds))
        self._ends = [*map(repr, self.bounds), "+Inf"]
        self._counts: dict[Labels, list[int]] = {}
        self._sums: defaultdict[Labels, float] = defaultdict(float)
        registry.register(self)

    def observe(self, labels: Labels, value: float) -> None:
        """Take one value in."""
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * len(self._ends)
        counts[bisect_left(self.bounds, value)] += 1
        self._sums[labels] += value

    def describe(self) -> Iterator[Metric]:
        yield HistogramMetricFamily(self.name, self.documentation, labels=self.labels)

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self.name, self.documentation, labels=self.labels)
        for labels, counts in list(self._counts.items()):
            running, buckets = 0, []
            for end, count in zip(self._ends, counts, strict=True):
                running += count
                buckets.append((end, running))
            family.add_metric(labels, buckets, self._sums[labels])
        yield family
