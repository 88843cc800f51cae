"""Uploaded and written files, in parts of a megabyte. All calls block."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from meters.database import Database
from meters.rows import clean
from proxy.batches.tables import OPEN, batches, files, parts

PART_BYTES = 1 << 20
_ABANDONED_S = 86_400.0  # after which an upload that never ended is forgotten

Row = dict[str, Any]


class Files:
    """The files of all teams; each call names the team whose files it may see."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def begin(
        self, team: str, filename: str, purpose: str, expires_s: float, now_s: float | None = None
    ) -> str:
        """A new file's id. Nobody sees it before ``end``."""
        file_id = f"file-{secrets.token_hex(12)}"
        now_s = time.time() if now_s is None else now_s
        with self.database.write() as connection:
            _begin(connection, file_id, team, filename, purpose, expires_s, now_s)
        return file_id

    def add(self, file_id: str, number: int, data: bytes) -> None:
        """Keep the part with that number; parts are numbered from 0."""
        with self.database.write() as connection:
            _add(connection, file_id, number, data)

    def end(self, file_id: str, size: int, filename: str, expires_s: float | None) -> None:
        """All parts are there, ``size`` bytes together; only now is it known what it is called,
        and perhaps until when it is wanted."""
        more = {} if expires_s is None else {"expires_s": expires_s}
        with self.database.write() as connection:
            _end(connection, file_id, size, filename=clean(filename), **more)

    def get(self, team: str, file_id: str) -> Row | None:
        """A whole file's row, or None."""
        c = files.c
        query = select(files).where(c.id == file_id, c.team == team, c.whole)
        with self.database.read() as connection:
            row = connection.execute(query).mappings().first()
            return None if row is None else dict(row)

    def list(
        self,
        team: str,
        *,
        limit: int,
        after: str | None = None,
        purpose: str | None = None,
        oldest_first: bool = False,
    ) -> list[Row]:
        """A team's files, the newest first unless said; those behind ``after``, a file's id."""
        c = files.c
        query = select(files).where(c.team == team, c.whole)
        if purpose is not None:
            query = query.where(c.purpose == purpose)
        with self.database.read() as connection:
            return page(connection, query, files, limit, after, oldest_first)

    def content(self, file_id: str) -> Iterator[bytes]:
        """The parts of a file, in order; each is read when it is asked for."""
        c = parts.c
        number = 0
        while True:
            query = select(c.data).where(c.file_id == file_id, c.number == number)
            with self.database.read() as connection:
                data = connection.scalar(query)
            if data is None:
                return
            yield bytes(data)
            number += 1

    def delete(self, team: str, file_id: str) -> bool:
        """Whether there was such a file."""
        c = files.c
        with self.database.write() as connection:
            gone = connection.execute(delete(files).where(c.id == file_id, c.team == team))
            if gone.rowcount:
                connection.execute(delete(parts).where(parts.c.file_id == file_id))
            return bool(gone.rowcount)

    def abandon(self, file_id: str) -> None:
        """Forget a file that never became whole."""
        with self.database.write() as connection:
            connection.execute(delete(parts).where(parts.c.file_id == file_id))
            connection.execute(delete(files).where(files.c.id == file_id))

    def used_bytes(self, team: str) -> int:
        """What a team's whole files take together."""
        query = select(func.coalesce(func.sum(files.c.bytes), 0)).where(files.c.team == team)
        with self.database.read() as connection:
            return int(connection.scalar(query) or 0)

    def sweep(self, now_s: float) -> int:
        """Delete what has expired, and uploads that never ended; how many that were."""
        c = files.c
        read = select(batches.c.input_file_id).where(batches.c.status.in_(OPEN))
        old = (c.expires_s <= now_s) & c.id.not_in(read)
        abandoned = ~c.whole & (c.created_s <= now_s - _ABANDONED_S)
        with self.database.write() as connection:
            gone = list(connection.scalars(select(c.id).where(old | abandoned)))
            for file_id in gone:
                connection.execute(delete(parts).where(parts.c.file_id == file_id))
                connection.execute(delete(files).where(c.id == file_id))
            return len(gone)


class Writing:
    """A file that is written within somebody's transaction, line by line."""

    def __init__(self, connection: Connection, team: str, filename: str, expires_s: float) -> None:
        self.id = f"file-{secrets.token_hex(12)}"
        self._connection = connection
        self._part = bytearray()
        self._number = self._size = 0
        _begin(connection, self.id, team, filename, "batch_output", expires_s, time.time())

    def add(self, line: bytes) -> None:
        """One line, without its end."""
        self._part += line + b"\n"
        if len(self._part) >= PART_BYTES:
            self._keep()

    def end(self) -> str:
        """The whole file's id."""
        self._keep()
        _end(self._connection, self.id, self._size)
        return self.id

    def _keep(self) -> None:
        if self._part:
            _add(self._connection, self.id, self._number, bytes(self._part))
            self._number, self._size = self._number + 1, self._size + len(self._part)
            self._part.clear()


def page(
    connection: Connection,
    query: Any,
    table: Any,
    limit: int,
    after: str | None,
    oldest_first: bool = False,
) -> list[Row]:
    """``limit`` rows of a list by time and id, those behind the row ``after``; none when there is
    no such row."""
    c = table.c
    if after is not None:
        seen = connection.execute(query.where(c.id == after)).mappings().first()
        if seen is None:
            return []
        at_s, number = seen["created_s"], seen["id"]
        later = (c.created_s > at_s) | ((c.created_s == at_s) & (c.id > number))
        earlier = (c.created_s < at_s) | ((c.created_s == at_s) & (c.id < number))
        query = query.where(later if oldest_first else earlier)
    order = (c.created_s, c.id) if oldest_first else (c.created_s.desc(), c.id.desc())
    return [dict(row) for row in connection.execute(query.order_by(*order).limit(limit)).mappings()]


def _begin(
    connection: Connection,
    file_id: str,
    team: str,
    filename: str,
    purpose: str,
    expires_s: float,
    now_s: float,
) -> None:
    row = {
        "id": file_id,
        "team": team,
        "filename": clean(filename),
        "purpose": purpose,
        "bytes": 0,
        "created_s": now_s,
        "expires_s": expires_s,
        "whole": False,
    }
    connection.execute(files.insert().values(row))


def _add(connection: Connection, file_id: str, number: int, data: bytes) -> None:
    connection.execute(parts.insert().values(file_id=file_id, number=number, data=data))


def _end(connection: Connection, file_id: str, size: int, **more: Any) -> None:
    change = update(files).where(files.c.id == file_id)
    connection.execute(change.values(bytes=size, whole=True, **more))
