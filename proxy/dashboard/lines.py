"""An account's cells and requests added up, by any of their properties: the sums are the same
however they are grouped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from typing import NamedTuple

import msgspec
import numpy as np

from meters.exact import apportion
from meters.types import Evidence
from proxy.dashboard.account import (
    ACTIVE,
    EVIDENCE,
    HOST,
    HOUR_S,
    IDLE,
    Account,
    Cells,
    evidence_place,
)
from proxy.dashboard.accounting import split_by_tags
from proxy.dashboard.periods import Period
from proxy.dashboard.queries import ASKED, Dim, Ints

IDLE_LINE = "(idle share)"


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One row of any table: whole numbers that add up. Joules are micro, grams are micro."""

    key: str
    requests: int = 0
    unknown_requests: int = 0  # sent, but without any figure of energy
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    output_tokens: int = 0
    active_uj: int = 0
    idle_uj: int = 0
    host_uj: int = 0
    overhead_uj: int = 0
    operational_ug: int = 0  # location-based
    market_ug: int = 0  # equal to location-based where no instrument is stated
    embodied_ug: int = 0

    @property
    def device_uj(self) -> int:
        """GPU energy: caused by requests, and the idle share."""
        return self.active_uj + self.idle_uj

    @property
    def facility_uj(self) -> int:
        """Everything at the facility's meter."""
        return self.active_uj + self.idle_uj + self.host_uj + self.overhead_uj

    @property
    def is_unknown(self) -> bool:
        """Whether there were requests and none of them has a figure: a dash, never 0."""
        return 0 < self.requests == self.unknown_requests and not self.facility_uj

    def known(self, name: str) -> int | None:
        """One of its sums of energy or carbon; None where no request has a figure."""
        return None if self.is_unknown else int(getattr(self, name))

    @property
    def figured_requests(self) -> int:
        """Requests with a figure, or that needed none: what means are of, as unknown is no 0."""
        return self.requests - self.unknown_requests

    @property
    def ug_per_1k_requests(self) -> float | None:
        """Operational micro-grams per thousand requests with a figure; None without any."""
        n = self.figured_requests
        return self.operational_ug / n * 1e3 if n else None

    @property
    def g_per_1k_requests(self) -> float | None:
        per = self.ug_per_1k_requests
        return None if per is None else per / 1e6

    @property
    def ug_per_mtok(self) -> float | None:
        """Operational micro-grams per million tokens, input and output together."""
        tokens = self.prompt_tokens + self.output_tokens
        return self.operational_ug / tokens * 1e6 if tokens and not self.is_unknown else None

    @property
    def g_per_mtok(self) -> float | None:
        per = self.ug_per_mtok
        return None if per is None else per / 1e6


SUMMED = tuple(f.name for f in msgspec.structs.fields(Line) if f.name != "key")
COUNTED = SUMMED[:5]
WEIGHED = SUMMED[5:]


def add(key: str, lines: Sequence[Line]) -> Line:
    """The sum of lines."""
    return Line(key=key, **{name: sum(getattr(line, name) for line in lines) for name in SUMMED})


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """What one model took at one backend in one zone under one set of tags."""

    model: str  # IDLE_LINE for the idle share, whose backend is the node's name
    backend: str
    zone: str  # '' where it is not known
    tags: tuple[str, ...]
    line: Line


def _sums(cells: Cells, groups: Ints, count: int) -> list[list[int]]:
    """Per group: active, idle, host, overhead, operational, market, embodied."""
    columns = [
        np.where(cells.component == ACTIVE, cells.energy_uj, 0),
        np.where(cells.component == IDLE, cells.energy_uj, 0),
        np.where(cells.component == HOST, cells.energy_uj, 0),
        cells.overhead_uj,
        cells.operational_ug,
        cells.market_ug,
        cells.embodied_ug,
    ]
    return _added(columns, groups, count)


def _added(columns: Sequence[Ints], groups: Ints, count: int) -> list[list[int]]:
    """The sums of each column for each group."""
    table = []
    for column in columns:
        out = np.zeros(count, dtype=np.int64)
        np.add.at(out, groups, column)
        table.append(out.tolist())
    return [list(row) for row in zip(*table, strict=True)]


def _counts(account: Account, groups: Ints, count: int) -> list[list[int]]:
    """Per group: requests, unknown, prompt, cached, output tokens."""
    asked = account.asked
    columns = [
        asked[:, ASKED["requests"]],
        unknown_requests(account),
        asked[:, ASKED["prompt_tokens"]],
        asked[:, ASKED["cached_prompt_tokens"]],
        asked[:, ASKED["output_tokens"]],
    ]
    return _added(columns, groups, count)


