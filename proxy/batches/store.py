"""Batches and their results. All calls block.

A batch belongs to one process at a time, for as long as it says so again: where that process dies,
another takes the batch over and sends the requests that have no result yet. A request whose answer
came and was not kept before is therefore sent twice, and is on the books twice, as it was.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, case, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from meters.database import Database
from proxy.batches.files import Row, Writing, page
from proxy.batches.tables import OPEN, batches, results

NONE_HELD: Mapping[str, int] = {}
OWNED_S = 30.0  # how long a process owns a batch without saying so again
_OF_STATUS = {
    "in_progress": "in_progress_s",
    "finalizing": "finalizing_s",
    "completed": "completed_s",
    "failed": "failed_s",
    "expired": "expired_s",
    "cancelling": "cancelling_s",
    "cancelled": "cancelled_s",
}


class Lost(Exception):
    """The batch is another process's by now."""


class Result(NamedTuple):
    """What became of one line."""

    line: int  # counted from 1
    ok: bool
    data: bytes  # as the output or error file has it
    energy_j: float | None  # estimated
    carbon_g: float | None
    evidence: str | None


class Batches:
    """The batches of all teams."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def create(self, row: Row) -> None:
        with self.database.write() as connection:
            connection.execute(batches.insert().values(row))

    def get(self, team: str, batch_id: str) -> Row | None:
        """A batch with its counts up to now, or None."""
        c = batches.c
        with self.database.read() as connection:
            query = select(batches).where(c.id == batch_id, c.team == team)
            row = connection.execute(query).mappings().first()
            return None if row is None else _counted(connection, dict(row))

    def list(self, team: str, *, limit: int, after: str | None = None) -> list[Row]:
        """A team's batches, the newest first; those behind ``after``, a batch's id."""
        with self.database.read() as connection:
            query = select(batches).where(batches.c.team == team)
            return [
                _counted(connection, row) for row in page(connection, query, batches, limit, after)
            ]

    def cancel(self, team: str, batch_id: str) -> bool:
        """Ask for an end; False where the batch has ended."""
        c = batches.c
        change = (
            update(batches)
            .where(c.id == batch_id, c.team == team, c.status.in_(("validating", "in_progress")))
            .values(status="cancelling", cancelling_s=time.time())
        )
        with self.database.write() as connection:
            return bool(connection.execute(change).rowcount)

    def take(self, owner: str, most: int, held: Mapping[str, int] = NONE_HELD) -> Sequence[Row]:
        """Batches that nobody works on, the oldest of each team first: so many that it has ``most``
        with those that are ``held`` of it; they are this owner's from now on."""
        with self.database.ask() as connection:
            if not _free(connection, most, held):
                return ()
        with self.database.write() as connection:
            rows = _free(connection, most, held)
            ids = [row["id"] for row in rows]
            own = {"owner": owner, "owned_until_s": time.time() + OWNED_S}
            connection.execute(update(batches).where(batches.c.id.in_(ids)).values(own))
            return rows

    def hold(self, owner: str, ids: Sequence[str]) -> dict[str, str]:
        """Say again that this owner works on those batches; the statuses of its own by id."""
        c = batches.c
        mine = (c.owner == owner) & c.id.in_(ids) & c.status.in_(OPEN)
        with self.database.write() as connection:
            connection.execute(
                update(batches).where(mine).values(owned_until_s=time.time() + OWNED_S)
            )
            query = select(c.id, c.status).where(mine)
            return {row.id: row.status for row in connection.execute(query)}

    def let_go(self, owner: str, batch_id: str) -> None:
        """Leave a batch to others."""
        c = batches.c
        with self.database.write() as connection:
            connection.execute(
                update(batches).where(c.id == batch_id, c.owner == owner).values(owner=None)
            )

    def release(self, owner: str) -> None:
        """Leave all that this owner has to others, now."""
        with self.database.write() as connection:
            connection.execute(update(batches).where(batches.c.owner == owner).values(owner=None))

    def turn(self, owner: str, batch_id: str, status: str, **more: Any) -> None:
        """Another status. Raises Lost."""
        with self.database.write() as connection:
            _turn(connection, owner, batch_id, status, **more)

    def done(self, batch_id: str) -> set[int]:
        """The lines that have results."""
        query = select(results.c.line).where(results.c.batch_id == batch_id)
        with self.database.read() as connection:
            return set(connection.scalars(query))

    def keep(self, owner: str, batch_id: str, found: Iterable[Result]) -> None:
        """Keep results; of a line the first. Raises Lost."""
        rows = [{"batch_id": batch_id, **one._asdict()} for one in found]
        with self.database.write() as connection:
            _require(connection, owner, batch_id)
            kind = postgresql if connection.dialect.name == "postgresql" else sqlite
            insert: Any = kind.insert(results)
            connection.execute(insert.on_conflict_do_nothing(), rows)

    def finish(
        self,
        owner: str,
        row: Row,
        status: str,
        expires_s: float,
        unsent: Iterable[bytes] = (),
        errors: str | None = None,
    ) -> None:
        """Write the files of a batch and end it, in one transaction: its results, and ``unsent``,
        further lines of its error file. ``errors``: why it failed, as JSON. Raises Lost."""
        batch_id = row["id"]
        with self.database.write() as connection:
            _require(connection, owner, batch_id)
            counts = _counts(connection, batch_id)
            total = connection.scalar(select(batches.c.total).where(batches.c.id == batch_id))
            if status == "completed" and counts["completed"] + counts["failed"] != total:
                raise RuntimeError(f"{batch_id} has {total} requests, and results {counts}")
            more: Row = {**counts, "errors": errors}
            for ok, key in ((True, "output_file_id"), (False, "error_file_id")):
                file: Writing | None = None
                name = f"{batch_id}_{'output' if ok else 'error'}.jsonl"
                lines = _lines(connection, batch_id, ok)
                for line in lines if ok else _then(lines, unsent):
                    if file is None:
                        file = Writing(connection, row["team"], name, expires_s)
                    file.add(line)
                more[key] = None if file is None else file.end()
            connection.execute(delete(results).where(results.c.batch_id == batch_id))
            _turn(connection, owner, batch_id, status, owner_after=None, **more)

    def using(self, file_id: str) -> str | None:
        """A batch that still reads that file."""
        c = batches.c
        query = select(c.id).where(c.input_file_id == file_id, c.status.in_(OPEN)).limit(1)
        with self.database.read() as connection:
            return connection.scalar(query)

    def sweep(self, before_s: float) -> None:
        """Forget batches that ended before that time."""
        c = batches.c
        with self.database.write() as connection:
            connection.execute(delete(batches).where(c.status.not_in(OPEN), c.created_s < before_s))


