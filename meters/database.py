"""Connections to the ledger's database: SQLite in WAL mode, or PostgreSQL."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url

from meters.migrations import lock

log = logging.getLogger("joulegate.ledger")

BUSY_S = 30.0  # how long a SQLite writer waits for another process's
CONNECT_S = 5  # how long to wait for PostgreSQL to answer


class Database:
    """``write()`` gives the one writing transaction, ``read()`` one of many reading ones, and
    ``ask()`` a connection for a single statement."""

    def __init__(
        self, url: str, first: Callable[[Connection], None] | None = None, connections: int = 4
    ) -> None:
        """``url``: ``sqlite:///file``, a plain file name, or ``postgresql://...`` (also
        ``postgres://``).

        ``first`` runs once, in a writing transaction, before anything else does: at ``prepare``,
        or when the database first answers. ``connections`` to PostgreSQL are kept open, and as many
        more opened where they are needed.
        """
        self._first = self._always_first = first
        self._path: Path | None = None  # of SQLite's file
        self._file: os.stat_result | None = None  # the one that was prepared
        self._preparing = threading.Lock()
        parsed = make_url(url if "://" in url else f"sqlite:///{url}")
        self.kind = parsed.get_backend_name()
        if self.kind == "postgres":  # as many hosts and other programs call it
            self.kind = "postgresql"
        if self.kind == "sqlite":
            if parsed.database in (None, "", ":memory:"):
                raise ValueError("The ledger needs a file: sqlite:///ledger.db")
            self._path = Path(str(parsed.database))
            _private(self._path)
            self.writer = _sqlite(parsed, "BEGIN IMMEDIATE")
            self.reader = _sqlite(parsed, "BEGIN")
        elif self.kind == "postgresql":
            engine = create_engine(
                parsed.set(drivername="postgresql+psycopg"),
                pool_pre_ping=True,
                use_native_hstore=False,  # unused, and looking for it takes three statements
                pool_size=connections,
                max_overflow=connections,
                connect_args={
                    "connect_timeout": CONNECT_S,
                    "keepalives_idle": 10,
                    "tcp_user_timeout": 20_000,  # milliseconds
                    "application_name": "joulegate",
                },
            )
            self.writer = self.reader = engine
        else:
            raise ValueError(f"The ledger cannot be in {self.kind}: use sqlite or postgresql.")
        self.name = parsed.render_as_string(hide_password=True)

    def prepare(self) -> None:
        """Run what is to run first, unless it has run."""
        if self._first is None and not self._gone():
            return
        with self._preparing:
            if self._first is None and self._gone():
                self._begin_anew()
            if self._first is not None:
                with self.writer.begin() as connection:
                    lock(connection)
                    self._first(connection)
                self._first = None
                self._file = _stat(self._path)

    def _gone(self) -> bool:
        """Whether SQLite's file was deleted or replaced: who has it open writes on, into what
        nobody can read any more, and SQLite says nothing."""
        if self._file is None or self._path is None:
            return False
        there = _stat(self._path)
        return there is None or not os.path.samestat(there, self._file)

    def _begin_anew(self) -> None:
        log.error("%s was deleted or replaced under this process; what is there is used", self.name)
        self.writer.dispose()
        self.reader.dispose()
        assert self._path is not None
        try:
            _private(self._path)
        except OSError:
            pass  # SQLite says what is wrong when it opens it
        self._first, self._file = self._always_first, None

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is the ledger's only writer until it ends."""
        self.prepare()
        with self.writer.begin() as connection:
            lock(connection)
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the ledger throughout."""
        self.prepare()
        with self.reader.connect() as connection:
            if self.kind == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def ask(self) -> Iterator[Connection]:
        """A connection for one reading statement: to PostgreSQL without a transaction, whose
        beginning and end would be two more round trips."""
        if self.kind != "postgresql":
            with self.read() as connection:
                yield connection
            return
        self.prepare()
        with self.reader.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    def size_bytes(self) -> int:
        """What the ledger takes on disk."""
        with self.read() as connection:
            if self.kind == "postgresql":
                query = "SELECT pg_database_size(current_database())"
            else:
                query = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
            return int(connection.scalar(text(query)) or 0)

    def vacuum(self) -> None:
        """Give the space of deleted rows back."""
        options = {"isolation_level": "AUTOCOMMIT"} if self.kind == "postgresql" else {}
        with self.writer.connect().execution_options(**options) as connection:
            if self.kind == "postgresql":
                connection.execute(text("VACUUM (ANALYZE)"))
            else:
                raw: Any = connection.connection.driver_connection
                raw.execute("VACUUM")  # outside any transaction
                raw.execute("ANALYZE")
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        self.writer.dispose()
        self.reader.dispose()


def _stat(path: Path | None) -> os.stat_result | None:
    """Which file is there; None where there is none."""
    try:
        return None if path is None else path.stat()
    except OSError:
        return None


def _private(path: Path) -> None:
    """Make a new ledger readable by its owner only; SQLite gives its WAL the same mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600))
    except OSError:
        pass  # SQLite says what is wrong when it opens it


def _keep_a_log(connection: sqlite3.Connection) -> None:
    """Switch to WAL mode. Where others open the same new file SQLite says at once that it is
    locked, whatever its timeout."""
    end_s = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end_s:
                raise
            time.sleep(0.01)
        else:
            return


def _sqlite(url: Any, begin: str) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_S, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        _keep_a_log(connection)
        for pragma in (
            "synchronous=FULL",  # journal segments are deleted once they are committed here
            "cache_size=-65536",  # 64 MiB
            "temp_store=MEMORY",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
