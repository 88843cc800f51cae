"""Signing in to the dashboard with a key, and what a signed-in person may see.

The cookie holds the key's public prefix and an end time, signed; it stops working the moment the
key is revoked or expires. Programs may send the key in a header instead.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from proxy.auth import Caller, KeyRing, key_in
from proxy.dashboard.links import ROOT
from proxy.dashboard.pages import Dashboard
from proxy.dashboard.viewers import TOKEN_S, Viewer
from proxy.errors import ApiError
from proxy.failed_keys import address_of

COOKIE = "joulegate"
MAX_FORM_BYTES = 4096


class NotSignedIn(Exception):
    """Nobody is signed in: the sign-in page is next."""


class SignIn:
    """Knows who looks at the dashboard."""

    def __init__(
        self, keys: KeyRing, secret: bytes, clock: Callable[[], float] = time.time
    ) -> None:
        self.keys = keys
        self.secret = secret
        self.clock = clock

    def viewer(self, request: Request) -> Viewer:
        """The dependency of every page. Raises NotSignedIn, or ApiError 401 for a wrong key."""
        now_s = self.clock()
        if self.keys.open or key_in(request.scope["headers"]) is not None:
            return viewer_of(
                self.keys.caller(request.scope["headers"], now_s, address_of(request.scope))
            )
        caller = self._of_cookie(request.cookies.get(COOKIE, ""), now_s)
        if caller is None:
            raise NotSignedIn
        return viewer_of(caller)

    def cookie(self, caller: Caller) -> str:
        """What a signed-in person's browser keeps."""
        text = f"{caller.key_id}.{int(self.clock() + TOKEN_S)}"
        return f"{text}.{self._signature(text)}"

    def _of_cookie(self, cookie: str, now_s: float) -> Caller | None:
        text, _, signature = cookie.rpartition(".")
        key_id, _, until = text.partition(".")
        if not until.isascii() or not until.isdecimal() or len(until) > 12 or int(until) < now_s:
            return None
        if not hmac.compare_digest(signature.encode(), self._signature(text).encode()):
            return None
        return self.keys.by_id(key_id, now_s)

    def _signature(self, text: str) -> str:
        return hmac.new(self.secret, text.encode(), hashlib.sha256).hexdigest()

    def router(self, dashboard: Dashboard) -> APIRouter:
        """The routes of signing in and out."""
        routes = APIRouter(prefix=ROOT, include_in_schema=False)

        @routes.get("/sign-in")
        def form(request: Request) -> Response:
            return page(dashboard, request)

        @routes.post("/sign-in")
        async def enter(request: Request) -> Response:
            if from_elsewhere(request):
                return page(dashboard, request, "Sign in from this page.", 403)
            body = await request.body()
            if len(body) > MAX_FORM_BYTES:
                return page(dashboard, request, "That is no key.", 413)
            given = parse_qs(body.decode("utf-8", "replace")).get("key", [""])[0]
            address = address_of(request.scope)
            try:
                caller = self.keys.lookup_from(address, given.strip().encode(), self.clock())
            except ApiError as error:
                return page(dashboard, request, error.message, error.status)
            if caller is None:
                return page(dashboard, request, "This key is not known, or no longer good.", 401)
            answer = RedirectResponse(root_of(request), 303)
            answer.set_cookie(
                COOKIE,
                self.cookie(caller),
                max_age=TOKEN_S,
                path=root_of(request),
                httponly=True,
                samesite="strict",
                secure=over_https(request),
            )
            return answer

        @routes.post("/sign-out")
        def leave(request: Request) -> Response:
            if from_elsewhere(request):
                return page(dashboard, request, "Sign out from a page of the dashboard.", 403)
            answer = RedirectResponse(f"{root_of(request)}/sign-in", 303)
            answer.delete_cookie(COOKIE, path=root_of(request))
            return answer

        return routes


def page(
    dashboard: Dashboard, request: Request, wrong: str | None = None, status: int = 200
) -> Response:
    """The sign-in page."""
    return dashboard.page("sign_in.html", status, wrong=wrong, root=root_of(request))


async def to_sign_in(request: Request, _: Exception) -> Response:
    """The way on for whoever is not signed in."""
    return RedirectResponse(f"{root_of(request)}/sign-in", 303)


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
