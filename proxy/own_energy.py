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

from meters.overheads import CORE_POWER_W, OwnEnergy
from meters.rapl import RaplMeter
from meters.types import MeterUnavailable

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
        self._energy = OwnEnergy()
        self._energy.add(0.0)  # all of this process's life counts
        try:
            self._host: RaplMeter | None = host()
        except MeterUnavailable:
            self._host = None

    def look(self) -> OwnUse:
        """What was used until now."""
        with self._lock:
            now_s, cpu_s = self._clock(), self._cpu_s()
            host_j, host_cpu_s = self._host_energy_j(), busy_s(self._stat)
            if now_s - self._looked_s > LONGEST_GAP_S:
                self._energy.add(cpu_s)  # modelled, and the host's counters begin anew
            self._looked_s = now_s
            self._energy.add(cpu_s, host_j, host_cpu_s)
            return OwnUse(
                cpu_s=cpu_s,
                seconds=now_s - self._began_s,
                energy_j=self._energy.total_j,
                metered_j=self._energy.metered_j,
            )

    def _host_energy_j(self) -> float | None:
        if self._host is None:
            return None
        try:
            return sum(reading.energy_j for reading in self._host.read())
        except MeterUnavailable:
            return None


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
