"""The first thing every request meets: raw ASGI for the POSTs that clients care about, and the
way to FastAPI for everything else. Half the cost of a route on the request path."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import Response

from proxy import errors
from proxy.asgi import Receive, Scope, Send
from proxy.endpoints import Endpoint
from proxy.errors import ApiError
from proxy.paths import below, of_azure, routed
from proxy.steps import Steps
from proxy.web_pages import Pages

App = Callable[[Scope, Receive, Send], Awaitable[None]]
Message = MutableMapping[str, Any]
NOTHING: Mapping[str, str] = {}

ENDPOINTS = {
    "/v1/chat/completions": Endpoint("chat.completions", "/chat/completions", chat=True),
    "/v1/completions": Endpoint("completions", "/completions"),
    "/v1/embeddings": Endpoint("embeddings", "/embeddings", streams=False, answers=False),
    "/v1/responses": Endpoint("responses", "/responses"),
    "/v1/messages": Endpoint("messages", "/messages"),
    "/v1/rerank": Endpoint("rerank", "/rerank", streams=False, answers=False),
    "/v1/moderations": Endpoint(
        "moderations", "/moderations", streams=False, answers=False, model="omni-moderation-latest"
    ),
    "/v1/images/generations": Endpoint("images", "/images/generations", text=False),
    "/v1/images/edits": Endpoint("images.edits", "/images/edits", text=False),
    "/v1/images/variations": Endpoint("images.variations", "/images/variations", text=False),
    "/v1/audio/transcriptions": Endpoint(
        "audio.transcriptions", "/audio/transcriptions", text=False
    ),
    "/v1/audio/translations": Endpoint("audio.translations", "/audio/translations", text=False),
    "/v1/audio/speech": Endpoint("audio.speech", "/audio/speech", text=False),
}
# Any other POST goes to the backend that serves the model it names, and nothing is chosen.
OTHER = re.compile(r"/v1((?:/[a-z0-9_-]{1,64}){1,4})/?")
# Our own routes, and what changes an engine for everybody.
NOT_OTHER = frozenset({"/route", "/feedback", "/load_lora_adapter", "/unload_lora_adapter"})
OWN = frozenset({"models", "files", "batches"})  # and all that is below them
KEPT = "/responses/resp_"  # of a backend, and so is what is below them
# Paths that FastAPI serves under /v1 and that also work without it.
ALSO_WITHOUT_V1 = ("/models", "/usage/", "/route", "/feedback", "/files", "/batches", "/responses/")
UPLOADS = frozenset({"/v1/files", "/v1/files/", "/files", "/files/"})  # with a limit of their own

_ALLOWED_HEADERS = (
    b"authorization,content-type,x-api-key,api-key,cache-control,openai-organization,"
    b"openai-project,x-session-id,x-joulegate-policy,x-joulegate-min-quality,"
    b"x-joulegate-max-energy-j,x-joulegate-max-ttft-ms,x-joulegate-tags,"
    b"x-joulegate-task,x-joulegate-quality,x-joulegate-usage,*"
)
NO_OTHER_PAGES = (
    "Another site's page sent this, or it came by a name that is not this machine's. Without keys "
    "only programs and pages of this machine may call: add keys under 'teams', or name the page's "
    "origin in server.cors_origins."
)
_EXPOSED = (b"access-control-expose-headers", b"*")


class Front:
    """The ASGI application that uvicorn serves."""

    def __init__(self, steps: Steps, app: App, cors_origins: list[str]) -> None:
        self.steps = steps
        self.app = app
        self.cors_origins = cors_origins
        sign_in = steps.settings.sign_in  # read at start, like the origins
        self.guests = sign_in.guests
        public = urlsplit(sign_in.public_url or "")
        self.prefix = public.path.rstrip("/")
        origin = f"{public.scheme}://{public.netloc}" if public.netloc else None
        self.pages = Pages([*cors_origins, origin])
        self.endpoints = dict(ENDPOINTS)
        self.endpoints |= {path.removeprefix("/v1"): e for path, e in ENDPOINTS.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.prefix:
            scope = below(scope, self.prefix)
        if scope["path"].startswith("/openai/"):
            scope = of_azure(scope)
        method, path = scope["method"], scope["path"]
        cors = self._cors(scope) if self.cors_origins else ()
        if (self.steps.keys.open or self.guests) and self.pages.refuses(scope["headers"]):
            error = errors.forbidden(NO_OTHER_PAGES)
            await _refused(error, scope, receive, self._dressed(send, cors))
            return
        if method == "POST":
            endpoint = self.endpoints.get(path) or self._other(path)
            if endpoint is not None:
                if cors:
                    send = _with_headers(send, cors)
                await self.steps.serve(endpoint, scope, receive, send)
                return
        elif method == "OPTIONS" and self.cors_origins:
            await self._preflight(send, cors)
            return
        elif path in self.endpoints:
            error = errors.method_not_allowed(method)
            dressed = self._dressed(send, cors)
            await _refused(error, scope, receive, dressed, {"allow": "POST"})
            return
        if path.startswith(ALSO_WITHOUT_V1):
            scope = {**scope, "path": "/v1" + path, "raw_path": b"/v1" + scope["raw_path"]}
        if method == "HEAD":
            scope = {**scope, "method": "GET"}  # in the copy: uvicorn leaves the body out
        if path not in UPLOADS:
            receive = _at_most(receive, self.steps.reading.max_body_bytes)
        await self.app(routed(scope, self.prefix), receive, self._dressed(send, cors))

    def _other(self, path: str) -> Endpoint | None:
        """The endpoint at a path that is not in the table."""
        if path.endswith("/") and path.rstrip("/") in self.endpoints:
            return self.endpoints[path.rstrip("/")]
        found = OTHER.fullmatch(path)
        if found is None or found[1] in NOT_OTHER or found[1].split("/", 2)[1] in OWN:
            return None
        if found[1].startswith(KEPT):
            return None
        return Endpoint(found[1][1:].replace("/", "."), found[1], text=False, listed=False)

    def _cors(self, scope: Scope) -> tuple[tuple[bytes, bytes], ...]:
        """What a browser's page at this request's origin needs to see the answer."""
        origin = next((value for name, value in scope["headers"] if name == b"origin"), None)
        if origin is None:
            return ()
        if "*" in self.cors_origins:
            return ((b"access-control-allow-origin", b"*"), _EXPOSED)
        if origin.decode("latin-1") not in self.cors_origins:
            return ((b"vary", b"origin"),)
        return ((b"access-control-allow-origin", origin), _EXPOSED, (b"vary", b"origin"))

    def _dressed(self, send: Send, cors: Iterable[tuple[bytes, bytes]]) -> Send:
        """Adds the request id and CORS to FastAPI's answers."""

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                if not any(name == b"x-request-id" for name, _ in headers):
                    headers.append((b"x-request-id", b"req_" + os.urandom(12).hex().encode()))
                message["headers"] = [*headers, *cors]
            await send(message)

        return dressed

    async def _preflight(self, send: Send, cors: Iterable[tuple[bytes, bytes]]) -> None:
        headers = [
            *cors,
            (b"access-control-allow-methods", b"GET,POST,DELETE,HEAD,OPTIONS"),
            (b"access-control-allow-headers", _ALLOWED_HEADERS),
            (b"access-control-max-age", b"86400"),
            (b"content-length", b"0"),
            (b"x-request-id", b"req_" + os.urandom(12).hex().encode()),
        ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


async def _refused(
    error: ApiError, scope: Scope, receive: Receive, send: Send, more: Mapping[str, str] = NOTHING
) -> None:
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    await Response(error.body(), error.status, {**headers, **more})(scope, receive, send)


def _with_headers(send: Send, more: Iterable[tuple[bytes, bytes]]) -> Send:
    async def dressed(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *more]
        await send(message)

    return dressed


def _at_most(receive: Receive, limit_bytes: int) -> Receive:
    """Raises ApiError 413 once a body has had more bytes than that."""
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit_bytes:
            raise errors.body_too_large(limit_bytes)
        return message

    return counted
