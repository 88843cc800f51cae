"""Snapshots kept for ever under their hash, so that a link shows what its sender saw."""

from __future__ import annotations

import time

import msgspec
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from meters.ledger import Ledger
from meters.schema import dashboard_frozen
from proxy.dashboard.snapshot import Snapshot, encode, is_genuine


class FrozenSnapshots:
    """Keeps and finds snapshots in the ledger's database."""

    def __init__(self, ledger: Ledger) -> None:
        self._database = ledger.database

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
                with self._database.write() as connection:
                    connection.execute(dashboard_frozen.insert(), values)
            except IntegrityError:
                pass  # another replica was first, with the same bytes
        return snapshot.hash

    def find(self, name: str) -> Snapshot | None:
        """The snapshot of that hash; None when there is none or its contents do not match it."""
        frozen = dashboard_frozen.c
        with self._database.read() as connection:
            body = connection.scalar(select(frozen.body).where(frozen.hash == name))
        if body is None:
            return None
        found = msgspec.json.decode(body, type=Snapshot)
        return found if found.hash == name and is_genuine(found) else None
