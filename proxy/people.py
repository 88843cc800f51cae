"""Local accounts of people who look at the dashboard: a name, a password, a role, teams.

They are kept in the ledger. Every change is in the audit log and is seen by all replicas within a
second, as with keys.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping

import msgspec
from sqlalchemy import Connection, select, update

from meters.database import Database
from meters.schema import accounts
from proxy import passwords
from proxy.audit_log import note
from proxy.teams import ROLES, TeamsError

LONGEST_NAME = 100


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """One account. ``stamp`` changes with the password: who signed in before is out."""

    name: str
    role: str
    teams: tuple[str, ...]
    password_hash: str
    created_s: float
    disabled_s: float | None = None

    @property
    def stamp(self) -> str:
        return hashlib.sha256(self.password_hash.encode()).hexdigest()[:16]


class People:
    """Reads and changes local accounts. Calls block; use a thread from the event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self, name: str, password: str, *, role: str, teams: tuple[str, ...], actor: str
    ) -> None:
        """Add an account, or bring a removed one back. Raises TeamsError, BadPassword."""
        if not name or not name.isprintable() or len(name) > LONGEST_NAME:
            raise TeamsError(f"{name!r} cannot be an account's name.")
        if role not in ROLES:
            raise TeamsError(f"{role!r} is not a role. Take one of {', '.join(ROLES)}.")
        if role != "admin" and not teams:
            raise TeamsError("Name the teams whose pages the account may see.")
        kept = passwords.hashed(password)
        with self._database.write() as connection:
            known = self._of(connection, name)
            if known is not None and known.disabled_s is None:
                raise TeamsError(f"There is an account {name!r} already.")
            values = {
                "name": name,
                "password_hash": kept,
                "role": role,
                "teams": msgspec.json.encode(teams).decode(),
                "created_s": time.time(),
                "disabled_s": None,
            }
            if known is None:
                connection.execute(accounts.insert().values(values))
            else:
                connection.execute(update(accounts).where(accounts.c.name == name).values(values))
            detail = {"role": role, "teams": list(teams)}
            note(connection, actor, "account.create", name, detail)

    def set_password(self, name: str, password: str, actor: str) -> None:
        """Set a new password, which ends all sessions. Raises TeamsError, BadPassword."""
        kept = passwords.hashed(password)
        self._change(name, {"password_hash": kept}, actor, "account.password")

    def remove(self, name: str, actor: str) -> None:
        """Let nobody in by that account from now on. Raises TeamsError."""
        self._change(name, {"disabled_s": time.time()}, actor, "account.remove")

    def all(self) -> dict[str, Person]:
        """Every account that is not removed, by name."""
        with self._database.ask() as connection:
            rows = connection.execute(select(accounts)).mappings()
            found = [_person(dict(row)) for row in rows]
        return {p.name: p for p in found if p.disabled_s is None}

    def entered(self, name: str, how: str, role: str) -> None:
        """Note in the audit log that somebody signed in."""
        with self._database.write() as connection:
            detail = {"by": how, "role": role}
            note(connection, name, "sign_in", name, detail, change=False)

    def _change(self, name: str, values: Mapping[str, object], actor: str, action: str) -> None:
        with self._database.write() as connection:
            known = self._of(connection, name)
            if known is None or known.disabled_s is not None:
                raise TeamsError(f"There is no account {name!r}.")
            connection.execute(update(accounts).where(accounts.c.name == name).values(values))
            note(connection, actor, action, name)

    @staticmethod
    def _of(connection: Connection, name: str) -> Person | None:
        row = connection.execute(select(accounts).where(accounts.c.name == name)).mappings().first()
        return None if row is None else _person(dict(row))


def _person(row: Mapping[str, object]) -> Person:
    teams = msgspec.json.decode(str(row["teams"]), type=tuple[str, ...])
    return msgspec.convert({**{str(k): v for k, v in row.items()}, "teams": teams}, Person)
