"""Snapshots kept for ever under their hash, so that a link shows what its sender saw.

The table is this module's own and made when first needed, beside the ledger's tables: all
replicas see it, and the ledger's migrations do not know it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
from sqlalchemy import Column, Double, MetaData, Table, Text, select
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from meters.ledger import Ledger
from proxy.dashboard.snapshot import Snapshot, encode, is_genuine

_metadata = MetaData()
_frozen = Table(
    "dashboard_frozen",
    _metadata,
    Column("hash", Text, primary_key=True),
    Column("team", Text, nullable=False),
    Column("frozen_s", Double, nullable=False),
    Column("body", Text, nullable=False),
)


class FrozenSnapshots:
    """Keeps and finds snapshots in the ledger's database."""

    def __init__(self, ledger: Callable[[], Ledger]) -> None:
        self._ledger = ledger

    def keep(self, snapshot: Snapshot) -> str:
        """Keep it; gives its hash. Keeping the same twice changes nothing."""
        values = {
            "hash": snapshot.hash,
            "team": snapshot.team,
            "frozen_s": time.time(),
            "body": encode(snapshot).decode(),
        }
        if self.find(snapshot.hash) is None:
            try:
                with self._ledger().database.write() as connection:
                    _metadata.create_all(connection, checkfirst=True)
                    connection.execute(_frozen.insert(), values)
            except IntegrityError:
                pass  # another replica was first, with the same bytes
        return snapshot.hash

    def find(self, name: str) -> Snapshot | None:
        """The snapshot of that hash; None when there is none or its contents do not match it."""
        try:
            with self._ledger().database.read() as connection:
                body = connection.scalar(select(_frozen.c.body).where(_frozen.c.hash == name))
        except (OperationalError, ProgrammingError):
            return None  # nothing was ever frozen here
        if body is None:
            return None
        found = msgspec.json.decode(body, type=Snapshot)
        return found if found.hash == name and is_genuine(found) else None
