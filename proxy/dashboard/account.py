"""Cells of energy with their grams, of which every total is a sum (``lines``).

A cell is one hour, one combination of dimensions, one node, one evidence and one component
(active, idle or host). Its energy is whole micro-joules and its carbon whole micro-grams, rounded
once, here; every total is a sum of these whole numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from meters.carbon import HOST_PER_GPU_J
from meters.intensity import IntensityBook, Tier
from meters.types import Evidence
from proxy.dashboard.accounting import PLATFORM, idle_spans, part_of
from proxy.dashboard.queries import (
    ASKED,
    DAY_S,
    LATELY_DAYS,
    TRAILING_DAYS,
    Dim,
    Ints,
    NodeHour,
    Raw,
    places,
)
from proxy.dashboard.sites import Site, Sites

HOUR_S = 3600
ACTIVE, IDLE, HOST = 0, 1, 2
SET = " (set)"  # behind a zone whose intensity this organisation set by hand
EVIDENCE = tuple(Evidence)
TIERS = tuple(Tier)
_TIER_PLACES = {tier: place for place, tier in enumerate(TIERS)}
# micro-joules x g/kWh -> micro-grams: 1e-6 J/uJ / 3.6e6 J/kWh x 1e6 ug/g
UJ_PER_KWH_G = 3.6e6


class Factor(msgspec.Struct, frozen=True, kw_only=True):
    """How one zone's intensities entered: energy by tier, and the energy-weighted mean."""

    zone: str
    mean_g_per_kwh: float
    facility_uj: int
    operational_ug: int
    sources: tuple[str, ...]
    tiers: dict[str, int]  # micro-grams by tier
    water_ml: int | None  # at power stations


class Cells(NamedTuple):
    """Columns, one entry a cell."""

    hour_s: Ints
    dim: Ints  # index into ``dims``; -1: the idle share
    node: Ints  # index into ``nodes``; -1: not metered here
    zone: Ints  # index into ``zones``
    evidence: Ints  # index into EVIDENCE
    tier: Ints  # index into TIERS
    component: Ints
    energy_uj: Ints
    overhead_uj: Ints
    operational_ug: Ints
    low_ug: NDArray[np.float64]
    high_ug: NDArray[np.float64]
    market_ug: Ints
    embodied_ug: Ints


class Reconciliation(msgspec.Struct, frozen=True, kw_only=True):
    """All nodes' metered energy in the period; the parts sum to ``metered_uj``."""

    metered_uj: int
    teams_uj: int  # caused by requests, and idle allotted to teams
    platform_uj: int  # idle that no team's rule takes
    external_uj: int  # work for traffic that did not come through here
    residual_uj: int  # nobody can be charged for it
    pending_uj: int  # shares whose request is not recorded yet

    @property
    def balanced(self) -> bool:
        """Whether the parts sum exactly."""
        parts = self.teams_uj + self.platform_uj + self.external_uj
        return parts + self.residual_uj + self.pending_uj == self.metered_uj


class Account(NamedTuple):
    """One team's period, real or simulated."""

    dims: list[Dim]
    nodes: list[str]
    zones: list[str]
    cells: Cells
    asked: Ints  # rows of requests that belong to this book
    reconciliation: Reconciliation
    factors: tuple[Factor, ...]
    dim_zone: Ints  # index into ``zones`` of each of ``dims``


_Day = Mapping[tuple[str, str], int]


class Idle(NamedTuple):
    """Idle energy in a period: the team's by node and hour, and what went where in all."""

    mine: list[tuple[str, int, int]]  # node, hour, micro-joules
    teams_uj: int
    platform_uj: int


