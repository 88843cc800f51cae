"""Adds the whole ledger up again, and says where it does not agree with itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Select, Table, func, or_, select

from meters import rollups
from meters.schema import (
    NODE_SUMS,
    REQUEST_SUMS,
    dims,
    energy_hours,
    node_hours,
    request_hours,
    requests,
    shares,
    team_days,
    window_totals,
    windows,
)

_SHOWN = 20  # problems told in words, of each kind


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """What ``check`` found. Energies in micro-joules; ``problems`` is empty when all agrees."""

    requests: int
    windows: int
    shares: int
    metered_uj: int
    attributed_uj: int
    idle_uj: int
    external_uj: int
    unattributed_uj: int
    pending_uj: int  # of attributed: shares whose request is not recorded (yet)
    problems: tuple[str, ...]

    @property
    def imbalance_uj(self) -> int:
        """Metered less all its parts: 0 in a ledger in order."""
        return self.metered_uj - (
            self.attributed_uj + self.idle_uj + self.external_uj + self.unattributed_uj
        )

    @property
    def balanced(self) -> bool:
        return not self.problems and self.imbalance_uj == 0


def check(connection: Connection) -> Balance:
    """Re-add every row. Reads all of the ledger: seconds per million requests."""
    w = window_totals.c
    parts = ("metered_uj", "attributed_uj", "idle_uj", "external_uj", "unattributed_uj")
    sums = connection.execute(select(*(func.sum(w[name]) for name in parts))).one()
    metered, attributed, idle, external, unattributed = (int(value or 0) for value in sums)
    pending = connection.scalar(
        select(func.sum(shares.c.energy_uj))
        .outerjoin(requests, requests.c.request_id == shares.c.request_id)
        .where(requests.c.request_id.is_(None))
    )
    problems = [
        *_windows(connection),
        *_orphans(connection),
        *_rollup(connection, request_hours, REQUEST_SUMS, rollups.expected_request_hours()),
        *_rollup(connection, energy_hours, ("energy_uj",), rollups.expected_energy_hours()),
        *_rollup(connection, team_days, ("energy_uj",), rollups.expected_team_days()),
        *_rollup(connection, node_hours, NODE_SUMS[:-2], rollups.expected_node_hours()),
        *_rollup(connection, node_hours, NODE_SUMS[-2:], rollups.expected_host_hours()),
    ]
    return Balance(
        requests=_count(connection, requests),
        windows=_count(connection, window_totals),
        shares=_count(connection, shares),
        metered_uj=metered,
        attributed_uj=attributed,
        idle_uj=idle,
        external_uj=external,
        unattributed_uj=unattributed,
        pending_uj=int(pending or 0),
        problems=tuple(problems),
    )


def _count(connection: Connection, table: Table) -> int:
    return int(connection.scalar(select(func.count()).select_from(table)) or 0)


def _windows(connection: Connection) -> Iterable[str]:
    """Windows whose parts do not add up, or whose shares are not what was attributed."""
    w = window_totals.c
    added = (
        select(shares.c.window_id, func.sum(shares.c.energy_uj).label("uj"))
        .group_by(shares.c.window_id)
        .subquery()
    )
    uj = func.coalesce(added.c.uj, 0)
    rest = w.metered_uj - w.attributed_uj - w.idle_uj - w.external_uj - w.unattributed_uj
    rows = connection.execute(
        select(w.window_id, rest, uj - w.attributed_uj)
        .outerjoin(added, added.c.window_id == w.window_id)
        .where(or_(rest != 0, uj != w.attributed_uj))
        .limit(_SHOWN)
    )
    for window_id, missing, off in rows:
        yield (
            f"window {window_id}: {int(missing)} µJ of the meter are in no part, and its shares "
            f"differ by {int(off)} µJ from what is booked as attributed"
        )
    w2 = windows.c
    rows = connection.execute(
        select(w.window_id, w.metered_uj, w2.energy_uj)
        .join(windows, w2.window_id == w.window_id)
        .where(w2.energy_uj != w.metered_uj)
        .limit(_SHOWN)
    )
    for window_id, divided, reported in rows:
        yield f"window {window_id}: {divided} µJ were divided, {reported} µJ were reported"


def _orphans(connection: Connection) -> Iterable[str]:
    rows = connection.execute(
        select(shares.c.window_id)
        .distinct()
        .outerjoin(window_totals, window_totals.c.window_id == shares.c.window_id)
        .where(window_totals.c.window_id.is_(None))
        .limit(_SHOWN)
    )
    for (window_id,) in rows:
        yield f"window {window_id}: has shares but no totals"
    rows = connection.execute(
        select(requests.c.dim_id)
        .distinct()
        .outerjoin(dims, dims.c.dim_id == requests.c.dim_id)
        .where(dims.c.dim_id.is_(None))
        .limit(_SHOWN)
    )
    for (dim_id,) in rows:
        yield f"dimension {dim_id}: used by requests but not described"


def _rollup(
    connection: Connection, table: Table, names: Sequence[str], expected: Select[Any]
) -> Iterable[str]:
    keys = [column.name for column in table.primary_key]
    kept = _sums(connection, select(*(table.c[n] for n in (*keys, *names))), keys, names)
    added = _sums(connection, expected, keys, names)
    shown = 0
    for key in sorted(kept.keys() | added.keys()):
        old, new = kept.get(key), added.get(key)
        if old != new and shown < _SHOWN:
            shown += 1
            zero = (0,) * len(names)
            off = [
                f"{name} {a} instead of {b}"
                for name, a, b in zip(names, old or zero, new or zero, strict=True)
                if a != b
            ]
            yield f"{table.name} {key}: {', '.join(off)}"


def _sums(
    connection: Connection, query: Select[Any], keys: Sequence[str], names: Sequence[str]
) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """By key, without the rows that are all zero: a roll-up may keep those or not."""
    found = {}
    for row in connection.execute(query).mappings():
        values = tuple(int(row[name] or 0) for name in names)
        if any(values):
            found[tuple(row[key] for key in keys)] = values
    return found
