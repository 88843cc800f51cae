"""One team's period as columns of whole numbers, read from the ledger's roll-ups.

Nothing here reads a request row except ``request_rows``, which lists a page of them.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Text, and_, case, cast, func, or_, select

from meters.ledger import Ledger
from meters.ourselves import OwnSums, used
from meters.schema import (
    dims,
    energy_hours,
    node_hours,
    request_hours,
    requests,
    shares,
    team_days,
)
from meters.types import CACHE_HITS

Ints = NDArray[np.int64]
DAY_S = 86_400
HOUR_S = 3600
TRAILING_DAYS = 28
LATELY_DAYS = 7
PAGE_ROWS = 50
BATCH_ROWS = 512
TEXT_SPAN_S = 32 * DAY_S  # so that a year's columns are never one text
RECENT_KEPT_S = 60.0
SETTLED_KEPT_S = 3600.0


class Dim(NamedTuple):
    """One combination of what requests are grouped by; '' where a row has none."""

    team: str
    project: str
    key_id: str
    tags: str
    endpoint: str
    model_asked: str
    model_group: str
    backend: str
    node: str
    zone: str
    pue: float | None
    policy: str
    task: str
    cache: str
    outcome: str
    evidence: str
    simulated: bool
    counterfactual_backend: str
    arm: str

    @property
    def model(self) -> str:
        """What served: the backend's group, else its name, else what was asked for."""
        return self.model_group or self.backend or self.model_asked or "(none)"


class NodeHour(NamedTuple):
    """One node's hour, in whole micro-units."""

    node: str
    hour_s: int
    evidence: str
    metered_uj: int
    attributed_uj: int
    idle_uj: int
    external_uj: int
    unattributed_uj: int
    metered_us: int
    host_energy_uj: int
    host_known: int
    windows: int


class Raw(NamedTuple):
    """What the roll-ups hold of one team and period."""

    dims: list[Dim]
    dim_ids: list[int]  # their numbers in the ledger
    # metered energy by the hour it was drawn: hour, dim, index of node, index of evidence, uJ
    drawn: Ints
    drawn_nodes: list[str]
    drawn_evidence: list[str]
    # sums of requests by the hour they arrived: hour, dim, then USED_SUMS
    asked: Ints
    nodes: list[NodeHour]  # of all nodes: the organisation's, not the team's
    pending_uj: int  # shares in the period whose request has not been recorded yet
    pending_simulated_uj: int
    own: OwnSums = OwnSums()  # of Joulegate's processes; in no sum

    def has(self, simulated: bool) -> bool:
        """Whether anything of that book was read."""
        flags = [dim.simulated for dim in self.dims]
        asked = any(flags[place] is simulated for place in places(self.asked[:, 1]))
        return asked or self.ran(simulated)

    def ran(self, simulated: bool) -> bool:
        """Whether a backend of that book was asked, or anything drawn there."""
        ran = [dim.simulated is simulated and dim.backend != "" for dim in self.dims]
        if any(ran[place] for place in places(self.asked[:, 1])):
            return True
        made_up = [how == "simulated" for how in self.drawn_evidence]
        return any(made_up[place] is simulated for place in places(self.drawn[:, 3]))

    @property
    def version(self) -> str:
        """A digest of everything that was read: the ledger as this account saw it."""
        digest = hashlib.sha256()
        for part in (self.drawn, self.asked):
            digest.update(np.ascontiguousarray(part).tobytes())
        digest.update(repr((self.dims, self.nodes, self.drawn_nodes, self.pending_uj)).encode())
        return digest.hexdigest()[:12]


def places(column: Ints) -> list[int]:
    """The distinct numbers of a column of places, in order; quicker than sorting it."""
    return np.flatnonzero(np.bincount(column)).tolist() if len(column) else []


# The sums of requests that an account needs, and where each is in a row of ``Raw.asked``.
USED_SUMS = (
    "requests",
    "prompt_tokens",
    "cached_prompt_tokens",
    "output_tokens",
    "energy_uj",
    "energy_low_uj",
    "energy_high_uj",
    "energy_known",
    "counterfactual_energy_uj",
    "counterfactual_carbon_ug",
    "counterfactual_known",
    "compared_carbon_ug",
    "metered_uj",
    "metered_requests",
    "metered_estimate_uj",
    "metered_estimate_low_uj",
    "metered_estimate_high_uj",
)
ASKED = {name: place + 2 for place, name in enumerate(USED_SUMS)}


