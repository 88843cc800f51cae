"""What rows add to the roll-ups, and what the roll-ups must be. Pure but for the SQL it names.

Roll-ups are changed in the transaction that writes the rows, by the difference the rows make;
``expected_*`` say in SQL what they must then equal, row by row (``Ledger.check`` compares).
Everything added is a whole number, so neither order nor batching can change a sum.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import compress
from operator import itemgetter
from typing import Any

from sqlalchemy import Select, Table, case, func, literal_column, select

from meters.schema import (
    NODE_SUMS,
    REQUEST_SUMS,
    energy_hours,
    node_hours,
    request_hours,
    requests,
    shares,
    team_days,
    window_totals,
    windows,
)

Row = Mapping[str, Any]
Sums = dict[tuple[Any, ...], dict[str, int]]

DAY_S = 86_400
PENDING_DIM = 0  # of shares whose request has not been recorded yet
PENDING_TEAM = ""

_PLAIN = (
    "prompt_tokens",
    "cached_prompt_tokens",
    "output_tokens",
    "reasoning_tokens",
    "energy_uj",
    "energy_low_uj",
    "energy_high_uj",
    "carbon_ug",
    "money_nusd",
    "counterfactual_energy_uj",
    "counterfactual_carbon_ug",
    "latency_us",
    "ttft_us",
)
_COUNTS = {
    "tokens_known": "output_tokens",
    "energy_known": "energy_uj",
    "carbon_known": "carbon_ug",
    "money_known": "money_nusd",
    "counterfactual_known": "counterfactual_energy_uj",
    "latency_known": "latency_us",
    "ttft_known": "ttft_us",
}
_COMPARED = {"compared_energy_uj": "energy_uj", "compared_carbon_ug": "carbon_ug"}
# Of a request with a share: the estimate, less the part that no meter replaces.
_METERED = {
    "metered_estimate_uj": ("energy_uj", "hosted_uj"),
    "metered_estimate_low_uj": ("energy_low_uj", "hosted_low_uj"),
    "metered_estimate_high_uj": ("energy_high_uj", "hosted_high_uj"),
}
# The columns of a request that ``first_share`` reads.
ESTIMATES = tuple(column for columns in _METERED.values() for column in columns)


_plain_of = itemgetter(*_PLAIN)
_request_key = itemgetter("team", "hour_s", "dim_id")


class Changes:
    """The differences one batch makes to the roll-ups, by primary key."""

    def __init__(self) -> None:
        self.request_hours: Sums = defaultdict(lambda: dict.fromkeys(REQUEST_SUMS, 0))
        self.energy_hours: Sums = defaultdict(lambda: {"energy_uj": 0})
        self.node_hours: Sums = defaultdict(lambda: dict.fromkeys(NODE_SUMS, 0))

    def requests(self, rows: Iterable[Row]) -> None:
        """New rows of ``requests``, without their shares."""
        groups: dict[tuple[Any, ...], list[tuple[int | None, ...]]] = defaultdict(list)
        for row in rows:
            groups[_request_key(row)].append(_plain_of(row))
        for key, members in groups.items():
            sums = self.request_hours[key]
            sums["requests"] += len(members)
            columns = dict(zip(_PLAIN, zip(*members, strict=True), strict=True))
            for name, column in columns.items():
                sums[name] += sum(filter(None, column))
            for name, counted in _COUNTS.items():
                sums[name] += len(members) - columns[counted].count(None)
            known = [figure is not None for figure in columns["counterfactual_energy_uj"]]
            for name, compared in _COMPARED.items():
                sums[name] += sum(filter(None, compress(columns[compared], known)))

    def first_share(self, row: Row) -> None:
        """The request of ``row`` has its first share, now."""
        sums = self.request_hours[row["team"], row["hour_s"], row["dim_id"]]
        sums["metered_requests"] += 1
        for name, (whole, hosted) in _METERED.items():
            if row[whole] is not None:
                sums[name] += row[whole] - (row[hosted] or 0)

    def share(self, energy_uj: int, window: Row, request: Row | None) -> None:
        """A share of ``window`` (its totals' row); ``request`` is None while not recorded."""
        place = window["hour_s"], window["node"], window["evidence"]
        if request is None:
            self._draw(PENDING_TEAM, PENDING_DIM, place, energy_uj)
            return
        self._draw(request["team"], request["dim_id"], place, energy_uj)
        key = request["team"], request["hour_s"], request["dim_id"]
        self.request_hours[key]["metered_uj"] += energy_uj

    def share_found(self, energy_uj: int, window: Row, request: Row) -> None:
        """A share that waited for its request, which is recorded now."""
        place = window["hour_s"], window["node"], window["evidence"]
        self._draw(PENDING_TEAM, PENDING_DIM, place, -energy_uj)
        self.share(energy_uj, window, request)

    def totals(self, row: Row) -> None:
        """A new row of ``window_totals``."""
        sums = self.node_hours[row["node"], row["hour_s"], row["evidence"], row["meter"]]
        for name in ("windows", *NODE_PARTS):
            sums[name] += row[name]
        sums["metered_us"] += row["metered_us"]

    def window(self, row: Row) -> None:
        """A new row of ``windows``: only what its totals do not say."""
        if row["host_energy_uj"] is not None:
            sums = self.node_hours[row["node"], row["hour_s"], row["evidence"], row["meter"]]
            sums["host_energy_uj"] += row["host_energy_uj"]
            sums["host_known"] += row["host_windows"]

    def team_days(self) -> Sums:
        """What ``energy_hours`` change by day, node and team."""
        days: Sums = defaultdict(lambda: {"energy_uj": 0})
        for (team, hour_s, _, node, _), sums in self.energy_hours.items():
            days[hour_s // DAY_S, node, team]["energy_uj"] += sums["energy_uj"]
        return days

    def by_table(self) -> tuple[tuple[Table, Sums], ...]:
        return (
            (request_hours, self.request_hours),
            (energy_hours, self.energy_hours),
            (team_days, self.team_days()),
            (node_hours, self.node_hours),
        )

    def _draw(self, team: str, dim: int, place: tuple[int, str, str], energy_uj: int) -> None:
        hour_s, node, evidence = place
        self.energy_hours[team, hour_s, dim, node, evidence]["energy_uj"] += energy_uj


NODE_PARTS = ("metered_uj", "attributed_uj", "idle_uj", "external_uj", "unattributed_uj")


def expected_request_hours() -> Select[Any]:
    """``request_hours``, re-added from the rows, in its key's order."""
    metered = (
        select(shares.c.request_id, func.sum(shares.c.energy_uj).label("uj"))
        .group_by(shares.c.request_id)
        .subquery()
    )
    c = requests.c
    has = metered.c.uj.is_not(None)
    compared = c.counterfactual_energy_uj.is_not(None)
    sums: dict[str, Any] = {"requests": func.count()}
    sums |= {name: func.sum(c[name]) for name in _PLAIN}
    sums |= {name: func.count(c[column]) for name, column in _COUNTS.items()}
    sums |= {name: func.sum(case((compared, c[col]))) for name, col in _COMPARED.items()}
    sums |= {
        name: func.sum(case((has, c[whole] - func.coalesce(c[hosted], 0))))
        for name, (whole, hosted) in _METERED.items()
    }
    sums["metered_uj"] = func.sum(metered.c.uj)
    sums["metered_requests"] = func.count(metered.c.uj)
    return (
        select(c.team, c.hour_s, c.dim_id, *(sums[n].label(n) for n in REQUEST_SUMS))
        .select_from(requests.outerjoin(metered, c.request_id == metered.c.request_id))
        .group_by(c.team, c.hour_s, c.dim_id)
    )


def expected_energy_hours() -> Select[Any]:
    """``energy_hours``, re-added from the rows, in its key's order."""
    team = func.coalesce(requests.c.team, literal_column("''"))
    dim = func.coalesce(requests.c.dim_id, literal_column("0"))
    w = window_totals.c
    keys = (team, w.hour_s, dim, w.node, w.evidence)
    names = ("team", "hour_s", "dim_id", "metered_node", "metered_evidence")
    return (
        select(
            *(key.label(name) for key, name in zip(keys, names, strict=True)),
            func.sum(shares.c.energy_uj).label("energy_uj"),
        )
        .select_from(
            shares.join(window_totals, shares.c.window_id == w.window_id).outerjoin(
                requests, shares.c.request_id == requests.c.request_id
            )
        )
        .group_by(*keys)
    )


def expected_team_days() -> Select[Any]:
    """``team_days``, re-added from ``energy_hours``, which is itself checked against the rows."""
    e = energy_hours.c
    day = (e.hour_s // DAY_S).label("day")
    node = e.metered_node.label("node")
    return select(day, node, e.team, func.sum(e.energy_uj).label("energy_uj")).group_by(
        day, node, e.team
    )


def expected_node_hours() -> Select[Any]:
    """``node_hours`` without the host's columns, re-added from the rows."""
    w = window_totals.c
    keys = (w.node, w.hour_s, w.evidence, w.meter)
    return select(
        *keys,
        func.sum(w.windows).label("windows"),
        *(func.sum(w[name]).label(name) for name in NODE_PARTS),
        func.sum(w.metered_us).label("metered_us"),
    ).group_by(*keys)


def expected_host_hours() -> Select[Any]:
    """The host's columns of ``node_hours``, re-added from the windows."""
    w = windows.c
    keys = (w.node, w.hour_s, w.evidence, w.meter)
    return (
        select(
            *keys,
            func.sum(w.host_energy_uj).label("host_energy_uj"),
            func.sum(w.host_windows).label("host_known"),
        )
        .where(w.host_energy_uj.is_not(None))
        .group_by(*keys)
    )
