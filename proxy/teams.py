"""Organisations, teams, projects and keys that are kept in the ledger, merged with those of the
config file.

The config file comes first: an organisation or a team that it names is set there and nowhere else,
and so are its keys, except that any key can be revoked here. Every change is written to the audit
log in the same transaction, and raises a number that replicas look at to notice it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from shlex import quote
from typing import Any

import msgspec
from sqlalchemy import Connection, func, select, update

from meters.database import Database
from meters.schema import api_keys, organisations, projects, teams
from proxy import audit_log
from proxy.audit_log import AuditEntry, note
from proxy.auth import (
    UNRULED,
    Caller,
    caller_of,
    callers_in,
    callers_of_team,
    digest,
    hash_of,
)
from proxy.policy_book import mistakes_of_key, mistakes_of_organisation, mistakes_of_team
from proxy.settings import KeyRules, KeySettings, Organisation, Settings, Team

ROLES = ("admin", "lead", "member")
KEY_PREFIX = "jg-"
MOST_LETTERS = 200  # of a name: it is in every record and every index


class TeamsError(Exception):
    """Something the caller can mend; the message says what."""


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key just made. ``key`` is known nowhere else, and never again."""

    key_id: str
    key: str
    team: str
    role: str
    expires_s: float | None


class KeyInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What may be shown of a key."""

    key_id: str
    team: str
    role: str
    project: str | None
    name: str
    created_s: float | None  # None: it is in the config file
    expires_s: float | None
    revoked_s: float | None
    replaced_by: str | None
    source: str  # config | ledger
    rules: KeyRules = UNRULED
    archived: bool = False  # its team is, or is gone from the config file

    def state(self, now_s: float) -> str:
        """``active``, ``expired``, ``revoked`` or ``archived``: only the first may call."""
        if self.revoked_s is not None:
            return "revoked"
        if self.archived:
            return "archived"
        return "expired" if self.expires_s is not None and self.expires_s <= now_s else "active"


class TeamInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One team with what is set for it."""

    team: str
    settings: Team
    projects: tuple[str, ...]
    archived: bool
    source: str  # config | ledger


class OrganisationInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One organisation that something is set for, or that a team names."""

    organisation: str
    settings: Organisation
    teams: tuple[str, ...]
    source: str | None  # config | ledger; None: only named


class Directory(msgspec.Struct, frozen=True):
    """Everyone who may call, now or later, and what is set for them."""

    callers: dict[str, Caller]  # by a key's hash
    teams: dict[str, Team]
    organisations: dict[str, Organisation]


def configured(settings: Settings) -> Directory:
    """What the config file alone says."""
    return Directory(callers_in(settings), dict(settings.teams), dict(settings.organisations))


class TeamStore:
    """Reads and changes teams and keys. Calls block; use a thread from the event loop."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._config = settings.teams
        self._organisations = settings.organisations

    # -- teams -------------------------------------------------------------------------------------

    def create_team(self, team: str, settings: Team, actor: str) -> int:
        """Add a team, or bring an archived one back; ``settings`` as in the config file, without
        keys. Gives how many keys of before are good again. Raises TeamsError."""
        _require_name(team, "a team's")
        self._check(team, settings)
        with self._database.write() as connection:
            if team in self._config:
                raise TeamsError(f"The team {team!r} is in the config file. Change it there.")
            known = self._row(connection, teams, teams.c.team == team)
            if known is not None and known["archived_s"] is None:
                raise TeamsError(f"There is a team {team!r} already.")
            values = {
                "team": team,
                "organisation": settings.organisation or "",
                "time_zone": settings.timezone,
                "settings": msgspec.json.encode(settings).decode(),
                "created_s": time.time(),
                "archived_s": None,
            }
            if known is None:
                connection.execute(teams.insert().values(values))
            else:
                connection.execute(update(teams).where(teams.c.team == team).values(values))
            c, now_s = api_keys.c, time.time()
            good = c.revoked_s.is_(None) & (c.expires_s.is_(None) | (c.expires_s > now_s))
            again = select(func.count()).select_from(api_keys).where(c.team == team, good)
            count = int(connection.scalar(again) or 0)
            detail = {**_told(settings), **({"keys_good_again": count} if count else {})}
            note(connection, actor, "team.create", team, detail)
        return count

    def change_team(self, team: str, settings: Team, actor: str) -> None:
        """Set a team's settings anew. Raises TeamsError."""
        self._check(team, settings)
        with self._database.write() as connection:
            self._require_team(connection, team, own=True)
            connection.execute(
                update(teams)
                .where(teams.c.team == team)
                .values(
                    organisation=settings.organisation or "",
                    time_zone=settings.timezone,
                    settings=msgspec.json.encode(settings).decode(),
                )
            )
            note(connection, actor, "team.change", team, _told(settings))

    def archive_team(self, team: str, actor: str) -> None:
        """Refuse all keys of a team from now on; its books stay. Raises TeamsError."""
        with self._database.write() as connection:
            self._require_team(connection, team, own=True)
            connection.execute(
                update(teams).where(teams.c.team == team).values(archived_s=time.time())
            )
            note(connection, actor, "team.archive", team)

    def create_project(self, team: str, project: str, actor: str) -> None:
        """Add a project to a team. Raises TeamsError."""
        _require_name(project, "a project's")
        with self._database.write() as connection:
            self._require_team(connection, team)
            where = (projects.c.team == team) & (projects.c.project == project)
            if self._row(connection, projects, where) is not None:
                raise TeamsError(f"The team {team!r} has a project {project!r} already.")
            connection.execute(
                projects.insert().values(team=team, project=project, created_s=time.time())
            )
            note(connection, actor, "project.create", f"{team}/{project}")

    def list_teams(self) -> list[TeamInfo]:
        """Every team, of config and ledger, by name."""
        with self._database.read() as connection:
            rows = connection.execute(select(teams)).mappings().all()
            under: dict[str, list[str]] = {}
            for team, project in connection.execute(select(projects.c.team, projects.c.project)):
                under.setdefault(team, []).append(project)
        found = {
            row["team"]: TeamInfo(
                team=row["team"],
                settings=_settings_of(row["settings"]),
                projects=tuple(sorted(under.get(row["team"], ()))),
                archived=row["archived_s"] is not None,
                source="ledger",
            )
            for row in rows
        }
        for team, settings in self._config.items():
            bare = msgspec.structs.replace(settings, keys=[])
            listed = tuple(sorted(under.get(team, ())))
            found[team] = TeamInfo(
                team=team, settings=bare, projects=listed, archived=False, source="config"
            )
        return [found[team] for team in sorted(found)]

    # -- organisations -----------------------------------------------------------------------------

    def set_organisation(self, name: str, settings: Organisation, actor: str) -> None:
        """What the teams of an organisation share, from now on. Raises TeamsError."""
        _require_name(name, "an organisation's")
        self._refuse_configured(name)
        if mistakes := mistakes_of_organisation(name, settings, self._settings):
            raise TeamsError(" ".join(mistakes))
        told = {"settings": msgspec.json.encode(settings).decode()}
        this = organisations.c.organisation == name
        with self._database.write() as connection:
            if connection.execute(update(organisations).where(this).values(told)).rowcount == 0:
                made = {"organisation": name, "created_s": time.time(), **told}
                connection.execute(organisations.insert().values(made))
            note(connection, actor, "organisation.set", name, _told(settings))

    def remove_organisation(self, name: str, actor: str) -> None:
        """Set nothing for an organisation any more; its teams stay. Raises TeamsError."""
        self._refuse_configured(name)
        with self._database.write() as connection:
            this = organisations.c.organisation == name
            if connection.execute(organisations.delete().where(this)).rowcount == 0:
                raise TeamsError(f"Nothing is set for an organisation {name!r}.")
            note(connection, actor, "organisation.remove", name)

    def list_organisations(self) -> list[OrganisationInfo]:
        """Every organisation, of config, ledger and teams that are not archived, by name."""
        found = self.directory()
        named: dict[str, list[str]] = {name: [] for name in found.organisations}
        for team, settings in found.teams.items():
            if settings.organisation is not None:
                named.setdefault(settings.organisation, []).append(team)
        return [
            OrganisationInfo(
                organisation=name,
                settings=found.organisations.get(name, Organisation()),
                teams=tuple(sorted(under)),
                source="config"
                if name in self._organisations
                else "ledger"
                if name in found.organisations
                else None,
            )
            for name, under in sorted(named.items())
        ]

    # -- keys --------------------------------------------------------------------------------------

    def create_key(
        self,
        team: str,
        *,
        role: str = "member",
        project: str | None = None,
        name: str = "",
        expires_s: float | None = None,
        rules: KeyRules = UNRULED,
        actor: str,
    ) -> NewKey:
        """Make a key. The result is the only place where it can be read. Raises TeamsError."""
        self._check_key("", rules)
        with self._database.write() as connection:
            made = self._make_key(connection, team, role, project, name, expires_s, rules)
            given = {"project": project, "name": name, "expires_s": expires_s}
            told = {k: value for k, value in given.items() if value}
            detail = {"team": team, "role": role, **told, **_told(rules)}
            note(connection, actor, "key.create", made.key_id, detail)
        return made

    def change_key(self, key_id: str, rules: KeyRules, actor: str) -> None:
        """Set a key's limits and budgets anew, those that are not named to none.

        Raises TeamsError.
        """
        self._check_key(key_id, rules)
        with self._database.write() as connection:
            key = self._own_key(connection, key_id, "Change")
            if key["revoked_s"] is not None:
                raise TeamsError(f"The key {key_id} is revoked. Create a new one.")
            connection.execute(
                update(api_keys)
                .where(api_keys.c.key_id == key_id)
                .values(settings=msgspec.json.encode(rules).decode())
            )
            note(connection, actor, "key.change", key_id, _told(rules))

    def rotate_key(self, key_id: str, *, overlap_s: float, actor: str) -> NewKey:
        """A new key with the old one's rights; the old one is good for ``overlap_s`` more.

        Raises TeamsError.
        """
        now_s = time.time()
        with self._database.write() as connection:
            old = self._own_key(connection, key_id, "Rotate")
            if old["revoked_s"] is not None:
                raise TeamsError(f"The key {key_id} is revoked. Create a new one.")
            if old["expires_s"] is not None and old["expires_s"] <= now_s:
                raise TeamsError(f"The key {key_id} has expired. Create a new one.")
            if old["replaced_by"] is not None:  # its successor would end with the overlap
                raise TeamsError(
                    f"The key {key_id} was replaced by {old['replaced_by']}. Rotate that one."
                )
            made = self._make_key(
                connection,
                old["team"],
                old["role"],
                old["project"],
                old["name"],
                old["expires_s"],
                _rules_of(old["settings"]),
            )
            ends_s = now_s + max(0.0, overlap_s)
            if old["expires_s"] is not None:
                ends_s = min(ends_s, old["expires_s"])
            connection.execute(
                update(api_keys)
                .where(api_keys.c.key_id == old["key_id"])
                .values(expires_s=ends_s, replaced_by=made.key_id)
            )
            detail = {"new": made.key_id, "overlap_s": overlap_s}
            note(connection, actor, "key.rotate", old["key_id"], detail)
        return made

    def revoke_key(self, key_id: str, actor: str) -> None:
        """Refuse a key from now on, also one of the config file. Raises TeamsError."""
        with self._database.write() as connection:
            configured = self._configured().get(key_id)
            known = self._row(connection, api_keys, api_keys.c.key_id == key_id)
            if known is None and configured is None:
                raise TeamsError(f"There is no key {key_id}. `joulegate keys list` shows them.")
            now_s = time.time()
            if known is None and configured is not None:
                hashed, caller = configured
                connection.execute(
                    api_keys.insert().values(
                        key_id=key_id,
                        key_hash=hashed,
                        team=caller.team,
                        project=caller.project,
                        role=caller.role,
                        name="from the config file",
                        created_s=now_s,
                        revoked_s=now_s,
                    )
                )
            elif known is not None and known["revoked_s"] is None:
                connection.execute(
                    update(api_keys).where(api_keys.c.key_id == key_id).values(revoked_s=now_s)
                )
            note(connection, actor, "key.revoke", key_id)

    def list_keys(self, team: str | None = None) -> list[KeyInfo]:
        """Every key, of config and ledger, the newest last."""
        with self._database.read() as connection:
            rows = connection.execute(select(api_keys).order_by(api_keys.c.created_s)).mappings()
            kept = {row["key_id"]: dict(row) for row in rows}
            current = select(teams.c.team).where(teams.c.archived_s.is_(None))
            serving = {*self._config, *connection.scalars(current)}
        found = []
        ruled = self._configured_rules()
        for key_id, (_, caller) in self._configured().items():
            revoked = kept.pop(key_id, None)
            found.append(
                KeyInfo(
                    key_id=key_id,
                    team=caller.team,
                    role=caller.role,
                    project=caller.project,
                    name="",
                    created_s=None,
                    expires_s=caller.expires_s,
                    revoked_s=revoked["revoked_s"] if revoked else None,
                    replaced_by=None,
                    source="config",
                    rules=ruled[key_id],
                )
            )
        names = {f.name for f in msgspec.structs.fields(KeyInfo)} - {"source", "archived", "rules"}
        found += [
            KeyInfo(
                source="ledger",
                rules=_rules_of(row["settings"]),
                archived=row["team"] not in serving,
                **{name: row[name] for name in names},
            )
            for row in kept.values()
        ]
        return [key for key in found if team is None or key.team == team]

    def callers(self) -> dict[str, Caller]:
        """Every key that may call now or later, by hash: what a KeyRing holds."""
        return self.directory().callers

    def directory(self) -> Directory:
        """Every key that may call now or later, its team and its organisation."""
        found = dict(self._configured().values())
        with self._database.read() as connection:
            rows = connection.execute(select(api_keys)).mappings().all()
            current = select(teams.c.team, teams.c.settings).where(teams.c.archived_s.is_(None))
            known = {team: _settings_of(text) for team, text in connection.execute(current)}
            columns = (organisations.c.organisation, organisations.c.settings)
            shared = {
                name: msgspec.json.decode(text, type=Organisation)
                for name, text in connection.execute(select(*columns))
            }
        known |= self._config
        replaced = {r["replaced_by"]: r["key_id"] for r in rows if r["replaced_by"] is not None}
        for row in rows:
            settings = known.get(row["team"])
            if row["revoked_s"] is not None or settings is None:
                found.pop(row["key_hash"], None)
                continue
            found[row["key_hash"]] = caller_of(
                row["team"],
                settings,
                key_id=row["key_id"],
                role=row["role"],
                project=row["project"],
                expires_s=row["expires_s"],
                rules=_rules_of(row["settings"]),
                earlier=_earlier(row["key_id"], replaced),
            )
        return Directory(found, known, shared | self._organisations)

    # -- changes -----------------------------------------------------------------------------------

    def number(self) -> int:
        """Raised by every change; cheap to ask."""
        with self._database.ask() as connection:
            return audit_log.number(connection)

    def audit(self, limit: int = 100) -> list[AuditEntry]:
        """The latest admin actions, newest first."""
        with self._database.ask() as connection:
            return audit_log.latest(connection, limit)

    # -- parts -------------------------------------------------------------------------------------

    def _check(self, team: str, settings: Team) -> None:
        if settings.keys:
            raise TeamsError("Keys are made with `joulegate keys create`, not with the team.")
        if mistakes := mistakes_of_team(team, settings, self._settings):
            raise TeamsError(" ".join(mistakes))

    def _check_key(self, key_id: str, rules: KeyRules) -> None:
        if mistakes := mistakes_of_key(key_id, rules, self._settings):
            raise TeamsError(" ".join(mistakes))

    def _refuse_configured(self, organisation: str) -> None:
        if organisation in self._organisations:
            raise TeamsError(
                f"The organisation {organisation!r} is in the config file. Change it there."
            )

    def _configured_rules(self) -> dict[str, KeyRules]:
        found: dict[str, KeyRules] = {}
        for team in self._config.values():
            for entry in team.keys:
                key = entry if isinstance(entry, KeySettings) else KeySettings(key=entry)
                found[hash_of(key)[:12]] = key.rules
        return found

    def _configured(self) -> dict[str, tuple[str, Caller]]:
        from_config: dict[str, tuple[str, Caller]] = {}
        for name, team in self._config.items():
            for hashed, caller in callers_of_team(name, team).items():
                from_config[caller.key_id or hashed] = (hashed, caller)
        return from_config

    def _make_key(
        self,
        connection: Connection,
        team: str,
        role: str,
        project: str | None,
        name: str,
        expires_s: float | None,
        rules: KeyRules,
    ) -> NewKey:
        if role not in ROLES:
            raise TeamsError(f"{role!r} is not a role. Take one of {', '.join(ROLES)}.")
        self._require_team(connection, team)
        if name:
            _require_name(name, "a key's")
        if project is not None:
            _require_name(project, "a project's")
            where = (projects.c.team == team) & (projects.c.project == project)
            if self._row(connection, projects, where) is None:
                connection.execute(
                    projects.insert().values(team=team, project=project, created_s=time.time())
                )
        key = KEY_PREFIX + secrets.token_urlsafe(32)
        hashed = digest(key)
        connection.execute(
            api_keys.insert().values(
                key_id=hashed[:12],
                key_hash=hashed,
                team=team,
                project=project,
                role=role,
                name=name,
                settings=msgspec.json.encode(rules).decode(),
                created_s=time.time(),
                expires_s=expires_s,
            )
        )
        return NewKey(key_id=hashed[:12], key=key, team=team, role=role, expires_s=expires_s)

    def _require_team(self, connection: Connection, team: str, *, own: bool = False) -> None:
        if team in self._config:
            if own:
                raise TeamsError(f"The team {team!r} is in the config file. Change it there.")
            return
        row = self._row(connection, teams, teams.c.team == team)
        if row is None or row["archived_s"] is not None:
            raise TeamsError(
                f"There is no team {team!r}. Create it with: joulegate teams create {quote(team)}"
            )

    def _own_key(self, connection: Connection, key_id: str, what: str) -> Mapping[str, Any]:
        row = self._row(connection, api_keys, api_keys.c.key_id == key_id)
        if row is not None:
            return row
        if key_id in self._configured():
            raise TeamsError(f"The key {key_id} is in the config file. {what} it there.")
        raise TeamsError(f"There is no key {key_id}. `joulegate keys list` shows them.")

    @staticmethod
    def _row(connection: Connection, table: Any, where: Any) -> Mapping[str, Any] | None:
        row = connection.execute(select(table).where(where)).mappings().first()
        return None if row is None else dict(row)


