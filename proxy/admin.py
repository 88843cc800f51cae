"""The admin API over HTTP: organisations, teams, keys and the audit log, the CLI's own state.

Administrators may do everything; the lead of a team may see and change its keys. Keys that the
config file gives are shown and can be revoked; the file itself is never written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Meta
from sqlalchemy.exc import SQLAlchemyError

from meters.unreadable import UNREADABLE
from proxy.auth import Caller, KeyRing
from proxy.errors import ApiError, forbidden, invalid_body, not_found
from proxy.failed_keys import address_of
from proxy.settings import Budget, KeyRules, LimitSettings, Organisation, Team
from proxy.teams import KeyInfo, TeamsError, TeamStore

T = TypeVar("T")
DAY_S = 86_400.0
MOST_DAYS = 36_525  # a century: later times cannot be shown everywhere
Days = Annotated[float, Meta(gt=0, le=MOST_DAYS)]


class NewTeam(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /admin/teams``."""

    team: str
    settings: Team = Team()


class NewProject(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /admin/teams/{team}/projects``."""

    project: str


class NewKeyOf(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /admin/keys``."""

    team: str
    role: str = "member"
    project: str | None = None
    name: str = ""
    days: Days | None = None  # until it expires; None: never
    limits: LimitSettings = LimitSettings()  # as in the config file, like its budgets
    budgets: list[Budget] = []


class Rotation(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /admin/keys/{id}/rotate``."""

    overlap_s: Annotated[float, Meta(ge=0, le=MOST_DAYS * DAY_S)] = 3600.0  # the old key stays good


class Admin:
    """The routes under /admin. ``store`` gives the state's store, None before there is one;
    ``changed`` is awaited after a change, before it is answered: here it holds from then on."""

    def __init__(
        self,
        keys: KeyRing,
        store: Callable[[], TeamStore | None],
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        self.keys = keys
        self.store = store
        self.changed = changed
        self.router = APIRouter(prefix="/admin", include_in_schema=False)
        add = self.router.add_api_route
        add("/teams", self.teams, methods=["GET"])
        add("/teams", self.create_team, methods=["POST"])
        add("/teams/{team:name}", self.change_team, methods=["PUT"])
        add("/teams/{team:name}", self.archive_team, methods=["DELETE"])
        add("/teams/{team:name}/projects", self.create_project, methods=["POST"])
        add("/organisations", self.organisations, methods=["GET"])
        add("/organisations/{organisation:name}", self.set_organisation, methods=["PUT"])
        add("/organisations/{organisation:name}", self.remove_organisation, methods=["DELETE"])
        add("/keys", self.list_keys, methods=["GET"])
        add("/keys", self.create_key, methods=["POST"])
        add("/keys/{key_id}/rotate", self.rotate_key, methods=["POST"])
        add("/keys/{key_id}", self.change_key, methods=["PUT"])
        add("/keys/{key_id}", self.revoke_key, methods=["DELETE"])
        add("/audit", self.audit, methods=["GET"])

    # -- routes ----------------------------------------------------------------------------------

    async def teams(self, request: Request) -> Response:
        """Every team with its settings; a lead sees its own."""
        caller = self._caller(request)
        found = await self._ask(lambda store: store.list_teams())
        return _json({"object": "list", "data": [t for t in found if _sees(caller, t.team)]})

    async def create_team(self, request: Request) -> Response:
        """A team that is not in the config file."""
        caller = self._caller(request, role="admin")
        given = await _body(request, NewTeam)
        actor = _actor(caller)
        again = await self._change(
            lambda store: store.create_team(given.team, given.settings, actor)
        )
        return _json({"object": "team", "team": given.team, "keys_good_again": again}, 201)

    async def change_team(self, request: Request, team: str) -> Response:
        """Set a team's settings anew; the body is as in the config file, without keys."""
        actor = _actor(self._caller(request, role="admin"))
        given = await _body(request, Team)
        await self._change(lambda store: store.change_team(team, given, actor))
        return _json({"object": "team", "team": team})

    async def archive_team(self, request: Request, team: str) -> Response:
        """Refuse a team's keys from now on; its books stay."""
        actor = _actor(self._caller(request, role="admin"))
        await self._change(lambda store: store.archive_team(team, actor))
        return _json({"object": "team", "team": team, "state": "archived"})

    async def create_project(self, request: Request, team: str) -> Response:
        """A project of a team; a lead may add one to its own."""
        caller = self._caller(request)
        self._may_change(caller, team, "member")
        given = await _body(request, NewProject)
        actor = _actor(caller)
        await self._change(lambda store: store.create_project(team, given.project, actor))
        return _json({"object": "project", "team": team, "project": given.project}, 201)

    async def organisations(self, request: Request) -> Response:
        """Every organisation, what is set for it, and its teams."""
        self._caller(request, role="admin")
        found = await self._ask(lambda store: store.list_organisations())
        return _json({"object": "list", "data": found})

    async def set_organisation(self, request: Request, organisation: str) -> Response:
        """Set an organisation's budgets anew; the body is as in the config file."""
        actor = _actor(self._caller(request, role="admin"))
        given = await _body(request, Organisation)
        await self._change(lambda store: store.set_organisation(organisation, given, actor))
        return _json({"object": "organisation", "organisation": organisation})

    async def remove_organisation(self, request: Request, organisation: str) -> Response:
        """Set nothing for an organisation any more; its teams stay."""
        actor = _actor(self._caller(request, role="admin"))
        await self._change(lambda store: store.remove_organisation(organisation, actor))
        told = {"object": "organisation", "organisation": organisation, "state": "removed"}
        return _json(told)

    async def list_keys(self, request: Request) -> Response:
        """Keys, without the keys themselves."""
        caller = self._caller(request)
        team = request.query_params.get("team")
        now_s = time.time()
        found = await self._ask(lambda store: store.list_keys(team))
        data = [
            {**msgspec.to_builtins(key), "state": key.state(now_s)}
            for key in found
            if _sees(caller, key.team)
        ]
        return _json({"object": "list", "data": data})

    async def create_key(self, request: Request) -> Response:
        """A new key: it is in this answer, and nowhere else."""
        caller = self._caller(request)
        given = await _body(request, NewKeyOf)
        self._may_change(caller, given.team, given.role)
        expires_s = None if given.days is None else time.time() + given.days * DAY_S
        actor = _actor(caller)
        made = await self._change(
            lambda store: store.create_key(
                given.team,
                role=given.role,
                project=given.project,
                name=given.name,
                expires_s=expires_s,
                rules=KeyRules(limits=given.limits, budgets=given.budgets),
                actor=actor,
            )
        )
        return _json({"object": "key", **msgspec.to_builtins(made)}, 201)

    async def change_key(self, request: Request, key_id: str) -> Response:
        """Set a key's limits and budgets anew, on every replica within a second."""
        caller = self._caller(request)
        given = await _body(request, KeyRules)
        key = await self._key(caller, key_id)
        self._may_change(caller, key.team, key.role)
        actor = _actor(caller)
        await self._change(lambda store: store.change_key(key_id, given, actor))
        return _json({"object": "key", "key_id": key_id})

    async def rotate_key(self, request: Request, key_id: str) -> Response:
        """A successor; the old key stays good for a while."""
        caller = self._caller(request)
        given = await _body(request, Rotation)
        key = await self._key(caller, key_id)
        self._may_change(caller, key.team, key.role)
        actor = _actor(caller)
        made = await self._change(
            lambda store: store.rotate_key(key_id, overlap_s=given.overlap_s, actor=actor)
        )
        return _json({"object": "key", **msgspec.to_builtins(made)}, 201)

    async def revoke_key(self, request: Request, key_id: str) -> Response:
        """No longer good, on every replica within a second."""
        caller = self._caller(request)
        key = await self._key(caller, key_id)
        self._may_change(caller, key.team, key.role)
        actor = _actor(caller)
        await self._change(lambda store: store.revoke_key(key_id, actor))
        return _json({"object": "key", "key_id": key_id, "state": "revoked"})

    async def audit(self, request: Request) -> Response:
        """The latest admin actions, newest first."""
        self._caller(request, role="admin")
        found = await self._ask(lambda store: store.audit(200))
        return _json({"object": "list", "data": [msgspec.to_builtins(e) for e in found]})

    # -- parts -----------------------------------------------------------------------------------

    def _caller(self, request: Request, role: str = "lead") -> Caller:
        caller = self.keys.caller(request.scope["headers"], time.time(), address_of(request.scope))
        if caller.role != "admin" and (role == "admin" or caller.role != "lead"):
            raise forbidden(f"This needs the key of {'an' if role == 'admin' else 'a'} {role}.")
        return caller

    def _may_change(self, caller: Caller, team: str, role: str) -> None:
        if caller.role != "admin" and (caller.team != team or role == "admin"):
            raise forbidden("The lead of a team can change its own keys, and make no admin's.")

    async def _key(self, caller: Caller, key_id: str) -> KeyInfo:
        for key in await self._ask(lambda store: store.list_keys()):
            if key.key_id == key_id and _sees(caller, key.team):
                return key
        raise not_found(f"There is no key {key_id!r} that you may see.")

    async def _change(self, change: Callable[[TeamStore], T]) -> T:
        made = await self._ask(change)
        await self.changed()
        return made

    async def _ask(self, question: Callable[[TeamStore], T]) -> T:
        store = self.store()
        if store is None:
            raise _away()
        try:
            return await asyncio.to_thread(question, store)
        except TeamsError as error:
            raise invalid_body(str(error), code="invalid_value") from None
        except SQLAlchemyError:
            raise _away() from None


def _sees(caller: Caller, team: str) -> bool:
    return caller.role == "admin" or caller.team == team


def _actor(caller: Caller) -> str:
    return f"key {caller.key_id}" if caller.key_id else "loopback"


async def _body(request: Request, kind: type[T]) -> T:
    raw = await request.body()
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise invalid_body(str(error), code="invalid_type") from None
    except UNREADABLE as error:
        raise invalid_body(f"The body should be JSON: {error}.") from None


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _away() -> ApiError:
    return ApiError(
        503,
        "ledger_unavailable",
        "Teams and keys are kept in the ledger, which does not answer. Try again.",
        kind="server_error",
        retry_after_s=2.0,
    )
