"""The audit log: what admins did, in the ledger, and the number by which replicas notice it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import Connection, select, update

from meters.rows import clean
from meters.schema import audit_log, changes

_WATCHED = "teams"


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One admin action. Holds no secret."""

    at_s: float
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]


def note(
    connection: Connection,
    actor: str,
    action: str,
    subject: str,
    detail: Mapping[str, Any] | None = None,
    *,
    change: bool = True,
) -> None:
    """Write an admin action into the audit log, in the transaction that makes it, and, where it is
    a ``change``, raise the number that replicas look at."""
    connection.execute(
        audit_log.insert().values(
            entry_id=os.urandom(12).hex(),
            at_s=time.time(),
            actor=clean(actor),
            action=action,
            subject=clean(subject),
            detail=msgspec.json.encode(detail or {}).decode(),
        )
    )
    if not change:
        return
    raised = connection.execute(
        update(changes).where(changes.c.name == _WATCHED).values(number=changes.c.number + 1)
    )
    if raised.rowcount == 0:
        connection.execute(changes.insert().values(name=_WATCHED, number=1))


def number(connection: Connection) -> int:
    """Raised by every change; cheap to ask."""
    query = select(changes.c.number).where(changes.c.name == _WATCHED)
    return int(connection.scalar(query) or 0)


def latest(connection: Connection, limit: int) -> list[AuditEntry]:
    """The latest admin actions, newest first."""
    query = select(audit_log).order_by(audit_log.c.at_s.desc()).limit(limit)
    return [
        AuditEntry(
            at_s=row["at_s"],
            actor=row["actor"],
            action=row["action"],
            subject=row["subject"],
            detail=msgspec.json.decode(row["detail"]),
        )
        for row in connection.execute(query).mappings()
    ]
