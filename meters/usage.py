"""What was used in a period, grouped, from the roll-ups: milliseconds over millions of requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Double, case, cast, func, select, true

from meters.exact import MICRO, NANO
from meters.rows import hour_of
from meters.schema import (
    DIMENSIONS,
    REQUEST_SUMS,
    dims,
    request_hours,
    requests,
    shares,
)
from meters.types import CACHE_HITS

GROUPS = ("hour_s", *DIMENSIONS)


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the requests of one group. ``sums`` holds whole micro-units, see REQUEST_SUMS.

    ``energy_j`` is metered energy where there is some, the estimate for the other requests.
    """

    group: dict[str, Any]
    sums: dict[str, int]

    @property
    def requests(self) -> int:
        return self.sums["requests"]

    @property
    def metered_j(self) -> float:
        """Shares of metered windows."""
        return self.sums["metered_uj"] / MICRO

    @property
    def estimated_j(self) -> float:
        """The estimates of those requests that have no share."""
        return (self.sums["energy_uj"] - self.sums["metered_estimate_uj"]) / MICRO

    @property
    def energy_j(self) -> float:
        return (
            self.sums["metered_uj"] + self.sums["energy_uj"] - self.sums["metered_estimate_uj"]
        ) / MICRO

    @property
    def carbon_g(self) -> float | None:
        """As estimated when the requests were sent; None when known for none of them."""
        return self.sums["carbon_ug"] / MICRO if self.sums["carbon_known"] else None

    @property
    def money_usd(self) -> float | None:
        return self.sums["money_nusd"] / NANO if self.sums["money_known"] else None


def usage(
    connection: Connection,
    team: str | None,
    from_s: float,
    to_s: float,
    group_by: Sequence[str] = (),
) -> list[Usage]:
    """Requests that arrived in the whole UTC hours from ``from_s`` to before ``to_s``.

    ``team`` None means all teams. ``group_by``: any of GROUPS. Raises ValueError for another.
    """
    bad = set(group_by) - set(GROUPS)
    if bad:
        raise ValueError(f"cannot group by {', '.join(sorted(bad))}; known: {', '.join(GROUPS)}")
    h = request_hours.c
    columns = [h[name] if name in ("hour_s", "team") else dims.c[name] for name in group_by]
    query = select(*columns, *(func.sum(h[name]).label(name) for name in REQUEST_SUMS))
    if set(group_by) - {"hour_s", "team"}:
        query = query.select_from(request_hours.join(dims, dims.c.dim_id == h.dim_id))
    query = query.where(h.hour_s >= from_s, h.hour_s < to_s)
    if team is not None:
        query = query.where(h.team == team)
    if columns:
        query = query.group_by(*columns).order_by(*columns)
    found = []
    for row in connection.execute(query).mappings():
        if row["requests"] is not None:
            sums = {name: int(row[name] or 0) for name in REQUEST_SUMS}
            found.append(Usage(group={name: row[name] for name in group_by}, sums=sums))
    return found


class Spending(msgspec.Struct, frozen=True, kw_only=True):
    """What was used, in whole units; energy as metered, else as estimated."""

    requests: int = 0
    tokens: int = 0
    energy_uj: int = 0
    carbon_ug: int = 0
    money_nusd: int = 0


def spent(
    connection: Connection,
    from_s: float,
    to_s: float,
    *,
    teams: Sequence[str] = (),
    keys: Sequence[str] = (),
) -> Spending:
    """Used by requests that arrived from ``from_s`` to before ``to_s``, to the second: as budgets
    are charged, so without those that were refused, answers from the cache take no tokens, and
    carbon is that of the energy, metered where it is.

    Whole hours come from the roll-ups; what a period that begins within an hour has of it (a day
    in India, say) is added from the rows.
    """
    first = hour_of(from_s + 3599.999)
    last = max(first, hour_of(to_s))
    h, d = request_hours.c, dims.c
    energy = h.energy_uj - h.metered_estimate_uj + h.metered_uj
    whole = (
        select(
            func.sum(h.requests),
            func.sum(case((d.cache.in_(CACHE_HITS), 0), else_=h.prompt_tokens + h.output_tokens)),
            func.sum(energy),
            func.sum(_in_proportion(h.carbon_ug, energy, h.energy_uj)),
            func.sum(h.money_nusd),
        )
        .join(dims, d.dim_id == h.dim_id)
        .where(h.hour_s >= first, h.hour_s < last, d.outcome != "refused")
        .where(h.team.in_(teams) if teams else true())
        .where(d.key_id.in_(keys) if keys else true())
    )
    found = [int(value or 0) for value in connection.execute(whole).one()]
    edges = [(from_s, min(first, to_s)), (max(last, from_s), to_s)] if first <= to_s else []
    for begin_s, end_s in edges or [(from_s, to_s)]:
        if end_s > begin_s:
            rows = _spent_in_rows(connection, begin_s, end_s, teams, keys)
            found = [a + b for a, b in zip(found, rows, strict=True)]
    return Spending(**dict(zip(Spending.__struct_fields__, found, strict=True)))


def _spent_in_rows(
    connection: Connection, from_s: float, to_s: float, teams: Sequence[str], keys: Sequence[str]
) -> list[int]:
    c = requests.c
    metered = (
        select(func.sum(shares.c.energy_uj))
        .where(shares.c.request_id == c.request_id)
        .scalar_subquery()
    )
    energy = func.coalesce(metered + func.coalesce(c.hosted_uj, 0), c.energy_uj)
    tokens = func.coalesce(c.prompt_tokens, 0) + func.coalesce(c.output_tokens, 0)
    rows = (
        select(
            func.count(),
            func.sum(case((c.cache.in_(CACHE_HITS), 0), else_=tokens)),
            func.sum(energy),
            func.sum(_in_proportion(c.carbon_ug, energy, c.energy_uj)),
            func.sum(c.money_nusd),
        )
        .where(c.start_s >= from_s, c.start_s < to_s, c.outcome != "refused")
        .where(c.team.in_(teams) if teams else true())
        .where(c.key_id.in_(keys) if keys else true())
    )
    return [int(value or 0) for value in connection.execute(rows).one()]


def _in_proportion(carbon: Any, energy: Any, estimated: Any) -> Any:
    """Estimated carbon, at the energy that it came to."""
    return case((estimated > 0, carbon * (cast(energy, Double) / estimated)), else_=carbon)