def read(ledger: Ledger, team: str, start_s: int, end_s: int) -> Raw:
    """The roll-ups of ``team`` for the hours that start in [start_s, end_s), in one transaction."""
    with ledger.database.read() as connection:
        return _read(connection, team, start_s, end_s)


def _read(connection: Connection, team: str, start_s: int, end_s: int) -> Raw:
    found = connection.execute(
        select(dims.c.dim_id, *(dims.c[name] for name in Dim._fields))
        .where(dims.c.team == team)
        .order_by(dims.c.dim_id)
    ).all()
    e, r, n = energy_hours.c, request_hours.c, node_hours.c

    drawn, drawn_nodes, drawn_evidence = _drawn(connection, team, start_s, end_s)
    wanted = (r.hour_s, r.dim_id, *(r[name] for name in USED_SUMS))
    asked = _columns(connection, wanted, r, team, start_s, end_s, ordered_by=2)
    numbers = np.array([row[0] for row in found], dtype=np.int64)
    for table in (drawn, asked):
        table[:, 1] = np.searchsorted(numbers, table[:, 1])
    node_rows = _all(
        connection,
        select(
            n.node,
            n.hour_s,
            n.evidence,
            *(cast(func.sum(n[name]), n[name].type) for name in NodeHour._fields[3:]),
        )
        .where(n.hour_s >= start_s, n.hour_s < end_s)
        .group_by(n.node, n.hour_s, n.evidence)
        .order_by(n.node, n.hour_s, n.evidence),
    )
    pending = dict(
        connection.execute(
            select(e.metered_evidence, func.sum(e.energy_uj))
            .where(e.team == "", e.hour_s >= start_s, e.hour_s < end_s)
            .group_by(e.metered_evidence)
        ).all()
    )
    simulated = int(pending.pop("simulated", 0) or 0)
    return Raw(
        dims=[Dim(*row[1:]) for row in found],
        dim_ids=[row[0] for row in found],
        drawn=drawn,
        drawn_nodes=drawn_nodes,
        drawn_evidence=drawn_evidence,
        asked=asked,
        nodes=[NodeHour(*row) for row in node_rows],
        pending_uj=sum(int(v or 0) for v in pending.values()),
        pending_simulated_uj=simulated,
        own=used(connection, start_s, end_s),
    )


def _all(connection: Connection, query: Any) -> list[tuple[Any, ...]]:
    """All rows as plain tuples, without what an ORM's row objects cost: these are many."""
    return list(chain.from_iterable(_batches(connection, query)))


def _batches(connection: Connection, query: Any) -> Iterator[Sequence[Any]]:
    """The rows, some at a time, so that what is made of them takes the same memory again."""
    compiled = query.compile(connection, compile_kwargs={"render_postcompile": True})
    cursor = connection.exec_driver_sql(str(compiled), _bound(compiled)).cursor
    while cursor is not None and (rows := cursor.fetchmany(BATCH_ROWS)):
        yield rows


def _bound(compiled: Any) -> Any:
    """The parameters as this database's driver takes them."""
    values = compiled.params
    if compiled.positional:
        return tuple(values[name] for name in compiled.positiontup)
    return dict(values)


def _drawn(
    connection: Connection, team: str, start_s: int, end_s: int
) -> tuple[Ints, list[str], list[str]]:
    """Metered energy as in ``Raw.drawn``, with the names of nodes and of evidence."""
    e = energy_hours.c
    of_team = and_(e.team == team, e.hour_s >= start_s, e.hour_s < end_s)
    kinds = connection.execute(
        select(e.metered_node, e.metered_evidence).where(of_team).distinct()
    ).all()
    nodes, evidence = (sorted({row[place] for row in kinds}) for place in (0, 1))
    place_of_node = case({name: n for n, name in enumerate(nodes)}, value=e.metered_node)
    place_of_kind = case({name: n for n, name in enumerate(evidence)}, value=e.metered_evidence)
    wanted = (e.hour_s, e.dim_id, place_of_node, place_of_kind, e.energy_uj)
    if not kinds:
        return np.zeros((0, len(wanted)), dtype=np.int64), [], []
    return _columns(connection, wanted, e, team, start_s, end_s, ordered_by=4), nodes, evidence


