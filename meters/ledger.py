"""The books: requests, metered windows, their shares, and sums that always agree with them.

One call to ``write`` is one transaction: rows and roll-ups change together or not at all, and
what is already there changes nothing, so anything may be written again. All calls block; the
serving process makes them from its writer thread and from a pool of readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Table, select
from sqlalchemy.dialects import postgresql, sqlite

from meters import audit, receipts, rollups, usage
from meters.audit import Balance
from meters.database import Database
from meters.migrations import migrate
from meters.receipts import Receipt
from meters.rollups import Changes, Sums
from meters.rows import Row, dimensions, record_row, totals_row, window_row
from meters.schema import (
    DIMENSIONS,
    dims,
    requests,
    shares,
    window_totals,
    windows,
)
from meters.types import Attribution, UsageRecord, Window
from meters.usage import Usage

T = TypeVar("T")

_KEYS_A_QUERY = 5_000  # bound parameters: SQLite takes 32,766, PostgreSQL 65,535


class Written(NamedTuple):
    """How many rows were new; the others were there already."""

    requests: int = 0
    windows: int = 0
    attributions: int = 0
    shares: int = 0


class Ledger:
    """The ledger in one SQLite file or one PostgreSQL database. Safe to use from many threads."""

    def __init__(self, url: str) -> None:
        """Opens ``url`` and brings its tables up to date, or raises what the database raises."""
        self.database = Database(url)
        self._known_dims: set[int] = set()
        with self.database.write() as connection:
            self.migrated = migrate(connection)

    def close(self) -> None:
        self.database.close()

    def write(
        self,
        records: Iterable[UsageRecord] = (),
        attributions: Iterable[Attribution] = (),
        windows: Iterable[Window] = (),
    ) -> Written:
        """Keep these, with all that follows from them, in one transaction.

        Raises ValueError for a figure that is not finite or out of range, and SQLAlchemy's
        errors when the database cannot take it; nothing is kept then.
        """
        request_rows = [record_row(record) for record in records]
        divided = [totals_row(attribution) for attribution in attributions]
        window_rows = [window_row(window) for window in windows]
        with self.database.write() as connection:
            batch = _Batch(connection)
            written = Written(
                requests=batch.add_requests(request_rows),
                windows=batch.add_windows(window_rows),
                attributions=batch.add_totals(divided),
                shares=batch.shares_added,
            )
            self._add_dims(connection, batch.new_requests)
            for table, sums in batch.changes.by_table():
                add_sums(connection, table, sums)
        self._known_dims.update(row["dim_id"] for row in batch.new_requests)
        return written

    def receipt(self, request_id: str) -> Receipt | None:
        """The request with its shares; None when it is not in the ledger (yet)."""
        with self.database.read() as connection:
            return receipts.receipt(connection, request_id)

    def usage(
        self, team: str | None, from_s: float, to_s: float, group_by: Sequence[str] = ()
    ) -> list[Usage]:
        """Sums over the requests of whole hours, from the roll-ups; ``team`` None is all teams."""
        with self.database.read() as connection:
            return usage.usage(connection, team, from_s, to_s, group_by)

    def teams(self) -> list[str]:
        """Every team that ever had a request, by name."""
        with self.database.read() as connection:
            return list(connection.scalars(select(dims.c.team).distinct().order_by(dims.c.team)))

    def check(self) -> Balance:
        """Everything added up again. Reads the whole ledger."""
        with self.database.read() as connection:
            return audit.check(connection)

    def _add_dims(self, connection: Connection, rows: Sequence[Row]) -> None:
        new = {row["dim_id"]: row for row in rows if row["dim_id"] not in self._known_dims}
        if new:
            values = [
                {"dim_id": number, **dict(zip(DIMENSIONS, dimensions(row), strict=True))}
                for number, row in new.items()
            ]
            connection.execute(_insert(connection, dims).on_conflict_do_nothing(), values)


class _Batch:
    """One transaction's writes; collects what they change in the roll-ups."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.changes = Changes()
        self.new_requests: list[Row] = []
        self.shares_added = 0

    def add_requests(self, rows: Sequence[Row]) -> int:
        self.new_requests = self._new(requests, "request_id", rows)
        by_id = {row["request_id"]: row for row in self.new_requests}
        for row in self.new_requests:
            self.changes.request(row)
        w = window_totals.c
        waiting = select(
            shares.c.request_id, shares.c.energy_uj, w.hour_s, w.node, w.evidence
        ).join(window_totals, w.window_id == shares.c.window_id)
        found: set[str] = set()
        for share in self._where(waiting, shares.c.request_id, by_id):
            row = by_id[share["request_id"]]
            self.changes.share_found(share["energy_uj"], share, row)
            if row["request_id"] not in found:
                found.add(row["request_id"])
                self.changes.first_share(row)
        self._insert(requests, self.new_requests)
        return len(self.new_requests)

    def add_windows(self, rows: Sequence[Row]) -> int:
        new = self._new(windows, "window_id", rows)
        for row in new:
            self.changes.window(row)
        self._insert(windows, new)
        return len(new)

    def add_totals(self, divided: Sequence[tuple[Row, dict[str, int]]]) -> int:
        energies = {row["window_id"]: parts for row, parts in reversed(divided)}
        new = self._new(window_totals, "window_id", [row for row, _ in divided])
        share_rows = [
            {"window_id": row["window_id"], "request_id": request_id, "energy_uj": energy_uj}
            for row in new
            for request_id, energy_uj in energies[row["window_id"]].items()
        ]
        by_id = {row["window_id"]: row for row in new}
        wanted = {share["request_id"] for share in share_rows}
        c = requests.c
        known = {
            row["request_id"]: row
            for row in self._where(
                select(
                    c.request_id,
                    c.team,
                    c.hour_s,
                    c.dim_id,
                    *(c[name] for name in rollups.ESTIMATES),
                ),
                c.request_id,
                wanted,
            )
        }
        had = {
            row["request_id"]
            for row in self._where(
                select(shares.c.request_id).distinct(), shares.c.request_id, known
            )
        }
        for row in new:
            self.changes.totals(row)
        for share in share_rows:
            request = known.get(share["request_id"])
            self.changes.share(share["energy_uj"], by_id[share["window_id"]], request)
            if request is not None and share["request_id"] not in had:
                had.add(share["request_id"])
                self.changes.first_share(request)
        self._insert(window_totals, new)
        self._insert(shares, share_rows)
        self.shares_added = len(share_rows)
        return len(new)

    def _new(self, table: Table, key: str, rows: Sequence[Row]) -> list[Row]:
        """Of ``rows`` those that the table does not have; the first of equals."""
        by_key = {row[key]: row for row in reversed(rows)}
        for row in self._where(select(table.c[key]), table.c[key], by_key):
            del by_key[row[key]]
        return list(by_key.values())

    def _where(self, query: Any, column: Any, keys: Iterable[str]) -> Iterator[Any]:
        for chunk in _chunks(list(keys), _KEYS_A_QUERY):
            yield from self.connection.execute(query.where(column.in_(chunk))).mappings().all()

    def _insert(self, table: Table, rows: Sequence[Row]) -> None:
        if rows:
            self.connection.execute(table.insert(), rows)


def add_sums(connection: Connection, table: Table, sums: Sums) -> None:
    """Add to a roll-up's rows, making those that are missing."""
    keys = [column.name for column in table.primary_key]
    rows = [
        {**dict(zip(keys, key, strict=True)), **values}
        for key, values in sums.items()
        if any(values.values())
    ]
    if not rows:
        return
    statement = _insert(connection, table)
    added = {
        column.name: column + statement.excluded[column.name]
        for column in table.c
        if column.name not in keys
    }
    rows.sort(key=lambda row: [row[key] for key in keys])
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=added), rows)


def _insert(connection: Connection, table: Table) -> Any:
    """An INSERT that knows ON CONFLICT, which both databases spell alike."""
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    return kind.insert(table)


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
