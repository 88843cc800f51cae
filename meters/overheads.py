"""Energy that is not the accelerators': host, building, manufacture, and Joulegate itself. Pure.

Each is a column of its own, with its evidence; nothing is folded into a request's joules, and
what is not known is None.
"""

from __future__ import annotations

from typing import NamedTuple

from meters.carbon import Range, default_embodied, modelled_host_j, overhead_j
from meters.types import Evidence, Window

# A data-centre CPU core with its share of package and memory under load: AMD EPYC 9654, 360 W TDP
# over 96 cores, is 3.75 W; with DRAM and the package's idle share, 5 W.
CORE_POWER_W = 5.0


class Figure(NamedTuple):
    """A figure and where it comes from; ``value`` None where it is not known."""

    value: float | None
    evidence: Evidence


def host_energy(window: Window) -> Figure:
    """Joules of CPU and DRAM in a window: metered where they were read, else a labelled model."""
    if window.host_energy_j is not None:
        return Figure(window.host_energy_j, window.evidence)
    return Figure(modelled_host_j(window.energy_j), Evidence.MODELLED)


def building_energy(it_energy_j: float, pue: float | None) -> Figure:
    """Joules of cooling and conversion on top of the machines' own: (PUE - 1) times those.

    None when the site's PUE is not known. Raises ValueError for a PUE below 1.
    """
    if pue is None:
        return Figure(None, Evidence.UNKNOWN)
    if pue < 1:
        raise ValueError(f"A PUE is 1 or more, not {pue}.")
    return Figure(overhead_j(it_energy_j, pue), Evidence.MODELLED)


def embodied(gpus: int, seconds: float, per_gpu_hour_g: Range | None = None) -> Range:
    """Grams of CO2e of manufacture that an interval carries, idle or not, for so many GPUs."""
    hours = gpus * seconds / 3600
    return Range(*(g * hours for g in per_gpu_hour_g or default_embodied()))


class OwnEnergy:
    """Joulegate's own energy: its processor seconds at a stated power, or its share of RAPL.

    Feed it the process's cumulative CPU seconds, and the host's cumulative joules and CPU seconds
    where both are known; differences are taken here.
    """

    def __init__(self, core_power_w: float = CORE_POWER_W) -> None:
        self._core_power_w = core_power_w
        self._cpu_s: float | None = None
        self._host: tuple[float, float] | None = None
        self.total_j = 0.0
        self.metered_j = 0.0  # the part of total_j that came from a host counter

    def add(
        self,
        cpu_s: float,
        host_energy_j: float | None = None,
        host_cpu_s: float | None = None,
    ) -> Figure:
        """Joules since the last call; 0 at the first. All arguments are cumulative counters."""
        before_s, self._cpu_s = self._cpu_s, cpu_s
        host = None if host_energy_j is None or host_cpu_s is None else (host_energy_j, host_cpu_s)
        before, self._host = self._host, host
        if before_s is None:
            return Figure(0.0, Evidence.MODELLED)
        used_s = max(0.0, cpu_s - before_s)
        share = _share_j(used_s, before, host)
        energy_j = used_s * self._core_power_w if share is None else share
        self.total_j += energy_j
        if share is not None:
            self.metered_j += energy_j
            return Figure(energy_j, Evidence.METERED)
        return Figure(energy_j, Evidence.MODELLED)


def _share_j(
    used_s: float, before: tuple[float, float] | None, now: tuple[float, float] | None
) -> float | None:
    """The process's share of the host's joules by processor time; None where it is not known."""
    if before is None or now is None:
        return None
    host_j, host_s = now[0] - before[0], now[1] - before[1]
    if host_j < 0 or host_s <= 0:
        return None
    return host_j * min(1.0, used_s / host_s)