def _require_name(name: str, whose: str) -> None:
    # They stand in headers, logs and tables: no line ends, nothing that turns text round, no twin
    # that looks the same. In links, "." and ".." mean other pages to every browser.
    plain = name.isprintable() and name == name.strip() and name not in ("", ".", "..")
    if not plain or len(name) > MOST_LETTERS:
        raise TeamsError(f"{name[:MOST_LETTERS]!r} cannot be {whose} name.")


def _settings_of(text: str) -> Team:
    return msgspec.json.decode(text, type=Team)


def _rules_of(text: str) -> KeyRules:
    return msgspec.json.decode(text, type=KeyRules)


def _earlier(key_id: str, replaced: Mapping[str, str]) -> tuple[str, ...]:
    """The keys before that one, the first one first; ``replaced`` names the one before each."""
    found: list[str] = []
    while (before := replaced.get(key_id)) is not None and before not in found:
        found.append(before)
        key_id = before
    return tuple(reversed(found))


def _told(settings: msgspec.Struct) -> dict[str, Any]:
    """What is set, for the audit log: only what differs from nothing."""
    plain: dict[str, Any] = msgspec.to_builtins(settings)
    unset: dict[str, Any] = msgspec.to_builtins(type(settings)())
    return {name: value for name, value in plain.items() if value != unset[name]}
