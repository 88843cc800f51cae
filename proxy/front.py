"""The first thing every request meets: raw ASGI for the POSTs that clients care about, and the
way to FastAPI for everything else. Half the cost of a route on the request path."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from proxy.steps import Endpoint, Receive, Scope, Send, Steps, cors_headers

App = Callable[[Scope, Receive, Send], Awaitable[None]]
Message = MutableMapping[str, Any]

ENDPOINTS = {
    "/v1/chat/completions": Endpoint("chat.completions", "/chat/completions", chat=True),
    "/v1/completions": Endpoint("completions", "/completions"),
    "/v1/embeddings": Endpoint("embeddings", "/embeddings", streams=False),
    "/v1/responses": Endpoint("responses", "/responses"),
    "/v1/messages": Endpoint("messages", "/messages"),
    "/v1/rerank": Endpoint("rerank", "/rerank", streams=False),
    "/v1/moderations": Endpoint("moderations", "/moderations", streams=False),
    "/v1/images/generations": Endpoint("images", "/images/generations"),
    "/v1/audio/speech": Endpoint("audio.speech", "/audio/speech"),
}
# Paths that FastAPI serves under /v1 and that also work without it.
ALSO_WITHOUT_V1 = ("/models", "/usage/", "/route", "/feedback")

_ALLOWED_HEADERS = (
    b"authorization,content-type,x-api-key,api-key,cache-control,openai-organization,"
    b"openai-project,x-session-id,x-joulegate-policy,x-joulegate-min-quality,"
    b"x-joulegate-max-energy-j,x-joulegate-max-ttft-ms,x-joulegate-tags,*"
)


class Front:
    """The ASGI application that uvicorn serves."""

    def __init__(self, steps: Steps, app: App, cors_origins: list[str]) -> None:
        self.steps = steps
        self.app = app
        self.cors_origins = cors_origins
        self.cors = cors_headers(cors_origins)
        self.endpoints = dict(ENDPOINTS)
        self.endpoints |= {path.removeprefix("/v1"): e for path, e in ENDPOINTS.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        if method == "POST":
            endpoint = self.endpoints.get(path)
            if endpoint is None and path.endswith("/"):
                endpoint = self.endpoints.get(path.rstrip("/"))
            if endpoint is not None:
                await self.steps.serve(endpoint, scope, receive, send)
                return
        elif method == "OPTIONS" and self.cors_origins:
            await self._preflight(send)
            return
        if path.startswith(ALSO_WITHOUT_V1):
            scope["path"] = "/v1" + path
            scope["raw_path"] = b"/v1" + scope.get("raw_path", path.encode())
        head = method == "HEAD"
        if head:
            scope["method"] = "GET"
        await self.app(scope, receive, self._dressed(send, head))

    def _dressed(self, send: Send, head: bool) -> Send:
        """Adds the request id and CORS to FastAPI's answers; leaves bodies out for HEAD."""

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                if not any(name == b"x-request-id" for name, _ in headers):
                    headers.append((b"x-request-id", b"req_" + os.urandom(12).hex().encode()))
                message["headers"] = headers + self.cors
            elif head and message["type"] == "http.response.body":
                message["body"] = b""
            await send(message)

        return dressed

    async def _preflight(self, send: Send) -> None:
        headers = [
            *self.cors,
            (b"access-control-allow-methods", b"GET,POST,HEAD,OPTIONS"),
            (b"access-control-allow-headers", _ALLOWED_HEADERS),
            (b"access-control-max-age", b"86400"),
            (b"content-length", b"0"),
            (b"x-request-id", b"req_" + os.urandom(12).hex().encode()),
        ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
