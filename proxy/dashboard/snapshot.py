"""Everything that a page or an export may show of one team and period, with its hash."""

from __future__ import annotations

import hashlib
import math
import time
from calendar import monthrange
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import msgspec
import numpy as np

from meters.carbon import sci
from meters.intensity import IntensityBook, Tier
from meters.ledger import Ledger
from meters.types import CACHE_HITS, Evidence
from proxy.dashboard import lines as summed
from proxy.dashboard import user_groups
from proxy.dashboard.account import (
    ACTIVE,
    EVIDENCE,
    HOST,
    IDLE,
    TIERS,
    Account,
    Factor,
    Reconciliation,
    build,
    hours_of,
    of_others,
)
from proxy.dashboard.accounting import (
    HOST_MODEL_ERROR,
    METERED_ERROR,
    METHOD_VERSION,
    TIER_ERROR,
    CacheUse,
    Forecast,
    Part,
    Saving,
    ScopeRow,
    combine,
    forecast,
    grade,
    saving,
    scope_rows,
    score,
)
from proxy.dashboard.decomposition import Bars, Group, decompose
from proxy.dashboard.holdout import HoldOut, hold_out
from proxy.dashboard.lines import Charge, Line
from proxy.dashboard.node_books import BookRow, node_books
from proxy.dashboard.periods import Period, local_day
from proxy.dashboard.queries import (
    ASKED,
    DAY_S,
    TRAILING_DAYS,
    Raw,
    Trailing,
    pending_rows,
    read,
    user_uses,
)
from proxy.dashboard.sites import Sites

GROUPINGS = ("model", "backend", "key", "tag", "project", "task", "policy", "evidence", "zone")
SERIES = ("day", "hour")
REMEMBERED = 64  # periods
KEEP_S = 15.0  # what was read of a period stands for so long,
SETTLED_TIMES = 20  # and so many times as long for one that is long over
PROVISIONAL_S = 90 * DAY_S  # sources restate their figures for about three months


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One team's period. Whole micro-joules and micro-grams; ``hash`` covers all of it."""

    team: str
    period: str
    start_s: int
    end_s: int
    time_zone: str
    simulated: bool
    provisional: bool  # the period is not over, or its factors may still be restated
    total: Line
    lines: dict[str, tuple[Line, ...]]  # by each of GROUPINGS and SERIES
    range: Part  # 80 %, of total.operational_ug
    grade: str  # A to E
    evidence: tuple[tuple[str, int], ...]  # micro-grams by evidence
    tiers: tuple[tuple[str, int], ...]  # micro-grams by intensity tier
    factors: tuple[Factor, ...]
    charges: tuple[Charge, ...] = ()  # by model, backend, zone and tags together
    scopes: tuple[ScopeRow, ...]
    market_instruments: bool
    embodied_known: bool
    idle_known: bool = True  # a meter saw what the team drew from, or it drew nothing
    sci_g_per_request: float | None
    sci_g_per_mtok: float | None
    water_ml: int | None
    reconciliation: Reconciliation
    own_uj: int = 0  # what Joulegate's processes used; on no account, and in no sum
    own_metered_uj: int = 0  # of that: a share of hosts' counters; the rest is modelled
    savings: tuple[Saving, ...]
    savings_without_figure: int  # requests without a counterfactual estimate
    cache: CacheUse
    holdout: HoldOut | None = None  # None: no experiment ran
    bars: Bars | None  # None: no period before
    previous: Line | None
    previous_period: str
    forecast: Forecast | None
    budget_ug: int | None
    attributions: tuple[str, ...]
    set_version: str
    ledger_version: str
    method_version: str = METHOD_VERSION
    hash: str = ""

    @property
    def score(self) -> float:
        """What the grade is made of, 0 to 1: lower with each step down, of evidence or ladder."""
        return score(
            {Evidence(name): ug for name, ug in self.evidence},
            {Tier(name): ug for name, ug in self.tiers},
            self.total.requests,
            self.total.unknown_requests,
        )

    @property
    def covered(self) -> float | None:
        """Share of requests with a figure, or that needed none; None without requests."""
        n = self.total.requests
        return 1.0 - self.total.unknown_requests / n if n else None

    def idle_uj(self, line: Line) -> int | None:
        """The idle energy of a line; None where nothing is known of it."""
        return line.known("idle_uj") if self.idle_known else None


