"""Responses that a backend keeps, read, cancelled and deleted there: how clients get what they
asked for with ``background``, and take away what they had stored.

Each request goes to the backend that gave the response, for the team that it was given to.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import aiohttp
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from proxy import errors, upstream
from proxy.auth import KeyRing
from proxy.backends import Engine
from proxy.failed_keys import address_of
from proxy.flight import new_request_id
from proxy.kept_responses import KeptResponses
from proxy.routing import Router
from proxy.sse import StreamWatcher
from proxy.upstream import Upstream


class ResponseRoutes:
    """The routes with what they need; `router` has them all."""

    def __init__(
        self, *, keys: KeyRing, kept: KeptResponses, routing: Router, client: Upstream
    ) -> None:
        self.keys = keys
        self.kept = kept
        self.routing = routing
        self.client = client
        self.router = APIRouter()
        add = self.router.add_api_route
        add("/v1/responses/{response_id}", self.response, methods=["GET"])
        add("/v1/responses/{response_id}", self.response, methods=["DELETE"])
        add("/v1/responses/{response_id}/cancel", self.cancel, methods=["POST"])
        add("/v1/responses/{response_id}/input_items", self.input_items, methods=["GET"])

    async def response(self, request: Request, response_id: str) -> Response:
        """A response as it stands, also as a stream; or its deletion."""
        return await self._passed_on(request, response_id)

    async def cancel(self, request: Request, response_id: str) -> Response:
        """Let the backend stop working on a response."""
        return await self._passed_on(request, response_id, "/cancel")

    async def input_items(self, request: Request, response_id: str) -> Response:
        """What a response was made from."""
        return await self._passed_on(request, response_id, "/input_items")

    async def _passed_on(self, request: Request, response_id: str, part: str = "") -> Response:
        """What the backend that gave a response says now. Raises ApiError 401, 404, 502 to 504."""
        raw, now_s = request.scope["headers"], time.time()
        caller = self.keys.caller(raw, now_s, address_of(request.scope))
        name = self.kept.holder(caller.team, response_id.encode())
        engine = self.routing.pool.by_name.get(name or "")
        if engine is None:
            raise errors.not_found(
                f"The response {response_id!r} is not known here: those are that your team was "
                "given through this replica since it started."
            )
        request_id = new_request_id(now_s)
        query = f"?{request.url.query}" if request.url.query else ""
        try:
            answer = await self.client.ask(
                engine,
                request.method,
                f"/responses/{response_id}{part}{query}",
                upstream.request_headers(dict(raw), engine, request_id),
                await request.body(),
            )
            odd = upstream.no_answer(engine, answer.status)
            if odd is not None:
                answer.close()
                raise odd
            events = answer.content_type == "text/event-stream"
            body = b"" if events else await answer.read()
        except (aiohttp.ClientError, OSError) as error:
            raise upstream.as_error(engine, error) from error
        headers = {
            **{k.decode(): v.decode("latin-1") for k, v in upstream.response_headers(answer)},
            "x-request-id": request_id,
            "x-joulegate-backend": engine.name,
        }
        if events:
            return StreamingResponse(_events(engine, answer), answer.status, headers)
        return Response(body, answer.status, headers)


async def _events(engine: Engine, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """A stream as it comes, and an event that says so where it breaks off; its connection ends with
    it, or when the client leaves."""
    watcher = StreamWatcher()
    try:
        while piece := await answer.content.readany():
            yield watcher.feed(piece)
    except (aiohttp.ClientError, OSError):
        if watcher.complete:
            return  # nothing is missing
        failure = errors.upstream_failed(
            f"The backend {engine.name} broke off before the answer was complete."
        )
        yield b"\n\n" + failure.event("responses", watcher.typed)
    finally:
        answer.close()
