"""Signing in to the dashboard with a key, a local account or the organisation's provider.

With a key the cookie holds the key's public prefix and an end time, signed; it stops working the
moment the key is revoked or expires. With an account or the provider it holds a session
(sessions.py): one of an account ends with the account or its password, one of the provider after
``sign_in.hours``. Programs may send the key in a header instead.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.exc import SQLAlchemyError

from proxy import passwords
from proxy.auth import ANYONE, Caller, KeyRing, key_in
from proxy.dashboard.links import ROOT
from proxy.dashboard.pages import Dashboard
from proxy.dashboard.viewers import Viewer
from proxy.errors import ApiError, too_many_failed_keys
from proxy.failed_keys import FailedKeys, address_of
from proxy.oidc import Provider, ProviderRefused
from proxy.people import People, Person
from proxy.sessions import LONGEST, Attempt, Seals, Session, short_hash
from proxy.settings import SignInSettings

log = logging.getLogger("joulegate.sign_in")

COOKIE = "joulegate"
ATTEMPT = "joulegate-sign-in-"  # and the beginning of its state: tabs may sign in at once
ATTEMPT_S = 600
MOST_ATTEMPTS = 4  # of one browser
MAX_FORM_BYTES = 4096
LONGEST_PATH = 2048  # of a deep link that survives signing in
WRONG_PASSWORDS = 10  # a minute, for one account, wherever they come from


class NotSignedIn(Exception):
    """Nobody is signed in: the sign-in page is next."""


class SignIn:
    """Knows who looks at the dashboard. ``people`` gives the accounts' store, None before there
    is one; ``known`` are the accounts as last read from it."""

    def __init__(
        self,
        keys: KeyRing,
        secret: bytes,
        clock: Callable[[], float] = time.time,
        *,
        settings: SignInSettings | None = None,
        people: Callable[[], People | None] = lambda: None,
        time_zone: Callable[[str], str] = lambda team: "UTC",
    ) -> None:
        self.keys = keys
        self.seals = Seals(secret)
        self.clock = clock
        self.settings = settings = SignInSettings() if settings is None else settings
        self.people = people
        self.time_zone = time_zone
        self.known: Mapping[str, Person] = {}
        self.provider = Provider(settings.oidc, clock) if settings.oidc else None
        self.lasts_s = round(settings.hours * 3600)
        self.wrong = FailedKeys(WRONG_PASSWORDS)

    @property
    def open(self) -> bool:
        """Whether anyone may look: there is nothing to sign in with."""
        return self.keys.open and self.provider is None and not self.known

    def viewer(self, request: Request) -> Viewer:
        """The dependency of every page. Raises NotSignedIn, or ApiError 401 for a wrong key."""
        now_s = self.clock()
        headers = request.scope["headers"]
        if self.open or (key_in(headers) is not None and not self.keys.open):
            return viewer_of(self.keys.caller(headers, now_s, address_of(request.scope)))
        found = self._of_cookie(request.cookies.get(COOKIE, ""), now_s)
        if found is None and self.settings.guests:
            return viewer_of(ANYONE)
        if found is None:
            raise NotSignedIn
        return found

    def cookie(self, caller: Caller) -> str:
        """What the browser of somebody with a key keeps."""
        text = f"{caller.key_id}.{int(self.clock() + self.lasts_s)}"
        return f"{text}.{self.seals.sign(text)}"

    def _of_cookie(self, cookie: str, now_s: float) -> Viewer | None:
        session = self.seals.unpack(cookie, Session, now_s)
        if session is not None:
            return self._of_session(session)
        text, _, signature = cookie.rpartition(".")
        key_id, _, until = text.partition(".")
        if not until.isascii() or not until.isdecimal() or len(until) > 12 or int(until) < now_s:
            return None
        if not hmac.compare_digest(signature.encode(), self.seals.sign(text).encode()):
            return None
        caller = self.keys.by_id(key_id, now_s)
        return None if caller is None else viewer_of(caller)

    def _of_session(self, session: Session) -> Viewer | None:
        if session.kind == "account":
            person = self.known.get(session.name)
            if person is None or not hmac.compare_digest(person.stamp, session.stamp):
                return None
            return self._viewer(person.name, person.role, person.teams)
        granted = self.granted(session.values)
        return None if granted is None else self._viewer(session.name, *granted)

    def granted(self, values: tuple[str, ...]) -> tuple[str, tuple[str, ...]] | None:
        """The role and teams that hashes of the provider's values stand for; None: nothing.

        Where they give several teams different roles, the lesser holds for all.
        """
        oidc = self.settings.oidc
        found = [g for g in oidc.grants if short_hash(g.value) in values] if oidc else []
        if not found:
            return None
        teams = tuple(dict.fromkeys(g.team for g in found if g.team is not None))
        roles = {g.role for g in found}
        if "admin" in roles:
            return "admin", teams
        return ("member" if "member" in roles else "lead"), teams

    def _viewer(self, name: str, role: str, teams: tuple[str, ...]) -> Viewer:
        zone = self.time_zone(teams[0]) if teams else "UTC"
        return Viewer(name=name, role=role, teams=teams, time_zone=zone)

    # -- signing in --------------------------------------------------------------------------------

    async def _by_password(self, address: str, name: str, password: str) -> Person | None:
        """The account, if the password is its own. Raises ApiError 429 after too many others."""
        given = f"{name}\0{password}".encode("utf-8", "surrogatepass")
        for counts, where in ((self.keys.failed, address), (self.wrong, name)):
            wait_s = counts.wait_s(where, given)
            if wait_s is not None:
                raise too_many_failed_keys(wait_s)
        person = self.known.get(name)
        kept = None if person is None else person.password_hash
        if await asyncio.to_thread(passwords.matches, password, kept):
            return person
        self.keys.failed.note(address, given)
        self.wrong.note(name, given)
        return None

    def _enter(self, request: Request, session: Session, next_: str) -> Response:
        return self._with_cookie(request, self._sealed(session), next_)

    def _sealed(self, session: Session) -> str:
        return self.seals.pack(session, self.clock() + self.lasts_s)

    def _with_cookie(self, request: Request, cookie: str, next_: str) -> Response:
        answer = RedirectResponse(own_path(next_, root_of(request)), 303)
        answer.set_cookie(
            COOKIE,
            cookie,
            max_age=self.lasts_s,
            path=root_of(request),
            httponly=True,
            # Sent along when a link elsewhere leads here; forms are refused from elsewhere.
            samesite="lax",
            secure=self._secure(request),
        )
        return answer

    def _secure(self, request: Request) -> bool:
        return over_https(request) or (self.settings.public_url or "").startswith("https://")

    async def _note(self, name: str, how: str, role: str) -> None:
        people = self.people()
        if people is None:
            return
        try:
            await asyncio.to_thread(people.entered, name, how, role)
        except SQLAlchemyError as error:
            log.warning("%r signed in; the audit log cannot be written (%s)", name, type(error))

    def _callback(self, request: Request) -> str:
        base = self.settings.public_url or str(request.base_url)
        return f"{base.rstrip('/')}{ROOT}/sign-in/callback"

    def page(
        self,
        dashboard: Dashboard,
        request: Request,
        wrong: str | None = None,
        status: int = 200,
        next_: str = "",
    ) -> Response:
        """The sign-in page."""
        root = root_of(request)
        return dashboard.page(
            "sign_in.html",
            status,
            wrong=wrong,
            root=root,
            next=own_path(next_, root) if next_ else "",
            keys=not self.keys.open,
            accounts=bool(self.known),
            provider=self.settings.oidc.name if self.settings.oidc else None,
            hours=f"{self.settings.hours:g}",
        )

    def router(self, dashboard: Dashboard) -> APIRouter:
        """The routes of signing in and out."""
        routes = APIRouter(prefix=ROOT, include_in_schema=False)

        @routes.get("/sign-in")
        def form(request: Request) -> Response:
            return self.page(dashboard, request, next_=request.query_params.get("next", ""))

        @routes.post("/sign-in")
        async def enter(request: Request) -> Response:
            if from_elsewhere(request):
                return self.page(dashboard, request, "Sign in from this page.", 403)
            body = await request.body()
            if len(body) > MAX_FORM_BYTES:
                return self.page(dashboard, request, "That is too long.", 413)
            given = {k: v[0] for k, v in parse_qs(body.decode("utf-8", "replace")).items()}
            return await self._take(dashboard, request, given)

        @routes.get("/sign-in/provider")
        async def provider(request: Request) -> Response:
            return await self._begin(dashboard, request, request.query_params.get("next", ""))

        @routes.get("/sign-in/callback")
        async def callback(request: Request) -> Response:
            return await self._end(dashboard, request)

        @routes.post("/sign-out")
        def leave(request: Request) -> Response:
            if from_elsewhere(request):
                wrong = "Sign out from a page of the dashboard."
                return self.page(dashboard, request, wrong, 403)
            answer = RedirectResponse(f"{root_of(request)}/sign-in", 303)
            answer.delete_cookie(COOKIE, path=root_of(request))
            return answer

        return routes

    async def _take(
        self, dashboard: Dashboard, request: Request, given: Mapping[str, str]
    ) -> Response:
        """A key, or a name and a password, from the form."""
        next_, address = given.get("next", ""), address_of(request.scope)
        try:
            if "name" in given:
                name, password = given["name"].strip(), given.get("password", "")
                person = await self._by_password(address, name, password)
                if person is not None:
                    await self._note(person.name, "account", person.role)
                    session = Session(kind="account", name=person.name, stamp=person.stamp)
                    return self._enter(request, session, next_)
                wrong = "This name and password do not belong together."
            else:
                key = given.get("key", "").strip().encode()
                caller = self.keys.lookup_from(address, key, self.clock())
                if caller is not None:
                    return self._with_cookie(request, self.cookie(caller), next_)
                wrong = "This key is not known, or no longer good."
        except ApiError as error:
            return self.page(dashboard, request, error.message, error.status, next_)
        return self.page(dashboard, request, wrong, 401, next_)

    async def _begin(self, dashboard: Dashboard, request: Request, next_: str) -> Response:
        """Send the browser to the provider."""
        if self.provider is None:
            return self.page(dashboard, request, "No provider is configured.", 404, next_)
        try:
            where, attempt = await self.provider.begin(
                self._callback(request), own_path(next_, root_of(request))
            )
        except ProviderRefused as refused:
            return self.page(dashboard, request, str(refused), 502, next_)
        answer = RedirectResponse(where, 303)
        begun = [name for name in request.cookies if name.startswith(ATTEMPT)]
        for name in begun[: 1 - MOST_ATTEMPTS]:
            answer.delete_cookie(name, path=f"{root_of(request)}/sign-in")
        answer.set_cookie(
            _attempt_of(attempt.state),
            self.seals.pack(attempt, self.clock() + ATTEMPT_S),
            max_age=ATTEMPT_S,
            path=f"{root_of(request)}/sign-in",
            httponly=True,
            samesite="lax",  # the provider's page leads back here
            secure=self._secure(request),
        )
        return answer

    async def _end(self, dashboard: Dashboard, request: Request) -> Response:
        """Let in whom the provider sent back."""
        cookie = _attempt_of(request.query_params.get("state", ""))
        kept = request.cookies.get(cookie, "")
        attempt = self.seals.unpack(kept, Attempt, self.clock())
        if self.provider is None or attempt is None:
            wrong = "This sign-in was not begun in this browser, or took too long. Begin again."
            return self.page(dashboard, request, wrong, 400)
        try:
            found = await self.provider.end(
                dict(request.query_params), attempt, self._callback(request)
            )
        except ProviderRefused as refused:
            return self.page(dashboard, request, str(refused), 403, attempt.next)
        values = tuple(short_hash(value) for value in found.values)
        granted = self.granted(values)
        if granted is None:
            wrong = f"{found.name} may not look here: no group of theirs is granted anything."
            return self.page(dashboard, request, wrong, 403)
        session = Session(kind="oidc", name=found.name, values=values)
        if len(self._sealed(session)) > LONGEST:
            wrong = f"{found.name} is in more groups that grant something than a cookie holds."
            return self.page(dashboard, request, wrong, 403)
        await self._note(found.name, "provider", granted[0])
        answer = self._enter(request, session, attempt.next)
        answer.delete_cookie(cookie, path=f"{root_of(request)}/sign-in")
        return answer


def _attempt_of(state: str) -> str:
    """The name of the cookie that a browser keeps of the sign-in with that state."""
    return ATTEMPT + state[:12]


async def to_sign_in(request: Request, _: Exception) -> Response:
    """The way on for whoever is not signed in, and back to the page that was wanted."""
    where = f"{root_of(request)}/sign-in"
    path = request.scope["raw_path"].decode("latin-1")
    path += f"?{request.url.query}" if request.url.query else ""
    if request.method in ("GET", "HEAD") and own_path(path, "") == path:
        where += f"?next={quote(path, safe='')}"
    return RedirectResponse(where, 303)


def own_path(path: str, root: str) -> str:
    """That path if it is one of the dashboard's own pages, else the dashboard's first."""
    plain = path.isprintable() and path.isascii() and len(path) <= LONGEST_PATH
    inside = path == root or path.startswith((f"{root}/", f"{root}?"))
    if not plain or not inside or path.startswith("//") or "\\" in path or "/../" in path:
        return root
    return path


def from_elsewhere(request: Request) -> bool:
    """Whether another site's page made the browser send this: it could sign people in under a key
    of its own. Programs, which say nothing of where they come from, are not meant."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != request.headers.get("host", "")


