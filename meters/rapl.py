"""CPU and DRAM energy through Linux powercap (Intel RAPL; AMD's CPUs appear there too).

Files, units (microjoules) and ranges: Linux Documentation/power/powercap/powercap.rst. The
counter is updated about every millisecond and wraps at max_energy_range_uj, on servers after a
few minutes at full load.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from meters.types import Evidence, MeterUnavailable, Reading

SYSFS_ROOT = "/sys/class/powercap"
# More than any one CPU package draws (AMD EPYC 9965: 500 W default TDP): a larger step between two
# looks is a counter that was reset, not one that wrapped.
MAX_ZONE_POWER_W = 2_000.0


class _Zone(NamedTuple):
    device: str
    energy: Path
    range_j: float


class RaplMeter:
    """One reading a CPU package ("cpu0") and a DRAM domain ("dram0").

    Cores and uncore are inside the package and left out; psys spans them all and is too. Where
    DRAM has no domain (most desktop parts) its energy is not in any figure.
    """

    name = "rapl"
    evidence = Evidence.METERED
    # update about every millisecond of at most a few hundred watts
    resolution_j: float | None = 0.5

    def __init__(
        self,
        root: str | Path = SYSFS_ROOT,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._zones = _zones(Path(root))
        self._seen: dict[str, tuple[float, float]] = {}  # device: when, raw joules
        self._wrapped_j: dict[str, float] = {}
        self.read()

    def read(self) -> list[Reading]:
        """All zones, now, with wraps taken out. Raises MeterUnavailable."""
        readings = []
        for zone in self._zones:
            at_s = self._clock()
            raw_j = _energy_j(zone.energy)
            readings.append(Reading(zone.device, at_s, self._unwrapped_j(zone, at_s, raw_j)))
        return readings

    def close(self) -> None:
        """Nothing is held open."""

    def _unwrapped_j(self, zone: _Zone, at_s: float, raw_j: float) -> float:
        before = self._seen.get(zone.device)
        self._seen[zone.device] = (at_s, raw_j)
        if before is not None and raw_j < before[1]:
            step_j = raw_j + zone.range_j - before[1]
            seconds = max(at_s - before[0], 0.001)
            if step_j <= MAX_ZONE_POWER_W * seconds and seconds < zone.range_j / MAX_ZONE_POWER_W:
                self._wrapped_j[zone.device] = self._wrapped_j.get(zone.device, 0.0) + zone.range_j
            else:
                # may have wrapped more than once, or was reset: readers see it fall
                self._wrapped_j[zone.device] = 0.0
        return raw_j + self._wrapped_j.get(zone.device, 0.0)


def _zones(root: Path) -> list[_Zone]:
    if not root.is_dir():
        raise MeterUnavailable(
            f"{root} does not exist: this kernel or virtual machine shows no RAPL counters."
        )
    zones = []
    for path in sorted(root.iterdir()):
        try:
            name = (path / "name").read_text().strip()
        except OSError:
            continue
        if name.startswith("package-"):
            device = f"cpu{name.removeprefix('package-')}"
        elif name == "dram":
            # intel-rapl:1:0 belongs to package 1
            device = f"dram{path.name.split(':')[1]}"
        else:
            continue
        try:
            range_j = int((path / "max_energy_range_uj").read_text()) / 1e6
        except (OSError, ValueError):
            continue
        zones.append(_Zone(device, path / "energy_uj", range_j))
    if not zones:
        raise MeterUnavailable(f"{root} names no CPU package: load the intel_rapl_msr module.")
    return zones


def _energy_j(path: Path) -> float:
    try:
        return int(path.read_text()) / 1e6
    except PermissionError:
        raise MeterUnavailable(
            f"{path} is readable by root only (Linux 5.10 and later, CVE-2020-8694). Give the "
            "meter's user CAP_DAC_READ_SEARCH, as deploy/joulegate-meter.service does."
        ) from None
    except (OSError, ValueError) as error:
        raise MeterUnavailable(f"{path} cannot be read: {error}.") from None