def unknown_requests(account: Account) -> Ints:
    """Requests that were sent to a backend and have neither a share nor an estimate."""
    asked = account.asked
    sent = np.array([bool(d.backend) for d in account.dims] or [False], dtype=bool)
    metered = asked[:, ASKED["metered_requests"]]
    estimated = np.maximum(asked[:, ASKED["energy_known"]] - metered, 0)
    unknown = np.maximum(asked[:, ASKED["requests"]] - metered - estimated, 0)
    return np.where(sent[asked[:, 1]], unknown, 0) if len(asked) else unknown


def _line(key: str, counts: Sequence[int], energy: Sequence[int]) -> Line:
    values = dict(zip((*COUNTED, *WEIGHED), (*counts, *energy), strict=True))
    return Line(key=key, **values)


class Table(NamedTuple):
    """Sums by combination of dimensions and zone, then by idle node and zone; a zone's place
    within a row. Both that of the dimensions and that of the charges are sums of it."""

    counts: list[list[int]]
    energy: list[list[int]]
    zones: int
    dims: int


def tabled(account: Account) -> Table:
    """Every cell and request of the account, once."""
    c, zones = account.cells, max(1, len(account.zones))
    dims, nodes = len(account.dims), len(account.nodes) + 1
    place = np.where(c.dim < 0, dims + c.node + 1, c.dim) * zones + c.zone
    asked = account.asked[:, 1]
    where = asked * zones + (account.dim_zone[asked] if len(asked) else 0)
    count = (dims + nodes) * zones
    return Table(_counts(account, where, count), _sums(c, place, count), zones, dims)


def by_dim(account: Account, table: Table | None = None) -> list[Line]:
    """One line per combination of dimensions, and last the idle share."""
    found = table or tabled(account)

    def line(name: str, first: int, end: int) -> Line:
        return _line(
            name,
            [sum(column) for column in zip(*found.counts[first:end], strict=True)],
            [sum(column) for column in zip(*found.energy[first:end], strict=True)],
        )

    zones, idle = found.zones, found.dims * found.zones
    lines = [line(str(i), i * zones, (i + 1) * zones) for i in range(found.dims)]
    return [*lines, line(str(found.dims), idle, len(found.counts))]


def charges(account: Account, table: Table | None = None) -> tuple[Charge, ...]:
    """One for each model, backend, zone and set of tags, and one for each node that idled for the
    team; they sum to the total."""
    counts, energy, zones, dims = table or tabled(account)
    found: dict[tuple[str, str, str, str], list[Line]] = defaultdict(list)
    for at, (n, uj) in enumerate(zip(counts, energy, strict=True)):
        if not (any(n) or any(uj)):
            continue
        row, zone = at // zones, account.zones[at % zones] if account.zones else ""
        if row < dims:
            d = account.dims[row]
            key = d.model, d.backend, zone, d.tags
        else:
            node = row - dims - 1
            key = IDLE_LINE, account.nodes[node] if node >= 0 else "", zone, ""
        found[key].append(_line("", n, uj))
    return tuple(
        Charge(
            model=model,
            backend=backend,
            zone=zone,
            tags=tuple(tag for tag in tags.split(",") if tag),
            line=add("", found[model, backend, zone, tags]),
        )
        for model, backend, zone, tags in sorted(found)
    )


DIM_KEYS: Mapping[str, Callable[[Dim], str]] = {
    "model": lambda d: d.model,
    "backend": lambda d: d.backend or "(nothing sent)",
    "key": lambda d: d.key_id or "(no key)",
    "project": lambda d: d.project or "(no project)",
    "task": lambda d: d.task or "(no task)",
    "policy": lambda d: d.policy or "(no policy)",
}


def group_by_dims(account: Account, lines: Sequence[Line], name: str) -> tuple[Line, ...]:
    """Lines by a dimension, largest first; ``lines`` are those of ``by_dim``."""
    if name == "tag":
        return _by_tag(account, lines)
    key_of = DIM_KEYS[name]
    groups: dict[str, list[Line]] = defaultdict(list)
    for dim, line in zip(account.dims, lines, strict=False):
        if any(getattr(line, field) for field in SUMMED):
            groups[key_of(dim)].append(line)
    if any(getattr(lines[-1], field) for field in SUMMED):
        groups[IDLE_LINE].append(lines[-1])
    return _largest_first(add(key, group) for key, group in groups.items())


