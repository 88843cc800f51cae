"""What the dashboard's accounts take from a config: places, budgets, contracts and licences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from estimators.types import Backend
from meters.carbon import Range
from meters.intensity import IntensityBook
from meters.intensity.electricity_maps import ElectricityMaps
from meters.intensity.file import File
from meters.intensity.gb import GreatBritain
from meters.intensity.watttime import WattTime
from meters.ledger import Ledger
from proxy.dashboard.sites import Instrument, Site, Sites
from proxy.dashboard.snapshot import Snapshots
from proxy.settings import Settings, Team

ATTRIBUTIONS = {
    source.name: source.attribution for source in (ElectricityMaps, WattTime, GreatBritain, File)
}


def sites_of(settings: Settings, backends: Iterable[Backend]) -> Sites:
    """Nodes, hosted APIs and contracts, as the config has them."""
    known = list(backends)
    by_name = {backend.full_name: backend for backend in settings.backends}
    nodes: dict[str, Site] = {}
    for backend in known:
        own = by_name.get(backend.name)
        fixed = own.intensity_g_per_kwh if own else None
        fixed = settings.carbon.intensity_g_per_kwh if fixed is None else fixed
        # Of another's API nothing is known of a node but an intensity that was set for it.
        if backend.node is None or (backend.engine == "api" and fixed is None):
            continue
        grams = own.embodied_g_per_gpu_hour if own else None
        nodes[backend.node] = Site(
            node=backend.node,
            zone=backend.zone,
            g_per_kwh=fixed,
            pue=backend.pue,
            pue_source="of the backend" if own and own.pue else "carbon.pue",
            gpus=backend.num_gpus if backend.gpu is not None or backend.simulated else None,
            embodied_g_per_gpu_hour=None if grams is None else Range(grams, grams, grams),
            owner=own.owner if own else None,
            entitled=tuple(own.entitled) if own and own.entitled is not None else None,
        )
    return Sites(
        nodes=nodes,
        hosted=frozenset(b.name for b in known if b.engine == "api"),
        own=frozenset(b.name for b in known if b.engine != "api"),
        instruments={
            zone: Instrument(g_per_kwh=grams, what="carbon.market_g_per_kwh")
            for zone, grams in settings.carbon.market_g_per_kwh.items()
        },
        default_pue=settings.carbon.pue,
        default_pue_source="carbon.pue",
    )


def budgets_of(teams: Mapping[str, Team]) -> dict[str, float]:
    """Grams a month by team: the tightest monthly carbon budget of each."""
    found: dict[str, float] = {}
    for name, team in teams.items():
        limits = [b.carbon_g for b in team.budgets if b.per == "month" and b.carbon_g is not None]
        if limits:
            found[name] = min(limits)
    return found


def snapshots_of(
    settings: Settings,
    backends: Iterable[Backend],
    book: IntensityBook,
    ledger: Ledger,
) -> Snapshots:
    """What makes snapshots under this config."""
    return Snapshots(
        ledger, book, sites_of(settings, backends), budgets_of(settings.teams), ATTRIBUTIONS
    )