def allotted(
    raw: Raw, trailing: Mapping[int, _Day], sites: Sites, simulated: bool
) -> Iterator[tuple[NodeHour, dict[str, tuple[float, float]]]]:
    """Each hour of a node that idled, with which span of its idle energy is whose."""
    use = Use(trailing)
    spans: dict[tuple[str, int], dict[str, tuple[float, float]]] = {}
    for row in hours_of(raw, simulated):
        if not row.idle_uj:
            continue
        key = row.node, row.hour_s // DAY_S
        parts = spans.get(key)
        if parts is None:
            site = sites.site(row.node)
            weights, lately = use.before(row.node, key[1], site.entitled)
            parts = spans[key] = idle_spans(site.owner, weights, lately, site.entitled)
        yield row, parts


def idle_of(
    raw: Raw, team: str, trailing: Mapping[int, _Day], sites: Sites, simulated: bool
) -> Idle:
    """The team's part of every node's idle energy, hour by hour, by the rule of idle_spans."""
    mine: list[tuple[str, int, int]] = []
    teams_uj = platform_uj = 0
    for row, parts in allotted(raw, trailing, sites, simulated):
        node, hour_s, idle_uj = row.node, row.hour_s, row.idle_uj
        if PLATFORM in parts:
            platform_uj += idle_uj
            continue
        teams_uj += idle_uj
        span = parts.get(team)
        if span is not None:
            uj = part_of(idle_uj, span)
            if uj:
                mine.append((node, hour_s, uj))
    return Idle(mine, teams_uj, platform_uj)


def asked_of(raw: Raw, simulated: bool) -> Ints:
    """Rows of requests of one book."""
    of_book = np.array([dim.simulated is simulated for dim in raw.dims], dtype=bool)
    if of_book.all():
        return raw.asked  # the usual case, without a copy
    kept: Ints = raw.asked[of_book[raw.asked[:, 1]]]
    return kept


def hours_of(raw: Raw, simulated: bool) -> list[NodeHour]:
    """Hours of nodes of one book."""
    made_up = Evidence.SIMULATED.value
    return [row for row in raw.nodes if (row.evidence == made_up) is simulated]


class Use:
    """Which team caused how much on a node in the days before a day, from running sums."""

    def __init__(self, trailing: Mapping[int, _Day]) -> None:
        self._first = min(trailing, default=0)
        days = max(trailing, default=0) - self._first + 1
        daily: dict[str, dict[str, Ints]] = defaultdict(dict)
        for day, parts in trailing.items():
            for (node, team), uj in parts.items():
                if uj > 0 and team:
                    of_team = daily[node].get(team)
                    if of_team is None:
                        of_team = daily[node][team] = np.zeros(days + 1, dtype=np.int64)
                    of_team[day - self._first + 1] += uj
        self._teams = {node: list(teams) for node, teams in daily.items()}
        self._sums = {  # [team, day]: all before that day
            node: np.cumsum(np.stack(list(teams.values())), axis=1) for node, teams in daily.items()
        }

    def before(
        self, node: str, day: int, entitled: Sequence[str] | None
    ) -> tuple[dict[str, int], bool]:
        """Micro-joules by team of the 28 days before ``day``, and whether one that is entitled
        used it in the last 7. A node's first day counts itself, having nothing before."""
        if node not in self._sums:
            return {}, False
        sums = self._sums[node]

        def between(first: int, end: int) -> Ints:
            low, high = (
                min(max(each - self._first, 0), sums.shape[1] - 1) for each in (first, end)
            )
            found: Ints = sums[:, high] - sums[:, low]
            return found

        span, late = between(day - TRAILING_DAYS, day), between(day - LATELY_DAYS, day)
        if not span.any():
            span = late = between(day, day + 1)
        names = self._teams[node]
        lately = any(
            uj > 0 and (entitled is None or team in entitled)
            for team, uj in zip(names, late.tolist(), strict=True)
        )
        return dict(zip(names, span.tolist(), strict=True)), lately