def _by_tag(account: Account, lines: Sequence[Line]) -> tuple[Line, ...]:
    """A request with several tags counts in equal parts for each of them."""
    sums: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(SUMMED, 0))
    for dim, line in zip(account.dims, lines, strict=False):
        tags = [tag for tag in dim.tags.split(",") if tag]
        for field in SUMMED:
            amount = getattr(line, field)
            if amount:
                for tag, part in split_by_tags(amount, tags):
                    sums[tag or "(untagged)"][field] += part
    found = [Line(key=key, **values) for key, values in sums.items()]
    if any(getattr(lines[-1], field) for field in SUMMED):
        found.append(add(IDLE_LINE, [lines[-1]]))
    return _largest_first(found)


def _largest_first(lines: Iterable[Line]) -> tuple[Line, ...]:
    return tuple(sorted(lines, key=lambda x: (-x.operational_ug, -x.requests, x.key)))


def by_day(account: Account, period: Period) -> tuple[Line, ...]:
    """One line for each local day, also those without requests."""
    edges = np.array([day_start for day_start, _ in _days(period)], dtype=np.int64)
    names = [name for _, name in _days(period)]
    return _by_place(account, names, lambda hours: np.searchsorted(edges, hours, "right") - 1)


def _days(period: Period) -> list[tuple[int, str]]:
    from_s = [
        (Period(name="", first=d, last=d, time_zone=period.time_zone).start_s, d)
        for d in period.days
    ]
    return [(start_s, date.isoformat(d)) for start_s, d in from_s]


def by_hour(account: Account) -> tuple[Line, ...]:
    """One line for each UTC hour that has anything."""
    hours = distinct_hours(np.concatenate([account.cells.hour_s, account.asked[:, 0]]))
    names = [f"{text}Z" for text in np.datetime_as_string(hours.astype("datetime64[s]"), "s")]
    return _by_place(account, names, lambda found: np.searchsorted(hours, found))


def distinct_hours(hour_s: Ints) -> Ints:
    """The hours of a column, in order, without sorting what is long."""
    if not len(hour_s):
        return hour_s
    first_s = hour_s.min()
    found: Ints = np.flatnonzero(np.bincount((hour_s - first_s) // HOUR_S)) * HOUR_S + first_s
    return found


def by_zone(account: Account) -> tuple[Line, ...]:
    """One line for each grid zone."""
    names = [name or "world" for name in account.zones] or ["world"]
    energy = _sums(account.cells, account.cells.zone, len(names))
    # requests are counted where their dimension says they went
    of_dim = account.dim_zone[account.asked[:, 1]] if len(account.asked) else account.asked[:, 0]
    counts = _counts(account, of_dim, len(names))
    return tuple(
        line
        for line in map(_line, names, counts, energy)
        if any(getattr(line, field) for field in SUMMED)
    )


def _by_place(
    account: Account, names: Sequence[str], place: Callable[[Ints], Ints]
) -> tuple[Line, ...]:
    energy = _sums(account.cells, place(account.cells.hour_s), len(names))
    counts = _counts(account, place(account.asked[:, 0]), len(names))
    return tuple(_line(n, c, e) for n, c, e in zip(names, counts, energy, strict=True))


def by_evidence(account: Account) -> tuple[Line, ...]:
    """One line per evidence; requests count where their energy's figure comes from."""
    count = len(EVIDENCE)
    energy = _sums(account.cells, account.cells.evidence, count)
    counts = [[0] * 5 for _ in EVIDENCE]
    groups = account.asked[:, 1]
    metered_of = np.zeros(len(account.dims), dtype=np.int64)
    np.add.at(metered_of, groups, account.asked[:, ASKED["metered_requests"]])
    simulated, unknown = EVIDENCE.index(Evidence.SIMULATED), EVIDENCE.index(Evidence.UNKNOWN)
    sums = _counts(account, groups, len(account.dims))
    for dim, (n, lost, *tokens), metered in zip(
        account.dims, sums, metered_of.tolist(), strict=True
    ):
        if not n:
            continue
        whole = {simulated if dim.simulated else EVIDENCE.index(Evidence.METERED): metered}
        whole[unknown] = whole.get(unknown, 0) + lost
        rest = simulated if dim.simulated else evidence_place(dim.evidence)
        whole[rest] = whole.get(rest, 0) + n - metered - lost
        counts[unknown][1] += lost
        for place, amount in ((0, n), *enumerate(tokens, 2)):
            parts = apportion(amount, [amount * w / n for w in whole.values()])
            for kind, part in zip(whole, parts, strict=True):
                counts[kind][place] += part
    return tuple(
        _line(e.value, c, w)
        for e, c, w in zip(EVIDENCE, counts, energy, strict=True)
        if any(c) or any(w)
    )
