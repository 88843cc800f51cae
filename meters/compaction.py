"""Folds what is old: one share an hour instead of one a second, with all sums as they were.

After some days nobody asks which second a request's energy was drawn in, yet those shares are most
of a ledger. Windows of one node and hour become one, the shares of a request in them likewise, and
old decisions are forgotten. Books, roll-ups and receipts' totals stay exactly as they are. The
hours folded are closed: a window that comes later for one of them is not taken any more, since
nothing remembers whether it was counted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Connection,
    String,
    case,
    cast,
    delete,
    func,
    literal,
    select,
    update,
)

from meters.rows import hour_of
from meters.schema import changes, requests, shares, window_totals, windows

HORIZON = "folded_before"  # its row in ``changes``: the first hour that is not folded
FOLDED = "hour:"  # how the ids of folded windows begin


class Folded(NamedTuple):
    """What a compaction did."""

    before_s: int  # the first hour that is still as it was
    windows: int  # folded away
    shares: int
    decisions: int


def horizon(connection: Connection) -> int:
    """The start of the first hour that is not folded, Unix seconds; 0 when none is."""
    query = select(changes.c.number).where(changes.c.name == HORIZON)
    return int(connection.scalar(query) or 0)


def fold(connection: Connection, before_s: float) -> Folded:
    """Fold all whole hours before ``before_s``, in the caller's writing transaction."""
    until = hour_of(before_s)
    since = horizon(connection)
    if until <= since:
        return Folded(since, 0, 0, 0)
    windows_before = _count(connection, window_totals)
    shares_before = _count(connection, shares)
    _fold_shares(connection, until)
    _fold_windows(connection, windows, until)  # while it is known which of them were divided
    _fold_windows(connection, window_totals, until)
    forgotten = connection.execute(
        update(requests)
        .where(requests.c.hour_s < until, requests.c.decision.is_not(None))
        .values(decision=None)
    )
    connection.execute(delete(changes).where(changes.c.name == HORIZON))
    connection.execute(changes.insert().values(name=HORIZON, number=until))
    return Folded(
        until,
        windows_before - _count(connection, window_totals),
        shares_before - _count(connection, shares),
        forgotten.rowcount,
    )


def _old(table: Any, until: int) -> Any:
    """Windows to be folded: only what was divided, so that rows and totals stay together."""
    divided = select(window_totals.c.window_id)
    return (
        (table.c.hour_s < until)
        & table.c.window_id.not_like(f"{FOLDED}%")
        & (table.c.window_id.in_(divided) if table is windows else True)
    )


def _folded_id(table: Any) -> Any:
    c = table.c
    parts = (cast(c.hour_s, String), c.node, c.evidence, c.meter)
    text: Any = literal(FOLDED, String)
    for number, part in enumerate(parts):
        text = text + (":" if number else "") + part
    return text


def _fold_shares(connection: Connection, until: int) -> None:
    # Grouped outside: a bound parameter in GROUP BY is not seen to be the one in the list.
    inner = (
        select(
            shares.c.request_id,
            _folded_id(window_totals).label("folded_id"),
            shares.c.energy_uj,
        )
        .join(window_totals, window_totals.c.window_id == shares.c.window_id)
        .where(_old(window_totals, until))
        .subquery()
    )
    query = select(
        inner.c.request_id, inner.c.folded_id, cast_sum(inner.c.energy_uj, shares.c.energy_uj)
    ).group_by(inner.c.request_id, inner.c.folded_id)
    connection.execute(shares.insert().from_select(["request_id", "window_id", "energy_uj"], query))
    old = select(window_totals.c.window_id).where(_old(window_totals, until))
    connection.execute(delete(shares).where(shares.c.window_id.in_(old)))


def _fold_windows(connection: Connection, table: Any, until: int) -> None:
    summed = [c.name for c in table.c if c.name.endswith(("_uj", "_us"))]
    work = ("prompt_tokens", "cached_prompt_tokens", "generated_tokens", "steps", "flops")
    summed += [name for name in (*work, "read_bytes", "windows") if name in table.c]
    kept = [c.name for c in table.c if c.name in {"node", "hour_s", "evidence", "meter"}]
    inner = select(_folded_id(table).label("folded_id"), table).where(_old(table, until)).subquery()
    read = [name for name in ("host_windows",) if name in table.c]
    columns = ["window_id", "start_s", "end_s", *kept, *summed, *read]
    rows = select(
        inner.c.folded_id,
        func.min(inner.c.start_s),
        func.max(inner.c.end_s),
        *(func.min(inner.c[name]) for name in kept),
        *(_sum_of_known(inner.c[name], table.c[name]) for name in summed),
        *(_sum_where(inner.c[name], inner.c.host_energy_uj) for name in read),
    ).group_by(inner.c.folded_id)
    made = connection.execute(rows).all()
    connection.execute(delete(table).where(_old(table, until)))
    if made:
        connection.execute(table.insert(), [dict(zip(columns, row, strict=True)) for row in made])


def _sum_of_known(column: Any, like: Any) -> Any:
    """The sum, or NULL where any is not known: half a count is no count. Energy is as known."""
    total = cast_sum(column, like)
    if like.name.endswith("_uj"):
        return total
    return case((func.count() == func.count(column), total))


def _sum_where(column: Any, known: Any) -> Any:
    """The sum over the rows where the other column is known."""
    return cast(func.sum(case((known.is_not(None), column), else_=0)), BigInteger)


def cast_sum(column: Any, like: Any) -> Any:
    """A sum of the column's own type: PostgreSQL makes a NUMERIC of sums of BIGINT."""
    return cast(func.sum(column), like.type)


def _count(connection: Connection, table: Any) -> int:
    return int(connection.scalar(select(func.count()).select_from(table)) or 0)
