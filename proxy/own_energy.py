"""Joulegate's own energy in this process: metered where the host's counter can be read, else
modelled from its processor time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import msgspec

from meters.rapl import RaplMeter
from meters.types import MeterUnavailable

# A data-centre CPU core with its share of package and memory under load: AMD EPYC 9654, 360 W TDP
# over 96 cores, is 3.75 W; with DRAM and the package's idle share, 5 W.
CORE_POWER_W = 5.0
# A package's counter wraps after minutes at full load; between two looks further apart than this
# it may have wrapped unseen, so that stretch is modelled.
LONGEST_GAP_S = 60.0


class OwnUse(msgspec.Struct, frozen=True, kw_only=True):
    """What this process used since its start."""

    cpu_s: float
    seconds: float
    energy_j: float
    metered_j: float  # the part of it that is a share of the host's counter
    core_w: float = CORE_POWER_W  # what the rest was modelled with

    @property
    def modelled_j(self) -> float:
        return self.energy_j - self.metered_j


class OwnMeter:
    """Adds up from look to look; any thread may look."""

    def __init__(
        self,
        *,
        host: Callable[[], RaplMeter] = RaplMeter,
        stat: Path = Path("/proc/stat"),
        cpu_s: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``host`` opens the host's energy counter; ``stat`` has its processors' time."""
        self._stat, self._cpu_s, self._clock = stat, cpu_s, clock
        self._began_s = self._looked_s = clock()
        self._lock = threading.Lock()
        self._used_s = 0.0  # all of this process's life counts
        self._seen: tuple[float, float] | None = None  # the host's joules and processor seconds
        self._energy_j = self._metered_j = 0.0
        try:
            self._host: RaplMeter | None = host()
        except MeterUnavailable:
            self._host = None

    def look(self) -> OwnUse:
        """What was used until now."""
        with self._lock:
            now_s, cpu_s = self._clock(), self._cpu_s()
            before, self._seen = self._seen, self._host_counters()
            if now_s - self._looked_s > LONGEST_GAP_S:
                before = None
            used_s = max(0.0, cpu_s - self._used_s)
            share_j = _share_j(used_s, before, self._seen)
            self._looked_s, self._used_s = now_s, cpu_s
            self._energy_j += used_s * CORE_POWER_W if share_j is None else share_j
            self._metered_j += share_j or 0.0
            return OwnUse(
                cpu_s=cpu_s,
                seconds=now_s - self._began_s,
                energy_j=self._energy_j,
                metered_j=self._metered_j,
            )

    def _host_counters(self) -> tuple[float, float] | None:
        """The host's joules and its processors' seconds, both since some time before; None where
        one of them cannot be read."""
        cpu_s = busy_s(self._stat)
        if self._host is None or cpu_s is None:
            return None
        try:
            return sum(reading.energy_j for reading in self._host.read()), cpu_s
        except MeterUnavailable:
            return None


def _share_j(
    used_s: float, before: tuple[float, float] | None, now: tuple[float, float] | None
) -> float | None:
    """The process's share of the host's joules by processor time; None where it is not known."""
    if before is None or now is None:
        return None
    host_j, host_s = now[0] - before[0], now[1] - before[1]
    if host_j < 0 or host_s <= 0:  # a counter began anew
        return None
    return host_j * min(1.0, used_s / host_s)


def busy_s(stat: Path) -> float | None:
    """Seconds that all processors of this machine worked since its start; None where unknown."""
    try:
        first = stat.read_text().split("\n", 1)[0].split()
        ticks = [int(part) for part in first[1:]]
        idle = ticks[3] + ticks[4]  # idle, and waiting for a disk
        return (sum(ticks[:8]) - idle) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


@cache
def own_meter() -> OwnMeter:
    """This process's."""
    return OwnMeter()