def over_https(request: Request) -> bool:
    """Whether the browser's side of the connection is HTTPS, also where a balancer ends it."""
    return request.url.scheme == "https" or request.headers.get("origin", "")[:8] == "https://"


def root_of(request: Request) -> str:
    return str(request.scope.get("root_path", "")) + ROOT


def viewer_of(caller: Caller) -> Viewer:
    """What the holder of a key may see."""
    return Viewer(
        name=caller.key_id or "anyone",
        role=caller.role,
        teams=(caller.team,),
        time_zone=caller.timezone,
    )


def secret_of(settings: SignInSettings, folder: Path) -> bytes:
    """The configured secret, else the one in the state folder. Raises OSError, ValueError."""
    if settings.secret is not None:
        return settings.secret.encode()
    if settings.secret_file is None:
        return secret_in(folder)
    kept = Path(settings.secret_file).read_bytes().strip()
    if len(kept) < 32:
        raise ValueError(f"{settings.secret_file} (sign_in.secret_file) has fewer than 32 bytes.")
    return kept


def secret_in(folder: Path) -> bytes:
    """The secret that signs cookies, made once and shared by the processes of a machine."""
    path = folder / "cookie.secret"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        kept = path.read_bytes()
        if len(kept) >= 32:
            return kept
        raise OSError(f"{path} is damaged. Delete it and restart; people sign in anew.") from None
    made = os.urandom(32)
    with os.fdopen(descriptor, "wb") as file:
        file.write(made)
    return made