def build(
    raw: Raw,
    team: str,
    trailing: Mapping[int, _Day],
    book: IntensityBook,
    sites: Sites,
    simulated: bool,
) -> Account:
    """The account of ``team``; with ``simulated`` only what was simulated, else all the rest."""
    sites = _with_gone(sites, raw)
    nodes = _Names()
    zones = _Names()
    parts = [
        _active(raw, simulated, nodes),
        _estimated(raw, simulated, nodes),
    ]
    idle = idle_of(raw, team, trailing, sites, simulated)
    parts.append(_idle(idle, simulated, nodes))
    base = _Base.joined(parts)
    base = _with_hosts(base, raw, simulated, nodes, sites)
    cells, factors, dim_zone = _weigh(base, raw, nodes, zones, book, sites, simulated)
    return Account(
        dims=raw.dims,
        nodes=nodes.names,
        zones=zones.names,
        cells=cells,
        asked=asked_of(raw, simulated),
        reconciliation=_reconcile(raw, idle, simulated),
        factors=factors,
        dim_zone=dim_zone,
    )


def _with_gone(sites: Sites, raw: Raw) -> Sites:
    """With places for nodes that the config no longer names, as most of the team's requests there
    have them: an engine that was taken out has idled where it was."""
    counts = np.zeros(len(raw.dims), dtype=np.int64)
    np.add.at(counts, raw.asked[:, 1], raw.asked[:, ASKED["requests"]])
    found: dict[str, tuple[int, Dim]] = {}
    for d, count in zip(raw.dims, counts.tolist(), strict=True):
        if not d.node or d.node in sites.nodes or not (d.zone or d.pue):
            continue
        if sites.is_hosted(d.backend, d.evidence == Evidence.MODELLED.value):
            continue
        if d.node not in found or count > found[d.node][0]:
            found[d.node] = count, d
    if not found:
        return sites
    gone = {
        node: Site(node=node, zone=d.zone or None, pue=d.pue, pue_source="as it was recorded")
        for node, (_, d) in found.items()
    }
    return msgspec.structs.replace(sites, nodes={**sites.nodes, **gone})


def _reconcile(raw: Raw, idle: Idle, simulated: bool) -> Reconciliation:
    rows = hours_of(raw, simulated)
    pending = raw.pending_simulated_uj if simulated else raw.pending_uj
    return Reconciliation(
        metered_uj=sum(r.metered_uj for r in rows),
        teams_uj=sum(r.attributed_uj for r in rows) - pending + idle.teams_uj,
        platform_uj=idle.platform_uj,
        external_uj=sum(r.external_uj for r in rows),
        residual_uj=sum(r.unattributed_uj for r in rows),
        pending_uj=pending,
    )


class _Names:
    """Names numbered in the order in which they come."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._places: dict[str, int] = {}

    def place(self, name: str) -> int:
        if name not in self._places:
            self._places[name] = len(self.names)
            self.names.append(name)
        return self._places[name]


class _Base(NamedTuple):
    """Cells before they have grams."""

    hour_s: Ints
    dim: Ints
    node: Ints
    evidence: Ints
    component: Ints
    energy_uj: Ints
    low_uj: Ints
    high_uj: Ints

    @classmethod
    def joined(cls, parts: Sequence[_Base]) -> _Base:
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def evidence_place(name: str) -> int:
    return EVIDENCE.index(Evidence(name)) if name in set(EVIDENCE) else len(EVIDENCE) - 1


def _active(raw: Raw, simulated: bool, nodes: _Names) -> _Base:
    """Metered energy of the team's requests."""
    kinds = np.array([evidence_place(e) for e in raw.drawn_evidence] or [0], dtype=np.int64)
    places = np.array([nodes.place(n) for n in raw.drawn_nodes] or [0], dtype=np.int64)
    of_book = np.array([(d.simulated is simulated) for d in raw.dims] or [False], dtype=bool)
    rows = raw.drawn
    if len(rows):
        is_simulated = kinds[rows[:, 3]] == EVIDENCE.index(Evidence.SIMULATED)
        # Simulated if its record or its meter says so: then it is never in the real book.
        mine = of_book[rows[:, 1]]
        rows = rows[(is_simulated | mine) if simulated else (~is_simulated & mine)]
    energy = rows[:, 4]
    zero = np.zeros_like(energy)
    return _Base(
        rows[:, 0],
        rows[:, 1],
        places[rows[:, 2]] if len(rows) else zero,
        kinds[rows[:, 3]] if len(rows) else zero,
        zero + ACTIVE,
        energy,
        zero,
        zero,
    )


