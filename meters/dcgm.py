"""Energy from a Prometheus page: DCGM's exporter, or any other series, where NVML is out of reach.

DCGM's exporter looks every 30 s unless told otherwise (``--collect-interval 1000`` for every
second): windows are never shorter than twice the period that is seen.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence

from meters.power import RELATIVE_ERROR, PowerIntegrator
from meters.prometheus import Wanted
from meters.types import Evidence, MeterUnavailable, Reading

# What one unit of a series is, in joules; watts are integrated.
UNITS_J = {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "Wh": 3600.0, "kWh": 3.6e6}
POWER_UNITS_W = {"W": 1.0, "mW": 1e-3}
DCGM_SERIES = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
# DCGM fills fields it cannot read with numbers near 2^63 (dcgm_structs.h, DCGM_FP64_BLANK and
# DCGM_INT64_BLANK); no counter of joules gets near.
_BLANK = 1e18


class PrometheusMeter:
    """One reading a device, from one series of a metrics page.

    ``label`` tells devices apart; without it, or where it is absent, the series is one device. A
    device that appears several times (DCGM repeats a GPU for each MIG instance and each pod) is
    read once, never added to itself. ``devices`` keeps only those label values.
    """

    evidence = Evidence.METERED
    min_poll_s = 1.0  # a page is dearer to read than a counter

    def __init__(
        self,
        url: str,
        *,
        series: str,
        unit: str = "J",
        label: str = "gpu",
        devices: Sequence[str | int] | None = None,
        name: str = "prometheus",
        timeout_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if unit not in UNITS_J and unit not in POWER_UNITS_W:
            known = ", ".join([*UNITS_J, *POWER_UNITS_W])
            raise MeterUnavailable(f"Unit {unit!r} of {series} is not known; known: {known}.")
        self.name = name
        self._url, self._series, self._unit, self._label = url, series, unit, label
        self._only = None if devices is None else {str(d) for d in devices}
        self._wanted = Wanted([series])
        self._timeout_s, self._clock = timeout_s, clock
        self._power: dict[str, PowerIntegrator] = {}
        # one step of the counter; nothing is known of what the exporter does to it
        self.resolution_j: float | None = UNITS_J.get(unit, 0.0)
        self.relative_error = RELATIVE_ERROR if unit in POWER_UNITS_W else 0.0
        self.continuous = unit in POWER_UNITS_W

    def read(self) -> list[Reading]:
        """All devices of the page, now. Raises MeterUnavailable."""
        before_s = self._clock()
        page = fetch(self._url, self._timeout_s)
        at_s = (before_s + self._clock()) / 2
        values: dict[str, float] = {}
        for found in self._wanted.read(page):
            which = found.labels.get(self._label)
            if abs(found.value) > _BLANK or not self._asked_for(which, found.labels.get("UUID")):
                continue
            device = self._device(which)
            values[device] = max(found.value, values.get(device, found.value))
        if not values:
            raise MeterUnavailable(
                f"{self._url} has no series {self._series}"
                + (f" for devices {sorted(self._only)}" if self._only else "")
                + ". Name the series the exporter really has; DCGM's must be listed in its CSV."
            )
        if self._unit in POWER_UNITS_W:
            scale = POWER_UNITS_W[self._unit]
            return [
                self._power.setdefault(d, PowerIntegrator(d, max_gap_s=60.0)).add(at_s, v * scale)
                for d, v in values.items()
            ]
        scale = UNITS_J[self._unit]
        return [Reading(d, at_s, v * scale) for d, v in values.items()]

    def close(self) -> None:
        """Nothing is held open."""

    def _asked_for(self, *names: str | None) -> bool:
        return self._only is None or not self._only.isdisjoint(names)

    def _device(self, which: str | None) -> str:
        if which is None:
            return self._label or "device"
        return f"{self._label}{which}" if which.isdigit() else which


class DcgmMeter(PrometheusMeter):
    """DCGM exporter's energy counter (mJ)."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:9400/metrics",
        *,
        devices: Sequence[str | int] | None = None,
        timeout_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            url,
            series=DCGM_SERIES,
            unit="mJ",
            label="gpu",
            devices=devices,
            name="dcgm",
            timeout_s=timeout_s,
            clock=clock,
        )


def fetch(url: str, timeout_s: float) -> bytes:
    """A page. Raises MeterUnavailable, saying what to check."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        raise MeterUnavailable(f"{url} answered {error.code}. Check the URL's path.") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise MeterUnavailable(
            f"{url} does not answer ({error}). Check that the exporter runs and the URL is right."
        ) from None
