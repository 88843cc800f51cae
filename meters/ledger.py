"""The books: requests, metered windows, their shares, and sums that always agree with them.

One call to ``write`` is one transaction: rows and roll-ups change together or not at all, and
what is already there changes nothing, so anything may be written again. All calls block; the
serving process makes them from its writer thread and from a pool of readers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, func, select
from sqlalchemy.dialects import postgresql, sqlite

from meters import audit, compaction, ourselves, outcomes, receipts, rollups, usage
from meters.audit import Balance
from meters.bulk import add, insert, rows_where
from meters.compaction import Folded
from meters.database import Database
from meters.migrations import migrate
from meters.ourselves import OwnSums
from meters.outcomes import MeteredAnswer, ScoredAnswer
from meters.receipts import Receipt
from meters.rollups import Changes, Sums
from meters.rows import Row, clean, dimensions, record_row, totals_row, window_of, window_row
from meters.schema import (
    DIMENSIONS,
    dims,
    feedback,
    requests,
    shares,
    window_totals,
    windows,
)
from meters.types import Activity, Attribution, UsageRecord, Window
from meters.usage import Spending, Usage

log = logging.getLogger("joulegate.ledger")


class Written(NamedTuple):
    """How many rows were new; the others were there already."""

    requests: int = 0
    windows: int = 0
    attributions: int = 0
    shares: int = 0
    late: int = 0  # windows of hours that are folded, and therefore not taken


class Ledger:
    """The ledger in one SQLite file or one PostgreSQL database. Safe to use from many threads."""

    def __init__(self, url: str, *, lazy: bool = False) -> None:
        """Opens ``url`` and brings its tables up to date, or raises what the database raises.

        ``lazy``: connect when first used, so that a server starts while its database is away.
        """
        self.migrated: list[int] = []
        self.database = Database(url, self._migrate)
        if not lazy:
            self.database.prepare()

    def _migrate(self, connection: Connection) -> None:
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
            return self.add_rows(connection, request_rows, window_rows, divided)

    def compact(self, before_s: float) -> Folded:
        """Fold the hours before ``before_s`` and give the space back; see ``compaction``."""
        with self.database.write() as connection:
            folded = compaction.fold(connection, before_s)
        self.database.vacuum()
        return folded

    def add_feedback(
        self, request_id: str, source: str, score: float, team: str, at_s: float
    ) -> float | None:
        """Keep what ``source`` says an answer was worth, 0..1; the latest word counts, and the same
        again changes nothing. What it said before; None where it had not."""
        row = {
            "request_id": clean(request_id),
            "source": clean(source),
            "score": score,
            "team": clean(team),
            "at_s": at_s,
        }
        c = feedback.c
        known = select(c.score).where(c.request_id == row["request_id"], c.source == row["source"])
        with self.database.write() as connection:
            before: float | None = connection.scalar(known)
            if before == score:
                return before
            statement = _insert(connection, feedback).values(row)
            newer = {"score": score, "at_s": at_s}
            connection.execute(
                statement.on_conflict_do_update(index_elements=["request_id", "source"], set_=newer)
            )
        return before

    def scores(self, after_s: float, most: int) -> list[ScoredAnswer]:
        """The latest ``most`` scores that were given after a Unix time, in order."""
        with self.database.ask() as connection:
            return outcomes.scores(connection, after_s, most)

    def activities(self, node: str, start_s: float, end_s: float) -> list[Activity]:
        """What recorded requests did on a node between two Unix times, on any replica."""
        c = requests.c
        query = select(
            c.request_id,
            c.node,
            c.backend,
            func.coalesce(c.sent_s, c.start_s).label("start_s"),
            c.first_token_s,
            c.end_s,
            c.prompt_tokens,
            c.cached_prompt_tokens,
            c.output_tokens,
        ).where(c.node == node, c.end_s >= start_s, c.start_s < end_s)
        with self.database.ask() as connection:
            return [
                Activity(
                    request_id=row["request_id"],
                    node=node,
                    start_s=row["start_s"],
                    first_token_s=row["first_token_s"],
                    end_s=row["end_s"],
                    prompt_tokens=float(row["prompt_tokens"] or 0),
                    cached_prompt_tokens=float(row["cached_prompt_tokens"] or 0),
                    output_tokens=float(row["output_tokens"] or 0),
                    engine=row["backend"] or "",
                )
                for row in connection.execute(query).mappings()
            ]

    def windows(self, node: str, from_s: float, to_s: float) -> list[Window]:
        """Windows of a node that ended in a period, in order."""
        c = windows.c
        query = select(windows).where(c.node == node, c.end_s >= from_s, c.end_s < to_s)
        with self.database.ask() as connection:
            rows = connection.execute(query.order_by(c.end_s)).mappings()
            return [window_of(dict(row)) for row in rows]

    def undivided(self, node: str, from_s: float, to_s: float) -> list[Window]:
        """Windows of a node that ended in a period and have not been divided."""
        c = windows.c
        query = (
            select(windows)
            .outerjoin(window_totals, window_totals.c.window_id == c.window_id)
            .where(c.node == node, c.end_s >= from_s, c.end_s < to_s)
            .where(window_totals.c.window_id.is_(None))
            .order_by(c.end_s)
        )
        with self.database.ask() as connection:
            return [window_of(dict(row)) for row in connection.execute(query).mappings()]

    def add_rows(
        self,
        connection: Connection,
        request_rows: Sequence[Row],
        window_rows: Sequence[Row] = (),
        divided: Sequence[tuple[Row, dict[str, int]]] = (),
        *,
        open_from_s: int | None = None,
    ) -> Written:
        """Likewise rows, in a transaction of ``database.write()``; ``divided`` windows come with
        micro-joules by request. Windows of hours before ``open_from_s`` (default: those that are
        folded) are not taken."""
        if open_from_s is None:
            open_from_s = compaction.horizon(connection)
        timely = [row for row in window_rows if row["hour_s"] >= open_from_s]
        divided_timely = [entry for entry in divided if entry[0]["hour_s"] >= open_from_s]
        late = len(divided) - len(divided_timely)
        if late:
            log.warning("%d windows came after their hour was folded: not taken", late)
        batch = _Batch(connection)
        written = Written(
            requests=batch.add_requests(request_rows),
            windows=batch.add_windows(timely),
            attributions=batch.add_totals(divided_timely),
            shares=batch.shares_added,
            late=late,
        )
        add_dims(connection, batch.new_requests)
        for table, sums in batch.changes.by_table():
            add_sums(connection, table, sums)
        return written

    def receipt(self, request_id: str) -> Receipt | None:
        """The request with its shares; None when it is not in the ledger (yet)."""
        with self.database.read() as connection:
            return receipts.receipt(connection, request_id)

    def metered_until(self, nodes: Collection[str]) -> dict[str, float]:
        """Where each node's last divided window ends, Unix time; nodes without are left out."""
        with self.database.read() as connection:
            return receipts.metered_until(connection, nodes)

    def metered(self, request_ids: Collection[str]) -> dict[tuple[str, str], float]:
        """What windows gave to requests so far, in J, by request and node."""
        with self.database.read() as connection:
            return receipts.metered(connection, request_ids)

    def metered_answers(
        self, node: str, from_s: float, until_s: float
    ) -> tuple[list[MeteredAnswer], float]:
        """What a node's answers took that ended in a period, a slot of time at once, and from when
        to go on; see ``outcomes``."""
        with self.database.read() as connection:
            return outcomes.metered_answers(connection, node, from_s, until_s)

    def latest_from(self, node: str, most: int) -> float:
        """When the earliest of a node's ``most`` latest requests ended, Unix time; 0 where there
        are fewer."""
        with self.database.ask() as connection:
            return outcomes.latest_from(connection, node, most)

    def usage(
        self, team: str | None, from_s: float, to_s: float, group_by: Sequence[str] = ()
    ) -> list[Usage]:
        """Sums over the requests of whole hours, from the roll-ups; ``team`` None is all teams."""
        with self.database.read() as connection:
            return usage.usage(connection, team, from_s, to_s, group_by)

    def spent(
        self, from_s: float, to_s: float, *, teams: Sequence[str] = (), keys: Sequence[str] = ()
    ) -> Spending:
        """What teams, or keys by their ids, used of requests that arrived in a period."""
        with self.database.read() as connection:
            return usage.spent(connection, from_s, to_s, teams=teams, keys=keys)

    def teams(self) -> list[str]:
        """Every team that ever had a request, by name."""
        with self.database.ask() as connection:
            return list(connection.scalars(select(dims.c.team).distinct().order_by(dims.c.team)))

    def keep_own(self, process: str, hours: Mapping[int, OwnSums]) -> None:
        """Keep what one of Joulegate's processes itself used in these hours, by their start."""
        with self.database.write() as connection:
            ourselves.keep(connection, process, hours)

    def own_energy(self, from_s: float = 0.0, to_s: float = math.inf) -> OwnSums:
        """What Joulegate's processes themselves used in the hours that start in a period."""
        with self.database.read() as connection:
            return ourselves.used(connection, from_s, min(to_s, 1e15))

    def check(self) -> Balance:
        """Everything added up again. Reads the whole ledger."""
        with self.database.read() as connection:
            return audit.check(connection)


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
        self.changes.requests(self.new_requests)
        w = window_totals.c
        waiting = select(
            shares.c.request_id, shares.c.energy_uj, w.hour_s, w.node, w.evidence
        ).join(window_totals, w.window_id == shares.c.window_id)
        found: set[str] = set()
        for share in rows_where(self.connection, waiting, shares.c.request_id, by_id):
            row = by_id[share["request_id"]]
            self.changes.share_found(share["energy_uj"], share, row)
            if row["request_id"] not in found:
                found.add(row["request_id"])
                self.changes.first_share(row)
        insert(self.connection, requests, self.new_requests)
        return len(self.new_requests)

    def add_windows(self, rows: Sequence[Row]) -> int:
        new = self._new(windows, "window_id", rows)
        for row in new:
            self.changes.window(row)
        insert(self.connection, windows, new)
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
        estimates = (c[name] for name in rollups.ESTIMATES)
        named = select(c.request_id, c.team, c.hour_s, c.dim_id, *estimates)
        known = {
            row["request_id"]: row
            for row in rows_where(self.connection, named, c.request_id, wanted)
        }
        metered = select(shares.c.request_id).distinct()
        had = {
            row["request_id"]
            for row in rows_where(self.connection, metered, shares.c.request_id, known)
        }
        for row in new:
            self.changes.totals(row)
        for share in share_rows:
            request = known.get(share["request_id"])
            self.changes.share(share["energy_uj"], by_id[share["window_id"]], request)
            if request is not None and share["request_id"] not in had:
                had.add(share["request_id"])
                self.changes.first_share(request)
        insert(self.connection, window_totals, new)
        insert(self.connection, shares, share_rows)
        self.shares_added = len(share_rows)
        return len(new)

    def _new(self, table: Table, key: str, rows: Sequence[Row]) -> list[Row]:
        """Of ``rows`` those that the table does not have; the first of equals."""
        by_key = {row[key]: row for row in reversed(rows)}
        for row in rows_where(self.connection, select(table.c[key]), table.c[key], by_key):
            del by_key[row[key]]
        return list(by_key.values())


def add_dims(connection: Connection, rows: Sequence[Row]) -> None:
    """Describe the combinations of dimensions that ``rows`` are the first to have."""
    by_id = {row["dim_id"]: row for row in rows}
    for known in rows_where(connection, select(dims.c.dim_id), dims.c.dim_id, by_id):
        del by_id[known["dim_id"]]
    described = [
        {"dim_id": number, **dict(zip(DIMENSIONS, dimensions(row), strict=True))}
        for number, row in by_id.items()
    ]
    insert(connection, dims, described)


def add_sums(connection: Connection, table: Table, sums: Sums) -> None:
    """Add to a roll-up's rows, making those that are missing."""
    keys = [column.name for column in table.primary_key]
    # in one order, so that two databases fill alike and pages are written next to each other
    changed = sorted(item for item in sums.items() if any(item[1].values()))
    add(connection, table, [{**dict(zip(keys, k, strict=True)), **v} for k, v in changed])


def _insert(connection: Connection, table: Table) -> Any:
    """An INSERT that knows ON CONFLICT, which both databases spell alike."""
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    return kind.insert(table)