def encode(snapshot: Snapshot) -> bytes:
    """The canonical bytes of a snapshot."""
    return msgspec.json.encode(snapshot, order="deterministic")


def sealed(snapshot: Snapshot) -> Snapshot:
    """The snapshot with the SHA-256 of everything else in it."""
    bare = msgspec.structs.replace(snapshot, hash="")
    return msgspec.structs.replace(bare, hash=hashlib.sha256(encode(bare)).hexdigest())


def is_genuine(snapshot: Snapshot) -> bool:
    """Whether its hash is that of its contents."""
    return sealed(snapshot).hash == snapshot.hash


def without_keys(snapshot: Snapshot) -> Snapshot:
    """The snapshot as members of the team may have it: keys can stand for single people. Its hash
    is still that of the whole."""
    return msgspec.structs.replace(snapshot, lines={**snapshot.lines, "key": ()})


class _Made(NamedTuple):
    """A snapshot with what it was made from; it stands while all of that is the same."""

    account: Account
    before: Account
    on: tuple[Any, ...]  # the day, whether figures may still change, the budget
    snapshot: Snapshot


class Snapshots:
    """Makes snapshots from a ledger; keeps the last few, since a page is asked for often.

    ``budgets_g``: grams CO2e per calendar month by team. ``attributions``: licence lines of the
    intensity sources in use. ``clock`` gives Unix time.
    """

    def __init__(
        self,
        ledger: Ledger,
        book: IntensityBook,
        sites: Sites | None = None,
        budgets_g: Mapping[str, float] | None = None,
        attributions: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.ledger = ledger
        self.book = book
        self.sites = sites or Sites()
        self._budgets = dict(budgets_g or {})
        self._attributions = dict(attributions or {})
        self._clock = clock
        self._trailing = Trailing(ledger)
        self._raws: dict[tuple[str, int, int], tuple[float, Raw]] = {}
        self._kept: dict[tuple[Any, ...], tuple[Account, Raw]] = {}
        self._made: dict[tuple[Any, ...], _Made] = {}

    def of(self, team: str, period: Period, simulated: bool | None = None) -> Snapshot:
        """The snapshot, now. ``simulated`` None: the real book, or the simulated one when nothing
        real ran in the period, whatever was refused."""
        if simulated is None:
            raw = self._raw(team, period)
            simulated = raw.has(True) and not raw.ran(False)
        account, raw = self._account(team, period, simulated)
        now_s = self._clock()
        before, _ = self._account(team, period.compared(now_s), simulated)
        settled = now_s >= period.end_s + PROVISIONAL_S
        on = (local_day(now_s, period.time_zone), settled, self.budget_ug(team, period))
        key = team, period, simulated
        kept = self._made.get(key)
        same = kept and kept.account is account and kept.before is before and kept.on == on
        if kept is None or not same:
            snapshot = self._assemble(team, period, simulated, account, raw, before)
            if len(self._made) >= REMEMBERED:
                self._made.clear()
            kept = self._made[key] = _Made(account, before, on, snapshot)
        return kept.snapshot

    def has_simulated(self, team: str, period: Period) -> bool:
        """Whether the period has a simulated book."""
        return self._raw(team, period).has(True)

    def account(self, team: str, period: Period, simulated: bool) -> Account:
        """The cells themselves, for what needs hours and models together."""
        return self._account(team, period, simulated)[0]

    def trailing(self, period: Period) -> None:
        """Read what divides idle energy in the period and the one before, ahead of its use."""
        first, last = period.previous.start_s // DAY_S - TRAILING_DAYS, period.end_s // DAY_S
        self._trailing.by_day(first, min(last, int(self._clock()) // DAY_S))

    def _raw(self, team: str, period: Period) -> Raw:
        now_s = self._clock()
        key = (team, period.start_s, period.end_s)
        kept = self._raws.get(key)
        if kept and now_s - kept[0] < self._keep_for(period, now_s):
            return kept[1]
        raw = read(self.ledger, team, period.start_s, period.end_s)
        if len(self._raws) >= REMEMBERED:
            self._raws.clear()
        self._raws[key] = (now_s, raw)
        return raw

    def _account(self, team: str, period: Period, simulated: bool) -> tuple[Account, Raw]:
        raw = self._raw(team, period)
        key = (team, period.start_s, period.end_s, simulated, self.book.version)
        kept = self._kept.get(key)
        if kept and kept[1] is raw:
            return kept
        trailing = self._trailing_of(raw)
        account = build(raw, team, trailing, self.book, self.sites, simulated)
        if len(self._kept) >= REMEMBERED:
            self._kept.clear()
        self._kept[key] = (account, raw)
        return account, raw

    def _trailing_of(self, raw: Raw) -> Mapping[int, Mapping[tuple[str, str], int]]:
        days = [row.hour_s // DAY_S for row in raw.nodes if row.idle_uj]
        return self._trailing.by_day(min(days) - TRAILING_DAYS, max(days)) if days else {}

    def node_books(
        self,
        team: str,
        period: Period,
        simulated: bool,
        key: Callable[[str, int], str | None],
    ) -> list[BookRow]:
        """The rows of the line that reconciles, by ``key`` of node and hour."""
        raw = self._raw(team, period)
        pending = pending_rows(self.ledger, period.start_s, period.end_s)
        return node_books(raw, team, self._trailing_of(raw), self.sites, simulated, pending, key)

    def user_groups(self, team: str, period: Period, simulated: bool) -> tuple[Line, ...] | None:
        """What groups of users took, summing to the total; None where none may be shown."""
        if not user_groups.shown_for(period, self._clock()):
            return None
        account, raw = self._account(team, period, simulated)
        uses = user_uses(self.ledger, team, period.start_s, period.end_s)
        return user_groups.grouped(account, raw.dim_ids, uses)

    def _keep_for(self, period: Period, now_s: float) -> float:
        """How long what was read stands: longer for periods that receive nothing any more."""
        return KEEP_S if now_s < period.end_s + 2 * DAY_S else KEEP_S * SETTLED_TIMES

    def take(self, sites: Sites, budgets_g: Mapping[str, float]) -> None:
        """Use other places and budgets from now on."""
        self.sites = sites
        self._budgets = dict(budgets_g)
        self.forget()

    def forget(self) -> None:
        """Throw away the cells that are remembered for the next seconds."""
        self._raws.clear()
        self._kept.clear()
        self._made.clear()

    def budget_ug(self, team: str, period: Period) -> int | None:
        """The team's monthly budget for the period, by its days; None when there is none."""
        monthly = self._budgets.get(team)
        if monthly is None:
            return None
        share = sum(1.0 / _days_of_month(day.year, day.month) for day in period.days)
        return round(monthly * share * 1e6)

    def _assemble(
        self,
        team: str,
        period: Period,
        simulated: bool,
        account: Account,
        raw: Raw,
        before: Account,
    ) -> Snapshot:
        now_s = self._clock()
        table = summed.tabled(account)
        per_dim, old_dim = summed.by_dim(account, table), summed.by_dim(before)
        total = summed.add("total", per_dim)
        lines = {
            name: summed.group_by_dims(account, per_dim, name)
            for name in GROUPINGS
            if name not in ("evidence", "zone")
        }
        lines["evidence"] = summed.by_evidence(account)
        lines["zone"] = summed.by_zone(account)
        lines["day"] = summed.by_day(account, period)
        lines["hour"] = summed.by_hour(account)
        evidence = dict.fromkeys(Evidence, 0)
        tiers = dict.fromkeys(Tier, 0)
        c = account.cells
        for place, e in enumerate(EVIDENCE):
            evidence[e] = int(c.operational_ug[c.evidence == place].sum())
        for place, t in enumerate(TIERS):
            tiers[t] = int(c.operational_ug[c.tier == place].sum())
        old = summed.add("total", old_dim)
        has_before = bool(len(before.cells.dim) or len(before.asked))
        own, hosted, own_market, hosted_market = self._scopes(account, per_dim)
        instruments = bool(self.sites.instruments)
        drawn_from = {account.nodes[place] for place in np.unique(c.node) if place >= 0}
        metered = drawn_from & {row.node for row in hours_of(raw, simulated) if row.metered_uj}
        embodied_known = any(self.sites.site(node).gpus for node in metered)
        units = total.operational_ug / 1e6, total.embodied_ug / 1e6
        waters = [f.water_ml for f in account.factors]
        savings, lost = _savings(account)
        used = {source for f in account.factors for source in f.sources}
        snapshot = Snapshot(
            team=team,
            period=period.name,
            start_s=period.start_s,
            end_s=period.end_s,
            time_zone=period.time_zone,
            simulated=simulated,
            provisional=now_s < period.end_s + PROVISIONAL_S,
            total=total,
            lines=lines,
            range=_range(account),
            grade=grade(evidence, tiers, total.requests, total.unknown_requests),
            evidence=tuple((e.value, ug) for e, ug in evidence.items() if ug),
            tiers=tuple((t.value, ug) for t, ug in tiers.items() if ug),
            factors=account.factors,
            charges=summed.charges(account, table),
            scopes=scope_rows(
                own,
                hosted,
                total.embodied_ug if embodied_known else None,
                own_market if instruments else None,
                hosted_market if instruments else None,
            ),
            market_instruments=instruments,
            embodied_known=embodied_known,
            idle_known=bool(metered) or not drawn_from,
            sci_g_per_request=sci(*units, float(total.figured_requests)),
            sci_g_per_mtok=None
            if total.is_unknown
            else sci(*units, (total.prompt_tokens + total.output_tokens) / 1e6),
            water_ml=sum(w for w in waters if w is not None)
            if waters and None not in waters
            else None,
            reconciliation=account.reconciliation,
            own_uj=raw.own.energy_uj,
            own_metered_uj=raw.own.metered_uj,
            savings=savings,
            savings_without_figure=lost,
            holdout=hold_out(account),
            cache=_cache_use(account),
            bars=_bars(before, old_dim, account, per_dim) if has_before else None,
            previous=old if has_before else None,
            previous_period=period.compared(now_s).name,
            forecast=self._forecast(lines["day"], period, now_s),
            budget_ug=self.budget_ug(team, period),
            attributions=tuple(sorted({self._attributions.get(source, source) for source in used})),
            set_version=self.book.version,
            ledger_version=raw.version,
        )
        return sealed(snapshot)

    def _forecast(self, days: tuple[Line, ...], period: Period, now_s: float) -> Forecast | None:
        if not period.start_s <= now_s < period.end_s:
            return None
        today = local_day(now_s, period.time_zone)
        whole = [line.operational_ug for line in days if line.key < today.isoformat()]
        first = next((n for n, ug in enumerate(whole) if ug), len(whole))
        whole = whole[first:]  # days before anything was recorded say nothing of the rest
        left = (period.last - today + timedelta(days=1)).days
        expected = forecast(whole, float(left))
        if expected is None:
            return None
        so_far = float(sum(line.operational_ug for line in days))  # with the day that is not over
        return Forecast(*(max(so_far, ug) for ug in msgspec.structs.astuple(expected)))

    def _scopes(self, account: Account, per_dim: Sequence[Line]) -> list[int | None]:
        """Own and hosted micro-grams, location-based and market-based; None where no request of
        that kind has a figure."""
        c = account.cells
        sent = [
            (self.sites.is_hosted(d.backend, d.evidence == Evidence.MODELLED.value), line)
            for d, line in zip(account.dims, per_dim, strict=False)
            if d.backend
        ]
        own, others = (
            summed.add("", [line for is_hosted, line in sent if is_hosted is kind])
            for kind in (False, True)
        )
        hosted = of_others(account.dims, c.dim, c.evidence, self.sites)
        hosted &= c.component == ACTIVE  # others' hosts are within the model of them
        kinds = (
            (~hosted, own.is_unknown and not c.operational_ug[~hosted].any()),
            (hosted, others.is_unknown),
        )
        return [
            None if unknown else int(ug[of_kind].sum())
            for ug in (c.operational_ug, c.market_ug)
            for of_kind, unknown in kinds
        ]


def _days_of_month(year: int, month: int) -> int:
    return monthrange(year, month)[1]


class RangeRow(NamedTuple):
    """One independent error of a total: what it applies to, from where to where, in micro-grams."""

    what: str  # backend | idle | host | zone
    name: str
    part: Part


def range_rows(account: Account) -> list[RangeRow]:
    """What the range of a total is made of. The rows of backends, idle and host sum to the total;
    those of zones are errors of the grid's factors on all of it."""
    parts, relative = _errors(account)
    found = [RangeRow(what, name, part) for what, name, part in parts]
    for what, name, amount, share in relative:
        found.append(RangeRow(what, name, Part(-amount * share, 0.0, amount * share)))
    return found


def _range(account: Account) -> Part:
    parts, relative = _errors(account)
    return combine(
        (part for _, _, part in parts), ((amount, share) for _, _, amount, share in relative)
    )


def _errors(
    account: Account,
) -> tuple[list[tuple[str, str, Part]], list[tuple[str, str, float, float]]]:
    """Parts with errors of their own, and errors relative to an amount, each with its name."""
    c = account.cells
    estimated = c.high_ug > 0
    metered = (c.evidence == EVIDENCE.index(Evidence.METERED)) | (
        (c.evidence == EVIDENCE.index(Evidence.SIMULATED)) & ~estimated
    )
    parts: list[tuple[str, str, Part]] = []
    names = [d.backend for d in account.dims]
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        groups.setdefault(name, []).append(place)
    own = c.component != HOST
    for name, places in groups.items():
        of_backend = np.isin(c.dim, places) & own
        ug = c.operational_ug[of_backend].astype(np.float64)
        if not len(ug):
            continue
        low = np.where(estimated[of_backend], c.low_ug[of_backend], ug * (1 - METERED_ERROR))
        high = np.where(estimated[of_backend], c.high_ug[of_backend], ug * (1 + METERED_ERROR))
        # a figure without a band of its own may be wrong by half
        bare = ~estimated[of_backend] & ~metered[of_backend]
        low, high = np.where(bare, ug * 0.5, low), np.where(bare, ug * 1.5, high)
        part = Part(float(low.sum()), float(ug.sum()), float(high.sum()))
        parts.append(("backend", name, part))
    idle = float(c.operational_ug[c.component == IDLE].sum())
    part = Part(idle * (1 - METERED_ERROR), idle, idle * (1 + METERED_ERROR))
    parts.append(("idle", "", part))
    host = c.component == HOST
    host_ug = float(c.operational_ug[host].sum())
    parts.append(("host", "", Part(host_ug, host_ug, host_ug)))
    modelled_host = float(c.operational_ug[host & ~metered].sum())
    relative = [("host", "", modelled_host, HOST_MODEL_ERROR)]
    for zone, zone_name in enumerate(account.zones):
        of_zone = c.zone == zone
        error = sum(
            float(c.operational_ug[of_zone & (c.tier == place)].sum()) * TIER_ERROR[tier]
            for place, tier in enumerate(TIERS)
        )
        relative.append(("zone", zone_name or "world", error, 1.0))
    return parts, relative


def _bars(
    before: Account, old_dim: Sequence[Line], after: Account, per_dim: Sequence[Line]
) -> Bars:
    old, new = models_of(before, old_dim), models_of(after, per_dim)
    return decompose(old, new, _idle_ug(before), _idle_ug(after))


def models_of(account: Account, per_dim: Sequence[Line] | None = None) -> dict[str, Group]:
    """An account by model, as the decomposition takes it; ``per_dim`` are its lines if known."""
    lines = summed.group_by_dims(account, per_dim or summed.by_dim(account), "model")
    return {
        line.key: Group(line.requests, line.active_uj + line.host_uj, line.operational_ug)
        for line in lines
        if line.key != summed.IDLE_LINE
    }


def _idle_ug(account: Account) -> int:
    return int(account.cells.operational_ug[account.cells.dim < 0].sum())


def _savings(account: Account) -> tuple[tuple[Saving, ...], int]:
    """By lever, from the estimates on both sides; and how many requests have no counterfactual."""
    asked = account.asked
    if not len(asked):
        return (), 0
    # What was metered where nothing had been predicted says nothing of predictions.
    both = asked[asked[:, ASKED["metered_estimate_uj"]] > 0]
    metered = float(both[:, ASKED["metered_uj"]].sum())
    predicted = float(both[:, ASKED["metered_estimate_uj"]].sum())
    correction = metered / predicted if metered > 0 and predicted > 0 else 1.0
    hit = np.array([d.cache in CACHE_HITS for d in account.dims], dtype=bool)[asked[:, 1]]
    found = []
    for lever, of_lever in (("route", ~hit), ("cache", hit)):
        rows = asked[of_lever]
        n = int(rows[:, ASKED["counterfactual_known"]].sum())
        if not n:
            continue
        middle = float(rows[:, ASKED["energy_uj"]].sum())
        width = float((rows[:, ASKED["energy_high_uj"]] - rows[:, ASKED["energy_low_uj"]]).sum())
        error = width / 2 / middle if middle > 0 and width > 0 else 0.5
        found.append(
            saving(
                lever,
                n,
                float(rows[:, ASKED["counterfactual_carbon_ug"]].sum()) / 1e6,
                float(rows[:, ASKED["compared_carbon_ug"]].sum()) / 1e6,
                correction,
                min(error, 1.0),
            )
        )
    known = int(asked[:, ASKED["counterfactual_known"]].sum())
    return tuple(found), int(asked[:, ASKED["requests"]].sum()) - known


def _cache_use(account: Account) -> CacheUse:
    asked = account.asked
    if not len(asked):
        return CacheUse(hits=0, cacheable=0, avoided_uj=0, without_figure=0)
    of_dim = np.array([d.cache for d in account.dims])[asked[:, 1]]
    hit = np.isin(of_dim, tuple(CACHE_HITS))
    rows = asked[hit]
    hits = int(rows[:, ASKED["requests"]].sum())
    return CacheUse(
        hits=hits,
        cacheable=hits + int(asked[of_dim == "miss", ASKED["requests"]].sum()),
        avoided_uj=int(rows[:, ASKED["counterfactual_energy_uj"]].sum()),
        without_figure=hits - int(rows[:, ASKED["counterfactual_known"]].sum()),
    )


def claimed(savings: tuple[Saving, ...]) -> Saving | None:
    """The sum of the levers that may be claimed, half-widths in quadrature; None: nothing is."""
    good = [s for s in savings if s.claimed]
    if not good:
        return None
    middle = sum(s.mid_g for s in good)
    below = math.sqrt(sum((s.mid_g - s.low_g) ** 2 for s in good))
    above = math.sqrt(sum((s.high_g - s.mid_g) ** 2 for s in good))
    return Saving(
        lever="all",
        requests=sum(s.requests for s in good),
        low_g=middle - below,
        mid_g=middle,
        high_g=middle + above,
    )
