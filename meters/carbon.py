"""Grams from joules, and everything that is stated beside them. Pure arithmetic.

``carbon_g = energy_kwh x pue x intensity_g_per_kwh``. Hosts, facility overhead and
embodied hardware each have a figure of their own: none is folded into another.
"""

from __future__ import annotations

from typing import NamedTuple

J_PER_KWH = 3_600_000.0
G_PER_KG = 1000.0

# Google, "Measuring the environmental impact of delivering AI at Google Scale" (2025): of a
# prompt's energy 58 % is the accelerators', 25 % host CPU and DRAM, 10 % idle machines, 8 %
# overhead. Where a host is not metered its energy is modelled as this share of the GPUs'.
HOST_PER_GPU_J = 0.25 / 0.58

# R-ICE's parametric tier: devices x TDP x utilisation x run time x PUE x intensity.
R_ICE_UTILISATION = 0.26
R_ICE_PUE = 1.1

# kg CO2e per H100 SXM: maker's product carbon footprint, EcoLogits 0.11.3, Boavizta (recomputed).
GPU_EMBODIED_KG = (164.0, 273.0, 572.0)
# kg CO2e of an eight-GPU server without its GPUs (EcoLogits 0.11.3, from Boavizta).
SERVER_EMBODIED_KG = 5700.0
GPUS_PER_SERVER = 8
HOURS_PER_YEAR = 8760.0
LIFE_YEARS = (6.0, 4.0, 3.0)  # for the low, middle and high figure


class Range(NamedTuple):
    """low <= mid <= high, in the unit of the name that holds it."""

    low: float
    mid: float
    high: float


def kwh(energy_j: float) -> float:
    """Kilowatt-hours of joules."""
    return energy_j / J_PER_KWH


def operational_g(energy_j: float, pue: float, intensity_g_per_kwh: float) -> float:
    """Grams CO2e of using ``energy_j`` at the devices: facility overhead included by ``pue``."""
    return kwh(energy_j) * pue * intensity_g_per_kwh


def overhead_j(energy_j: float, pue: float) -> float:
    """Joules of cooling and power distribution that go with ``energy_j`` at the devices."""
    return energy_j * (pue - 1.0)


def modelled_host_j(gpu_energy_j: float) -> float:
    """Host CPU and DRAM energy where it is not metered; to be labelled as modelled."""
    return gpu_energy_j * HOST_PER_GPU_J


def embodied_g_per_gpu_hour(gpu_kg: float, life_years: float) -> float:
    """Grams per installed GPU-hour: the GPU and its eighth of a server over their life.

    It accrues by installed time, idle or not, so it is charged per hour and not per request.
    """
    whole_kg = gpu_kg + SERVER_EMBODIED_KG / GPUS_PER_SERVER
    return whole_kg * G_PER_KG / (life_years * HOURS_PER_YEAR)


def default_embodied() -> Range:
    """Grams per installed GPU-hour of an H100-class server: published factors disagree threefold.

    The range runs from the maker's figure over six years to Boavizta's over three.
    """
    each = [
        embodied_g_per_gpu_hour(kg, years)
        for kg, years in zip(GPU_EMBODIED_KG, LIFE_YEARS, strict=True)
    ]
    return Range(*each)


def sci(operational: float, embodied: float, units: float) -> float | None:
    """ISO/IEC 21031: ``(E x I + M) / R`` in grams per functional unit; None for no units.

    Location-based, without offsets. For SCI per million tokens hand in tokens / 1e6: 130 kg
    over 1e9 tokens are 130 g per million.
    """
    return (operational + embodied) / units if units > 0 else None


def r_ice_g(devices: int, tdp_w: float, seconds: float, intensity_g_per_kwh: float) -> float:
    """The parametric tier: never the headline where anything better is known."""
    energy_j = devices * tdp_w * R_ICE_UTILISATION * seconds
    return operational_g(energy_j, R_ICE_PUE, intensity_g_per_kwh)