def _estimated(raw: Raw, simulated: bool, nodes: _Names) -> _Base:
    """Estimates of requests that no window has a share of."""
    rows = asked_of(raw, simulated)
    energy = rows[:, ASKED["energy_uj"]] - rows[:, ASKED["metered_estimate_uj"]]
    low = rows[:, ASKED["energy_low_uj"]] - rows[:, ASKED["metered_estimate_low_uj"]]
    high = rows[:, ASKED["energy_high_uj"]] - rows[:, ASKED["metered_estimate_high_uj"]]
    keep = energy > 0
    hour_s, dim, energy, low, high = (
        column[keep] for column in (rows[:, 0], rows[:, 1], energy, low, high)
    )
    kinds = np.array([evidence_place(d.evidence) for d in raw.dims] or [0], dtype=np.int64)
    if simulated:
        kinds[:] = EVIDENCE.index(Evidence.SIMULATED)
    places = np.array([nodes.place(d.node) if d.node else -1 for d in raw.dims] or [0])
    zero = np.zeros_like(energy)
    return _Base(
        hour_s,
        dim,
        places[dim] if len(dim) else zero,
        kinds[dim] if len(dim) else zero,
        zero + ACTIVE,
        energy,
        low,
        high,
    )


def _idle(idle: Idle, simulated: bool, nodes: _Names) -> _Base:
    kind = EVIDENCE.index(Evidence.SIMULATED if simulated else Evidence.METERED)
    rows = [(hour, -1, nodes.place(node), kind, IDLE, uj, 0, 0) for node, hour, uj in idle.mine]
    table = np.array(rows, dtype=np.int64) if rows else np.zeros((0, 8), dtype=np.int64)
    return _Base(*table.T)


def _at_node_hours(
    base: _Base, values: Mapping[tuple[int, int], float], otherwise: float
) -> NDArray[np.float64]:
    """For each cell the value of its node and hour."""
    found = np.full(len(base.node), otherwise)
    if not values or not len(base.node):
        return found
    first = min(hour for _, hour in values)
    keys = np.array([(node << 40) + hour - first for node, hour in values], dtype=np.int64)
    order = np.argsort(keys)
    keys, amounts = keys[order], np.array(list(values.values()))[order]
    wanted = (base.node << 40) + base.hour_s - first
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, amounts[place], otherwise)


def of_others(dims: Sequence[Dim], dim: Ints, evidence: Ints, sites: Sites) -> NDArray[np.bool_]:
    """Which cells of GPUs are of others' APIs; idle energy never is, nor what a meter read of an
    engine that was asked before an API answered."""
    either = np.array(
        [[sites.is_hosted(d.backend, how) for how in (False, True)] for d in dims]
        or [[False, False]],
        dtype=bool,
    )
    modelled = (evidence == EVIDENCE.index(Evidence.MODELLED)).astype(np.int64)
    read = evidence == EVIDENCE.index(Evidence.METERED)
    found: NDArray[np.bool_] = (dim >= 0) & ~read & either[np.maximum(dim, 0), modelled]
    return found


