"""Grams of a predicted request, from its joules and what is known of its grid and machines."""

from __future__ import annotations

from estimators.types import Backend, Band
from meters.carbon import operational_g

SECONDS_PER_HOUR = 3600.0


def grams(backend: Backend, energy: Band | None, busy_s: float | None = None) -> Band | None:
    """CO2e of using ``energy`` at that backend's grid now; None where its grid is not known.

    Where ``embodied_g_per_gpu_hour`` is configured, the GPUs' share of ``busy_s`` (the part of
    the engine's time this request takes) is added.
    """
    intensity = backend.intensity_g_per_kwh
    if energy is None or intensity is None:
        return None
    pue = backend.pue if backend.pue is not None else 1.0
    embodied_g = 0.0
    if backend.embodied_g_per_gpu_hour is not None and busy_s is not None:
        hours = busy_s / SECONDS_PER_HOUR * backend.num_gpus
        embodied_g = backend.embodied_g_per_gpu_hour * hours
    factor = operational_g(1.0, pue, intensity)
    return Band(
        energy.low * factor + embodied_g,
        energy.mid * factor + embodied_g,
        energy.high * factor + embodied_g,
    )
