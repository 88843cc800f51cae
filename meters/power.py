"""Energy from power, for devices that have no energy counter. Pure."""

from __future__ import annotations

from meters.types import Reading

# NVML API reference, nvmlDeviceGetPowerUsage: within +/- 5 % of the present draw (Fermi, Kepler);
# no better figure is given for later boards.
RELATIVE_ERROR = 0.05
# Longer than this between two looks, power in between is a guess: the count begins anew, which
# readers see as a counter reset.
MAX_GAP_S = 5.0


class PowerIntegrator:
    """Adds up one device's power over time, by trapezoids, into a counter of joules.

    Sensors that average over a second (NVML's power on Ampere and later) smear bursts but add up
    right; sensors that look only part of the time (A100, H100: about a quarter of it, Yang et
    al. 2023, arXiv:2312.02741) miss what happens in between.
    """

    def __init__(self, device: str, max_gap_s: float = MAX_GAP_S) -> None:
        self._device = device
        self._max_gap_s = max_gap_s
        self._energy_j = 0.0
        self._last: tuple[float, float] | None = None

    def add(self, at_s: float, power_w: float) -> Reading:
        """Take the power at a moment (monotonic) in; the count so far."""
        if self._last is not None:
            gap_s = at_s - self._last[0]
            if gap_s > self._max_gap_s:
                # below what was ever reported, so that it is seen as a reset
                self._energy_j = 0.0
            else:
                self._energy_j += max(0.0, gap_s) * (self._last[1] + power_w) / 2
        else:
            self._energy_j = 1.0  # so that a fresh start after a gap is a step down
        self._last = (at_s, power_w)
        return Reading(self._device, at_s, self._energy_j)