def _with_hosts(base: _Base, raw: Raw, simulated: bool, nodes: _Names, sites: Sites) -> _Base:
    """Adds a host cell for each cell of our own GPUs: metered where the node's host was."""
    ratio: dict[tuple[int, int], float] = {}
    for row in hours_of(raw, simulated):
        if row.host_known >= row.windows and row.metered_uj > 0:
            ratio[nodes.place(row.node), row.hour_s] = row.host_energy_uj / row.metered_uj
    own = ~of_others(raw.dims, base.dim, base.evidence, sites)
    measured = _at_node_hours(base, ratio, -1.0)
    known = measured >= 0
    share = np.where(known, measured, HOST_PER_GPU_J)
    energy = np.where(own, np.rint(base.energy_uj * share), 0).astype(np.int64)
    modelled = EVIDENCE.index(Evidence.SIMULATED if simulated else Evidence.MODELLED)
    hosts = base._replace(
        evidence=np.where(known, base.evidence, modelled).astype(np.int64),
        component=np.full_like(base.component, HOST),
        energy_uj=energy,
        low_uj=np.rint(base.low_uj * share).astype(np.int64),
        high_uj=np.rint(base.high_uj * share).astype(np.int64),
    )
    some = energy > 0
    return _Base.joined([base, _Base(*(column[some] for column in hosts))])


def _weigh(
    base: _Base,
    raw: Raw,
    nodes: _Names,
    zones: _Names,
    book: IntensityBook,
    sites: Sites,
    simulated: bool,
) -> tuple[Cells, tuple[Factor, ...], Ints]:
    """Gives every cell its zone, PUE, intensity and grams."""
    site_of = [sites.site(name) for name in nodes.names]
    fixed: dict[str, float] = {}
    grids: dict[str, str] = {}  # by the same names, the grid zone that contracts and water go by

    def zone_name(site: Site, zone: str) -> str:
        g_per_kwh = site.g_per_kwh
        if g_per_kwh is None:
            return zone
        name = f"{zone or 'own'}{SET}"
        if fixed.setdefault(name, g_per_kwh) != g_per_kwh:  # another backend there has another
            name = f"{zone or 'own'} {g_per_kwh:g} g/kWh{SET}"
            fixed[name] = g_per_kwh
        grids[name] = zone
        return name

    site_zone = np.array(
        [zones.place(zone_name(s, s.zone or "")) for s in site_of] or [0], dtype=np.int64
    )
    site_pue = np.array([s.pue or sites.default_pue for s in site_of] or [1.0])
    dim_zone = np.array(
        [
            zones.place(zone_name(site, d.zone or site.zone or ""))
            for d in raw.dims
            for site in (sites.site(d.node) if d.node else Site(node=""),)
        ]
        or [0],
        dtype=np.int64,
    )
    dim_pue = np.array(
        [
            d.pue or (sites.site(d.node).pue if d.node else None) or sites.default_pue
            for d in raw.dims
        ]
        or [1.0]
    )
    at_dim, at_node = np.maximum(base.dim, 0), np.maximum(base.node, 0)
    # What an engine drew that was asked before another answered was drawn where that engine is.
    dim_node = np.array([nodes.place(d.node) if d.node else -1 for d in raw.dims] or [-1])
    of_dim = base.dim >= 0
    elsewhere = of_dim & (base.node >= 0) & (base.node != dim_node[at_dim])
    of_dim &= ~elsewhere | ~np.array([n in sites.nodes for n in nodes.names] or [False])[at_node]
    zone = np.where(of_dim, dim_zone[at_dim], site_zone[at_node]).astype(np.int64)
    pue = np.where(of_dim, dim_pue[at_dim], site_pue[at_node])

    # Places in a row of hours, without the sorting that finding distinct ones would take.
    first_s = int(base.hour_s.min()) if len(base.hour_s) else 0
    hour_place = (base.hour_s - first_s) // HOUR_S
    hours = int(hour_place.max()) + 1 if len(hour_place) else 1
    g = np.zeros((len(zones.names) or 1, hours))
    tier = np.zeros_like(g, dtype=np.int64)
    market = np.zeros_like(g)
    sources: list[set[str]] = [set() for _ in zones.names]
    for z, name in enumerate(zones.names):
        instrument = sites.instruments.get(grids.get(name, name))
        of_zone = np.bincount(hour_place[zone == z], minlength=hours)
        used = np.flatnonzero(of_zone)
        if name in fixed:
            g[z, used] = fixed[name]
            tier[z, used] = TIERS.index(Tier.ANNUAL_ZONE)
            if len(used):
                sources[z].add("set by this organisation")
        else:
            answers = [book.at(name or None, s) for s in (first_s + used * HOUR_S).tolist()]
            g[z, used] = [answer.g_per_kwh for answer in answers]
            tier[z, used] = [_TIER_PLACES[answer.tier] for answer in answers]
            sources[z].update(answer.source for answer in answers)
        market[z, used] = instrument.g_per_kwh if instrument else g[z, used]
    cell_g = g[zone, hour_place] if len(zone) else np.zeros(0)
    cell_tier = tier[zone, hour_place] if len(zone) else np.zeros(0, dtype=np.int64)
    per_uj = pue * cell_g / UJ_PER_KWH_G
    cells = Cells(
        hour_s=base.hour_s,
        dim=base.dim,
        node=base.node,
        zone=zone,
        evidence=base.evidence,
        tier=cell_tier,
        component=base.component,
        energy_uj=base.energy_uj,
        overhead_uj=_round(base.energy_uj * (pue - 1.0)),
        operational_ug=_round(base.energy_uj * per_uj),
        low_ug=base.low_uj * per_uj,
        high_ug=base.high_uj * per_uj,
        market_ug=_round(
            base.energy_uj * pue * (market[zone, hour_place] if len(zone) else 1.0) / UJ_PER_KWH_G
        ),
        embodied_ug=_embodied(base, raw, nodes, sites, simulated),
    )
    return cells, _factors(cells, zones, grids, sources, book), dim_zone


