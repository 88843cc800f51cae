"""One request's receipt: every joule and gram that is known of it, part by part. Pure.

Parts are of the request; idle energy is allotted to teams by the hour, so its part here is what the
request's windows idled in proportion to what it caused in them, shown beside the active figure.
"""

from __future__ import annotations

import msgspec

from meters.carbon import HOST_PER_GPU_J, operational_g
from meters.intensity import Intensity, IntensityBook, Tier
from meters.receipts import Receipt, WindowShare
from meters.types import Evidence
from proxy.dashboard.accounting import (
    HOST_MODEL_ERROR,
    METERED_ERROR,
    TIER_ERROR,
    Part,
    combine,
)
from proxy.dashboard.sites import Site, Sites


class Component(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the receipt; None where it is not known."""

    name: str
    device_j: float | None
    facility_j: float | None  # x PUE
    carbon_g: float | None
    source: str


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """What a receipt's page shows beside the record itself."""

    components: tuple[Component, ...]
    active: Component
    with_idle: Component
    range: Part | None  # 80 %, of the active figure
    embodied_g: float | None
    embodied_source: str
    intensity: Intensity
    pue: float
    pue_source: str
    hosted: bool


def shown(found: Receipt, book: IntensityBook, sites: Sites) -> Shown:
    """A request's receipt with today's factors."""
    record = found.record
    site = sites.site(record.node or "")
    answer = book.at(record.zone or site.zone, record.sent_s or record.start_s)
    if site.g_per_kwh is not None:
        answer = msgspec.structs.replace(
            answer,
            g_per_kwh=site.g_per_kwh,
            tier=Tier.ANNUAL_ZONE,
            source="set by this organisation",
            method="set by hand",
            estimated=True,
            of_hour_s=None,
        )
    pue = record.pue or site.pue or sites.default_pue
    hosted = sites.is_hosted(record.backend, record.evidence is Evidence.MODELLED)

    def component(name: str, energy_j: float | None, source: str) -> Component:
        return Component(
            name=name,
            device_j=energy_j,
            facility_j=None if energy_j is None else energy_j * pue,
            carbon_g=None if energy_j is None else operational_g(energy_j, pue, answer.g_per_kwh),
            source=source,
        )

    gpu_j = found.energy_j
    metered_host_j = _metered_host_j(found)
    host_j = (
        None
        if gpu_j is None
        else 0.0
        if hosted
        else gpu_j * HOST_PER_GPU_J
        if metered_host_j is None
        else metered_host_j
    )
    idle_j = sum(map(_idle_part_j, found.shares)) if found.shares else None
    active_j = None if gpu_j is None or host_j is None else gpu_j + host_j
    whole_j = None if active_j is None or idle_j is None else active_j + idle_j
    return Shown(
        components=(
            component("GPUs, caused by this request", gpu_j, found.evidence.value),
            component(
                "Host (CPU, memory)",
                None if hosted else host_j,
                "within the model of the hosted API"
                if hosted
                else "modelled: 0.43 × GPU energy"
                if metered_host_j is None
                else "metered on the node, in proportion",
            ),
            component(
                "Idle, its part of its windows’",
                idle_j,
                "in proportion to what it caused in each window"
                if found.shares
                else "no window has a share of it",
            ),
        ),
        active=component("Active", active_j, "GPUs and host"),
        with_idle=component("With idle share", whole_j, "as the team’s account shows it"),
        range=_range(found, host_j, metered_host_j is not None, pue, answer),
        embodied_g=None if hosted else _embodied_g(found, site),
        embodied_source="hardware of a hosted API is not known"
        if hosted
        else "hardware not known"
        if site.gpus is None
        else "its part of its windows’ hardware, by energy"
        if found.shares
        else "upper bound: all of the node for its time",
        intensity=answer,
        pue=pue,
        pue_source="recorded with the request"
        if record.pue
        else site.pue_source or sites.default_pue_source,
        hosted=hosted,
    )


def _idle_part_j(share: WindowShare) -> float:
    caused_j = share.metered_j - share.idle_j - share.external_j - share.unattributed_j
    return share.idle_j * share.energy_j / caused_j if caused_j > 0 else 0.0


def _metered_host_j(found: Receipt) -> float | None:
    """The request's part of what its windows' hosts used; None where any was not read."""
    if found.state != "metered":
        return None
    total_j = 0.0
    for share in found.shares:
        if share.host_energy_j is None or share.metered_j <= 0:
            return None
        total_j += share.host_energy_j * share.energy_j / share.metered_j
    return total_j


def _embodied_g(found: Receipt, site: Site) -> float | None:
    if site.gpus is None:
        return None
    per_hour_g = site.embodied.mid * site.gpus
    if not found.shares:
        record = found.record
        return per_hour_g * (record.end_s - (record.sent_s or record.start_s)) / 3600.0
    return sum(
        per_hour_g * (share.end_s - share.start_s) / 3600.0 * share.energy_j / share.metered_j
        for share in found.shares
        if share.metered_j > 0
    )


def _range(
    found: Receipt, host_j: float | None, host_metered: bool, pue: float, answer: Intensity
) -> Part | None:
    """80 % range of the active figure: meter or estimate, host model and grid, in quadrature."""
    energy_j, record = found.energy_j, found.record
    if energy_j is None or host_j is None:
        return None
    low_j, high_j = energy_j * (1 - METERED_ERROR), energy_j * (1 + METERED_ERROR)
    if found.state != "metered":
        low_j = record.energy_low_j if record.energy_low_j is not None else energy_j * 0.5
        high_j = record.energy_high_j if record.energy_high_j is not None else energy_j * 1.5

    def ug(joules: float) -> float:
        return operational_g(joules, pue, answer.g_per_kwh) * 1e6

    host = ug(host_j)
    return combine(
        [Part(ug(low_j), ug(energy_j), ug(high_j)), Part(host, host, host)],
        [
            (host, METERED_ERROR if host_metered else HOST_MODEL_ERROR),
            (ug(energy_j + host_j), TIER_ERROR[answer.tier]),
        ],
    )