def _columns(
    connection: Connection,
    wanted: Sequence[Any],
    c: Any,
    team: str,
    start_s: int,
    end_s: int,
    ordered_by: int,
) -> Ints:
    """Rows of whole numbers of a team's hours as an array, in the order of the first
    ``ordered_by`` columns; each column lies together in memory.

    The database writes each column as one text: reading that takes half of the time of making a
    Python number of every value, and a first screen is mostly this.
    """
    if connection.dialect.name != "sqlite":  # which takes numbers for texts, and faster
        wanted = [cast(each, Text) for each in wanted]
    query = select(*(func.aggregate_strings(each, ",") for each in wanted))
    parts = [np.zeros((len(wanted), 0), dtype=np.int64)]
    for first_s in range(start_s, end_s, TEXT_SPAN_S):
        until_s = min(first_s + TEXT_SPAN_S, end_s)
        of_team = and_(c.team == team, c.hour_s >= first_s, c.hour_s < until_s)
        texts = connection.execute(query.where(of_team)).one()
        if texts[0] is not None:
            parts.append(np.stack([np.fromstring(text, dtype=np.int64, sep=",") for text in texts]))
    columns = parts[-1] if len(parts) == 2 else np.concatenate(parts, axis=1)
    order = np.lexsort(columns[ordered_by - 1 :: -1])
    if np.any(np.diff(order) != 1):
        columns = columns[:, order]
    return columns.T


