"""AMD, Apple, Jetson and other hardware through the zeus package (``joulegate[zeus]``).

Zeus reads AMD SMI, Apple's IOKit and others behind one interface, in millijoules and milliwatts
(https://ml.energy/zeus). It takes seconds and hundreds of megabytes to import: NVIDIA's cards
are better read by nvml.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from meters.power import RELATIVE_ERROR, PowerIntegrator
from meters.types import Evidence, MeterUnavailable, Reading


class ZeusMeter:
    """One reading a GPU zeus knows, or one for the whole chip where zeus reads that (Apple)."""

    name = "zeus"
    evidence = Evidence.METERED

    def __init__(
        self,
        devices: Sequence[int | str] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            # heavy and optional: seconds and hundreds of megabytes
            import zeus.device as zeus_device
        except ImportError:
            raise MeterUnavailable(
                "The zeus package is not installed: pip install 'joulegate[zeus]'."
            ) from None
        except KeyError as error:  # amdsmi raises it when its library is absent
            raise MeterUnavailable(f"A vendor library is not here ({error}).") from None
        self._clock = clock
        self._power: dict[int, PowerIntegrator] = {}
        self._gpus: Any = None
        self._chip: Any = None
        try:
            self._gpus = zeus_device.get_gpus()
            indices = range(len(self._gpus)) if devices is None else [int(d) for d in devices]
            self._indices = list(indices)
        except Exception as error:  # zeus raises its own and the vendors' errors
            self._indices = []
            self._chip = _chip(error)
        for index in self._indices:
            if not self._gpus.supports_get_total_energy_consumption(index):
                self._power[index] = PowerIntegrator(f"gpu{index}")
        self.resolution_j: float | None = 0.001 * max(1, len(self._indices))
        self.relative_error = RELATIVE_ERROR if self._power else 0.0
        self.continuous = bool(self._indices) and len(self._power) == len(self._indices)

    def read(self) -> list[Reading]:
        """Every device, now. Raises MeterUnavailable."""
        try:
            if self._chip is not None:
                return self._read_chip()
            return [self._read_gpu(index) for index in self._indices]
        except MeterUnavailable:
            raise
        except Exception as error:  # zeus raises its own and the vendors' errors
            raise MeterUnavailable(f"zeus cannot read the device: {error}.") from None

    def close(self) -> None:
        """Zeus closes its vendors' libraries itself, at exit."""

    def _read_gpu(self, index: int) -> Reading:
        integrator = self._power.get(index)
        if integrator is None:
            energy_mj = self._gpus.get_total_energy_consumption(index)
            return Reading(f"gpu{index}", self._clock(), energy_mj / 1000)
        power_mw = self._gpus.get_instant_power_usage(index)
        return integrator.add(self._clock(), power_mw / 1000)

    def _read_chip(self) -> list[Reading]:
        total = self._chip.get_total_energy_consumption()
        at_s = self._clock()
        gpu_mj = getattr(total, "gpu_total_mj", None)
        if gpu_mj is None:
            gpu_mj = getattr(total, "gpu_mj", None)
        if gpu_mj is None:
            raise MeterUnavailable("zeus reads no GPU energy on this chip.")
        return [Reading("gpu0", at_s, float(gpu_mj) / 1000)]


def _chip(error: Exception) -> Any:
    """The chip's own meter, for machines whose GPU is part of it."""
    try:
        # heavy and optional, as above
        from zeus.device.soc import get_soc

        return get_soc()
    except Exception:  # the first error says more
        raise MeterUnavailable(
            f"zeus finds no device it can read: {error}. Set meter to none or to prometheus."
        ) from None
