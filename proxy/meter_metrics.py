"""What /metrics says of meters: windows taken and refused, agents' clocks, and our own energy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from meters.intake import WindowIntake
from meters.local import LocalMeter
from proxy.own_energy import OwnMeter, own_meter


class MeterMetrics(Collector):
    """Read when the page is asked for; nothing is kept here.

    ``meters`` gives the meters that this process runs itself; ``unix_s`` the time; ``own`` knows
    what this process used. Unless it is ``alone``, some of a node's windows come to other replicas:
    those are not missing.
    """

    def __init__(
        self,
        intake: WindowIntake,
        meters: Callable[[], Sequence[LocalMeter]],
        unix_s: Callable[[], float] = time.time,
        own: OwnMeter | None = None,
        *,
        alone: bool = True,
    ) -> None:
        self._intake, self._meters = intake, meters
        self._unix_s, self._own = unix_s, own or own_meter()
        self._start_s = unix_s()
        self._alone = alone

    def collect(self) -> Iterator[Metric]:
        yield from self._windows()
        yield from self._agents()
        yield from self._local()
        used = self._own.look()
        own = CounterMetricFamily(
            "joulegate_own_energy_joules",
            "Joulegate's own energy: its share of the host's counter, or processor seconds at a "
            "stated power a core.",
            labels=["evidence"],
        )
        own.add_metric(["modelled"], used.modelled_j)
        own.add_metric(["metered"], used.metered_j)
        yield own

    def _windows(self) -> Iterator[Metric]:
        windows = CounterMetricFamily(
            "joulegate_meter_windows",
            "Windows that agents sent, by what became of them.",
            labels=["outcome", "reason"],
        )
        for (outcome, reason), count in sorted(self._intake.counts.copy().items()):
            windows.add_metric([outcome, reason], count)
        yield windows
        refused = CounterMetricFamily(
            "joulegate_meter_refused_joules",
            "Joules of refused windows, which entered no book.",
            labels=["reason"],
        )
        for reason, joules in sorted(self._intake.refused_j.copy().items()):
            refused.add_metric([reason], joules)
        yield refused

    def _agents(self) -> Iterator[Metric]:
        age = GaugeMetricFamily(
            "joulegate_meter_age_seconds",
            "Since the end of a node's newest window.",
            labels=["node"],
        )
        clock = GaugeMetricFamily(
            "joulegate_meter_clock_offset_seconds",
            "A node's clock less ours at its last batch, after its own correction.",
            labels=["node"],
        )
        missing = GaugeMetricFamily(
            "joulegate_meter_missing_windows",
            "Windows that a node dropped and said so by their numbers.",
            labels=["node"],
        )
        now_s = self._unix_s()
        for node, status in sorted(self._intake.nodes().items()):
            if status.last_end_s is not None:
                age.add_metric([node], now_s - status.last_end_s)
            if status.clock_off_s is not None:
                clock.add_metric([node], status.clock_off_s)
            missing.add_metric([node], status.missing)
        for node, last_end_s in sorted(self._intake.silent().items()):  # dead before our start
            age.add_metric([node], now_s - (self._start_s if last_end_s is None else last_end_s))
        yield from (age, clock, missing) if self._alone else (age, clock)

    def _local(self) -> Iterator[Metric]:
        dropped = CounterMetricFamily(
            "joulegate_meter_dropped_windows",
            "Windows of meters here that could not be closed, by reason.",
            labels=["node", "reason"],
        )
        problems = GaugeMetricFamily(
            "joulegate_meter_problems",
            "What is wrong with a meter here now: hardware, counter, engine or host.",
            labels=["node"],
        )
        closed = CounterMetricFamily(
            "joulegate_meter_closed_windows", "Windows that meters here closed.", labels=["node"]
        )
        for meter in self._meters():
            status = meter.status()
            closed.add_metric([meter.node], status.windows)
            problems.add_metric([meter.node], len(status.problems))
            for reason, count in sorted(status.dropped.items()):
                dropped.add_metric([meter.node, reason], count)
        yield from (closed, dropped, problems)
