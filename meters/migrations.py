"""Brings a ledger's tables to the version this program knows, at start, under a lock.

A new ledger gets today's tables at once; an old one goes through the steps it has not seen, in
one transaction. Two replicas that start together wait for each other; the second finds nothing
left to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Connection, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError

from meters.schema import (
    changes,
    dashboard_frozen,
    energy_hours,
    feedback,
    meta,
    metadata,
    node_hours,
    organisations,
    own_hours,
    request_hours,
    team_days,
)


def _to_2(connection: Connection) -> None:
    """Replicas notice changed keys; windows of an hour can be folded into one."""
    changes.create(connection)
    connection.execute(
        text("ALTER TABLE window_totals ADD COLUMN windows BIGINT NOT NULL DEFAULT 1")
    )


def _to_3(connection: Connection) -> None:
    """Rows say their experiment's arm and what their intensity stood on; use of nodes by day."""
    for change in (
        "requests ADD COLUMN arm TEXT",
        "requests ADD COLUMN intensity_tier TEXT NOT NULL DEFAULT ''",
        "dims ADD COLUMN arm TEXT NOT NULL DEFAULT ''",
    ):
        connection.execute(text(f"ALTER TABLE {change}"))
    team_days.create(connection)
    connection.execute(
        text(
            "INSERT INTO team_days (day, node, team, energy_uj) "
            "SELECT hour_s / 86400, metered_node, team, SUM(energy_uj) FROM energy_hours "
            "GROUP BY hour_s / 86400, metered_node, team"
        )
    )


def _to_4(connection: Connection) -> None:
    """Organisations can be given budgets while Joulegate runs; frozen pages belong to the books."""
    organisations.create(connection)
    dashboard_frozen.create(connection, checkfirst=True)  # was made when first needed


def _to_5(connection: Connection) -> None:
    """Rows may hold a pseudonym of whom the caller named as its user."""
    connection.execute(text("ALTER TABLE requests ADD COLUMN user_hash TEXT"))


def _to_6(connection: Connection) -> None:
    """Joulegate's own energy is kept, too."""
    own_hours.create(connection)


def _to_7(connection: Connection) -> None:
    """Pages of roll-ups keep room for what their rows become."""
    _leave_room(connection)


def _to_8(connection: Connection) -> None:
    """Rows say which part of their estimate is of others' APIs, where engines took part, too."""
    for name in ("hosted_uj", "hosted_low_uj", "hosted_high_uj"):
        connection.execute(text(f"ALTER TABLE requests ADD COLUMN {name} BIGINT"))


def _to_9(connection: Connection) -> None:
    """Windows that were folded into one say of how many of them the host was read."""
    connection.execute(
        text("ALTER TABLE windows ADD COLUMN host_windows BIGINT NOT NULL DEFAULT 1")
    )


def _to_10(connection: Connection) -> None:
    """Replicas look for the latest scores."""
    for index in feedback.indexes:
        index.create(connection)


def _leave_room(connection: Connection) -> None:
    """Half of each page of the roll-ups that every batch adds to. PostgreSQL writes a changed row
    anew; beside the old one it needs no new entry in the index, and the room is used again soon.
    Full pages sent each changed row to the end of the table, which grew to three times its size.
    """
    if connection.dialect.name == "postgresql":
        for table in (request_hours, energy_hours, team_days, node_hours):
            connection.execute(text(f"ALTER TABLE {table.name} SET (fillfactor = 50)"))


# version -> what leads to it from the one before. Never change a step that was released.
STEPS: dict[int, Callable[[Connection], None]] = {
    2: _to_2,
    3: _to_3,
    4: _to_4,
    5: _to_5,
    6: _to_6,
    7: _to_7,
    8: _to_8,
    9: _to_9,
    10: _to_10,
}
VERSION = 1 + len(STEPS)

# Any number will do, if it is the same for every replica: the key of PostgreSQL's advisory lock.
LOCK_KEY = 7_205_650_471


class LedgerTooNew(SQLAlchemyError):
    """The ledger was written by a newer program; the message says so. Whoever serves takes it as a
    ledger that is away: after a release that was taken back, answers come before books."""


def migrate(connection: Connection) -> list[int]:
    """Run what is missing, inside the caller's transaction; returns the versions reached.

    The caller's transaction must be the ledger's only writer (``Ledger`` sees to that). Raises
    LedgerTooNew.
    """
    present = inspect(connection).has_table(meta.name)
    current = (
        connection.scalar(select(meta.c.version).order_by(meta.c.version.desc()).limit(1))
        if present
        else None
    )
    if current is None:
        metadata.create_all(connection)
        _leave_room(connection)
        reached = [VERSION]
    elif current > VERSION:
        raise LedgerTooNew(
            f"The ledger has version {current}; this program knows {VERSION}. "
            "Install the newer one."
        )
    else:
        reached = [v for v in sorted(STEPS) if v > current]
        for version in reached:
            STEPS[version](connection)
    if reached:
        connection.execute(
            meta.insert(), [{"version": v, "applied_s": time.time()} for v in reached]
        )
    return reached


def lock(connection: Connection) -> None:
    """Make this transaction the ledger's only writer until it ends.

    In SQLite ``BEGIN IMMEDIATE`` has done so already. With one writer at a time a share and its
    request can never be written past each other by two replicas, which would lose the share from
    the roll-ups.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