class Trailing:
    """Energy by node, day and team, for the rule that allots idle; whole days are remembered."""

    def __init__(self, ledger: Ledger) -> None:
        self._database = ledger.database
        self._days: dict[int, Mapping[tuple[str, str], int]] = {}
        self._read_at_s: dict[int, float] = {}

    def by_day(self, first_day: int, last_day: int) -> dict[int, Mapping[tuple[str, str], int]]:
        """(node, team) -> micro-joules, for each UTC day since 1970 in the span, both included."""
        now_s = time.time()
        settled = int(now_s // DAY_S) - 2  # later days still receive windows
        missing = [
            day
            for day in range(first_day, last_day + 1)
            if now_s - self._read_at_s.get(day, 0.0)
            > (SETTLED_KEPT_S if day <= settled else RECENT_KEPT_S)
        ]
        if missing:
            fresh = self._query(missing[0], missing[-1])
            for day in range(missing[0], missing[-1] + 1):
                self._days[day] = fresh.get(day, {})
                self._read_at_s[day] = now_s
        return {day: self._days[day] for day in range(first_day, last_day + 1)}

    def _query(self, first_day: int, last_day: int) -> dict[int, Mapping[tuple[str, str], int]]:
        d = team_days.c
        found: dict[int, dict[tuple[str, str], int]] = defaultdict(dict)
        with self._database.ask() as connection:
            query = select(d.day, d.node, d.team, d.energy_uj).where(
                d.day >= first_day, d.day <= last_day
            )
            for day, node, team, uj in _all(connection, query):
                found[day][node, team] = uj
        return dict(found)


def whole_hours(at_s: float) -> float:
    """Where the first UTC hour begins that begins no earlier. A local day of a zone at a half-hour
    offset has those hours that begin in it, so requests are listed as they are summed."""
    return float(-(-at_s // HOUR_S) * HOUR_S)


class RequestFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which requests to list, of the hours that begin in a period. None does not filter; ''
    means "has none"."""

    team: str
    start_s: float
    end_s: float
    model: str | None = None
    backend: str | None = None
    key: str | None = None
    tag: str | None = None
    project: str | None = None
    task: str | None = None
    policy: str | None = None
    zone: str | None = None
    evidence: str | None = None
    outcome: str | None = None
    cache: str | None = None
    node: str | None = None
    figure: str | None = None  # "none": sent, and nothing says what they used
    saving: str | None = None  # "route" or "cache": with a counterfactual of that lever; "none"
    arm: str | None = None  # of an experiment
    hours_s: Sequence[int] | None = None  # those that arrived in one of these UTC hours
    simulated: bool = False


def request_rows(
    ledger: Ledger, wanted: RequestFilter, before: tuple[float, str] | None = None
) -> list[dict[str, Any]]:
    """The newest PAGE_ROWS requests that fit, older than ``before`` (start and id), with the sum
    of each one's shares as ``metered_uj`` (None: none)."""
    c = requests.c
    rules = [
        c.team == wanted.team,
        c.start_s >= whole_hours(wanted.start_s),
        c.start_s < whole_hours(wanted.end_s),
        c.simulated == wanted.simulated,
    ]
    named = {
        "backend": wanted.backend,
        "key_id": wanted.key,
        "project": wanted.project,
        "task": wanted.task,
        "policy": wanted.policy,
        "zone": wanted.zone,
        "outcome": wanted.outcome,
        "cache": None if wanted.cache in ("hits", "never") else wanted.cache,
        "node": wanted.node,
        "arm": wanted.arm,
    }
    for column, value in named.items():
        if value is not None:
            rules.append(func.coalesce(c[column], "") == value)
    if wanted.model is not None:
        served = func.coalesce(
            func.nullif(c.model_group, ""), func.nullif(c.backend, ""), c.model_asked
        )
        rules.append(served == ("" if wanted.model == "(none)" else wanted.model))
    if wanted.tag is not None:
        if wanted.tag == "":
            rules.append(c.tags == "")
        else:
            rules.append(("," + c.tags + ",").contains(f",{wanted.tag},", autoescape=True))
    if before is not None:
        at_s, request_id = before
        rules.append(or_(c.start_s < at_s, and_(c.start_s == at_s, c.request_id < request_id)))
    # PostgreSQL makes a NUMERIC of sums of BIGINT
    metered = (
        select(cast(func.sum(shares.c.energy_uj), shares.c.energy_uj.type))
        .where(shares.c.request_id == c.request_id)
        .scalar_subquery()
    )
    if wanted.evidence == "metered":
        rules.append(metered.is_not(None))
    elif wanted.evidence is not None:
        rules += [metered.is_(None), c.evidence == wanted.evidence]
    if wanted.cache == "hits":  # the same prompt, or one so like it that its answer will do
        rules.append(c.cache.in_(sorted(CACHE_HITS)))
    elif wanted.cache == "never":  # may not be cached
        rules.append(c.cache.not_in(["miss", *sorted(CACHE_HITS)]))
    if wanted.hours_s is not None:
        rules.append(c.hour_s.in_(wanted.hours_s))
    if wanted.figure == "none":
        rules += [metered.is_(None), c.energy_uj.is_(None), func.coalesce(c.backend, "") != ""]
    if wanted.saving == "none":
        rules.append(c.counterfactual_energy_uj.is_(None))
    elif wanted.saving is not None:
        hit = c.cache.in_(sorted(CACHE_HITS))
        rules += [
            c.counterfactual_energy_uj.is_not(None),
            hit if wanted.saving == "cache" else ~hit,
        ]
    query = (
        select(requests, metered.label("metered_uj"))
        .where(*rules)
        .order_by(c.start_s.desc(), c.request_id.desc())
        .limit(PAGE_ROWS)
    )
    with ledger.database.read() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def pending_rows(ledger: Ledger, start_s: int, end_s: int) -> dict[tuple[str, int, bool], int]:
    """Shares whose request is not recorded yet: micro-joules by node, hour and whether they are
    simulated."""
    e = energy_hours.c
    found: dict[tuple[str, int, bool], int] = defaultdict(int)
    query = select(e.metered_node, e.hour_s, e.metered_evidence, e.energy_uj).where(
        e.team == "", e.hour_s >= start_s, e.hour_s < end_s
    )
    with ledger.database.read() as connection:
        for node, hour_s, evidence, uj in connection.execute(query):
            found[node, hour_s, evidence == "simulated"] += int(uj)
    return dict(found)


class UserUse(NamedTuple):
    """What one user's requests of one combination of dimensions are in the ledger's rows."""

    dim_id: int
    user: str  # a pseudonym; '' where none was kept
    requests: int
    energy_uj: int  # of the estimates


def user_uses(ledger: Ledger, team: str, start_s: int, end_s: int) -> list[UserUse]:
    """The team's requests of the hours that begin in a period, by combination and user."""
    c = requests.c
    user = func.coalesce(c.user_hash, "")
    query = (
        select(c.dim_id, user, func.count(), func.coalesce(func.sum(c.energy_uj), 0))
        .where(c.team == team)
        .where(c.start_s >= whole_hours(start_s), c.start_s < whole_hours(end_s))
        .group_by(c.dim_id, user)
        .order_by(c.dim_id, user)
    )
    with ledger.database.read() as connection:
        return [UserUse(int(d), u, int(n), int(uj)) for d, u, n, uj in connection.execute(query)]


def span(ledger: Ledger, team: str) -> tuple[float, float] | None:
    """The first and last hour with requests of the team; None when there are none."""
    r = request_hours.c
    with ledger.database.read() as connection:
        first, last = connection.execute(
            select(func.min(r.hour_s), func.max(r.hour_s)).where(r.team == team)
        ).one()
    return None if first is None else (float(first), float(last))