def _free(connection: Connection, most: int, held: Mapping[str, int]) -> list[Row]:
    c = batches.c
    open_ = c.status.in_(OPEN) & or_(c.owner.is_(None), c.owned_until_s < time.time())
    place = func.row_number().over(partition_by=c.team, order_by=c.created_s).label("place")
    first = select(c.id, place).where(open_).subquery()
    early = select(first.c.id).where(first.c.place <= most)
    found = connection.execute(select(batches).where(c.id.in_(early)).order_by(c.created_s))
    counts = Counter(held)
    rows = []
    for row in found.mappings():
        counts[row["team"]] += 1
        if counts[row["team"]] <= most:
            rows.append(dict(row))
    return rows


def _lines(connection: Connection, batch_id: str, ok: bool) -> Iterable[bytes]:
    c = results.c
    query = select(c.data).where(c.batch_id == batch_id, c.ok == ok).order_by(c.line)
    for data in connection.scalars(query.execution_options(yield_per=200)):
        yield bytes(data)


def _then(first: Iterable[bytes], after: Iterable[bytes]) -> Iterable[bytes]:
    yield from first
    yield from after


def _require(connection: Connection, owner: str, batch_id: str) -> None:
    if connection.scalar(select(batches.c.owner).where(batches.c.id == batch_id)) != owner:
        raise Lost(batch_id)


def _turn(connection: Connection, owner: str, batch_id: str, status: str, **more: Any) -> None:
    values: Row = {"status": status, **more}
    if "owner_after" in values:
        values["owner"] = values.pop("owner_after")
    if status in _OF_STATUS:
        values[_OF_STATUS[status]] = time.time()
    c = batches.c
    change = update(batches).where(c.id == batch_id, c.owner == owner).values(values)
    if status in ("in_progress", "finalizing"):  # nobody has asked for an end meanwhile
        change = change.where(c.status != "cancelling")
    if not connection.execute(change).rowcount:
        raise Lost(batch_id)


def _counts(connection: Connection, batch_id: str) -> Row:
    c = results.c
    query = select(
        func.coalesce(func.sum(case((c.ok, 1), else_=0)), 0),
        func.coalesce(func.sum(case((c.ok, 0), else_=1)), 0),
        func.coalesce(func.sum(c.energy_j), 0.0),
        func.coalesce(func.sum(c.carbon_g), 0.0),
        func.count(c.energy_j),
    ).where(c.batch_id == batch_id)
    completed, failed, energy_j, carbon_g, known = connection.execute(query).one()
    kinds = select(c.evidence).where(c.batch_id == batch_id, c.energy_j.is_not(None)).distinct()
    return {
        "completed": int(completed),
        "failed": int(failed),
        "energy_j": float(energy_j),
        "carbon_g": float(carbon_g),
        "known": int(known),
        "evidence": ",".join(sorted(filter(None, connection.scalars(kinds)))),
    }


def _counted(connection: Connection, row: Row) -> Row:
    """A row with what its results say, while it has any."""
    return {**row, **_counts(connection, row["id"])} if row["status"] in OPEN else row