def _round(values: NDArray[Any]) -> Ints:
    whole: Ints = np.rint(values).astype(np.int64)
    return whole


def _embodied(base: _Base, raw: Raw, nodes: _Names, sites: Sites, simulated: bool) -> Ints:
    """The node-hour's embodied grams, by each cell's part of the node-hour's metered energy."""
    per_uj: dict[tuple[int, int], float] = {}
    ug_per_us: dict[str, float] = {}
    for row in hours_of(raw, simulated):
        rate = ug_per_us.get(row.node)
        if rate is None:
            site = sites.site(row.node)
            rate = ug_per_us[row.node] = (site.gpus or 0) * site.embodied.mid * 1e6 / 3.6e9
        if rate and row.metered_uj > 0:
            place = nodes.place(row.node), row.hour_s
            per_uj[place] = rate * row.metered_us / row.metered_uj
    rates = _at_node_hours(base, per_uj, 0.0)
    read, made_up = (EVIDENCE.index(e) for e in (Evidence.METERED, Evidence.SIMULATED))
    # estimates are outside the node's metered hours
    drawn = (base.evidence == read) | (base.evidence == made_up)
    metered = drawn & (base.component != HOST) & (base.high_uj == 0)
    return _round(np.where(metered, base.energy_uj * rates, 0.0))


def _factors(
    cells: Cells,
    zones: _Names,
    grids: Mapping[str, str],
    sources: Sequence[set[str]],
    book: IntensityBook,
) -> tuple[Factor, ...]:
    found = []
    for z, name in enumerate(zones.names):
        of_zone = cells.zone == z
        facility = int((cells.energy_uj + cells.overhead_uj)[of_zone].sum())
        ug = int(cells.operational_ug[of_zone].sum())
        if not facility:
            continue
        tiers = {
            TIERS[t].value: int(cells.operational_ug[of_zone & (cells.tier == t)].sum())
            for t in places(cells.tier[of_zone])
        }
        water = book.table.water_l_per_kwh(grids.get(name, name) or None)
        found.append(
            Factor(
                zone=name or "world",
                mean_g_per_kwh=ug / facility * UJ_PER_KWH_G,
                facility_uj=facility,
                operational_ug=ug,
                sources=tuple(sorted(sources[z])),
                tiers=tiers,
                water_ml=None if water is None else round(facility / 3.6e12 * water * 1000),
            )
        )
    return tuple(found)
