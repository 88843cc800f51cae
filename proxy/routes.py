"""Everything that is not on the request path: models, receipts, decisions, health, metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from meters.intake import WindowIntake
from meters.receipts import Receipt
from meters.unreadable import UNREADABLE
from policies.types import NoBackendWithinLimits
from proxy import errors, explanation, features, receipts
from proxy.auth import Caller, KeyRing, key_in
from proxy.backends import Engine
from proxy.errors import ApiError
from proxy.failed_keys import address_of
from proxy.flight import Flight
from proxy.routing import Router
from proxy.savings import Validated
from proxy.steps import Steps
from proxy.wishes import wishes_in

log = logging.getLogger("joulegate.routes")


def answer(value: Any, status: int = 200) -> Response:
    """A JSON response."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def refused(error: ApiError) -> Response:
    """An ApiError as a response."""
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(error.body(), error.status, headers=headers)


class Routes:
    """The routes with what they need; `router` has them all."""

    def __init__(
        self,
        *,
        keys: KeyRing,
        steps: Steps,
        routing: Router,
        find_receipt: Callable[[str], Awaitable[Receipt | None]],
        page: Callable[[], Awaitable[bytes]],
        refresh: Callable[[], Awaitable[None]],
        ready: Callable[[], dict[str, str]],
        feedback: Callable[[Caller, dict[str, Any]], Awaitable[dict[str, Any]]],
        judging: Callable[[], dict[str, Any]],
        intake: WindowIntake,
        find_savings: Callable[[str, float, float], list[Validated]],
    ) -> None:
        self.keys = keys
        self.steps = steps
        self.routing = routing
        self.find_receipt = find_receipt
        self.page = page
        self.refresh = refresh
        self.ready = ready
        self.feedback = feedback
        self.judging = judging
        self.intake = intake
        self.find_savings = find_savings
        self.started_s = int(time.time())
        self.router = APIRouter()
        add = self.router.add_api_route
        add("/v1/models", self.models, methods=["GET"])
        add("/v1/models/{model:path}", self.model, methods=["GET"])
        add("/v1/route", self.route, methods=["POST"])
        add("/v1/usage/{request_id}", self.usage, methods=["GET"])
        add("/v1/feedback", self.give_feedback, methods=["POST"])
        add("/v1/savings", self.savings, methods=["GET"])
        add("/v1/judging", self.judged, methods=["GET"])
        add("/meters/windows", self.windows, methods=["POST"])
        add("/meters/clock", self.clock, methods=["GET"])
        add("/health/live", self.live, methods=["GET"])
        add("/health/ready", self.is_ready, methods=["GET"])
        add("/health", self.live, methods=["GET"])
        add("/metrics", self.metrics, methods=["GET"])

    def caller(self, request: Request) -> Caller:
        """Who is calling. Raises ApiError 401."""
        return self.keys.caller(request.scope["headers"], time.time(), address_of(request.scope))

    # -- models ----------------------------------------------------------------------------------

    def _entry(self, name: str, engines: list[Engine]) -> dict[str, Any]:
        simulated = all(engine.facts.simulated for engine in engines)
        contexts = [e.facts.context_tokens for e in engines if e.facts.context_tokens]
        entry: dict[str, Any] = {
            "id": name,
            "object": "model",
            "created": self.started_s,
            "owned_by": "joulegate-simulated" if simulated else "joulegate",
            "joulegate": {
                "backends": [
                    {
                        "name": engine.name,
                        "precision": engine.facts.precision,
                        "engine": engine.facts.engine,
                        "simulated": engine.facts.simulated,
                        "healthy": engine.healthy,
                    }
                    for engine in engines
                ],
                "simulated": simulated,
            },
        }
        if contexts:
            entry["max_model_len"] = max(contexts)
        return entry

    async def models(self, request: Request) -> Response:
        """The models a client may ask for."""
        self.caller(request)
        pool = self.routing.pool
        entries = [self._entry(name, pool.serving(name)) for name in pool.names()]
        if len(pool.everything) > 1:
            entries.append(self._entry("auto", pool.everything))
        return answer({"object": "list", "data": entries})

    async def model(self, request: Request, model: str) -> Response:
        """One model."""
        self.caller(request)
        engines = self.routing.pool.serving(model)
        if not engines:
            raise errors.model_not_found(model, self.routing.pool.names())
        return answer(self._entry(model, engines))

    # -- decisions and receipts ------------------------------------------------------------------

    async def route(self, request: Request) -> Response:
        """A chat request in, the decision out; nothing is sent."""
        caller = self.caller(request)
        body = await request.body()
        if len(body) > self.steps.reading.max_body_bytes:
            raise errors.body_too_large(self.steps.reading.max_body_bytes)
        skeleton, _ = features.elided(body)
        peeked = features.peek(skeleton)
        if not peeked.model:
            raise features.missing("model")
        features.require_prompt(peeked)
        headers = dict(request.scope["headers"])
        flight = Flight("route")
        wishes = wishes_in(headers)
        flight.caller, flight.session = caller, wishes.session
        told = await self.steps.reading.features_of(flight, peeked, skeleton, caller)
        now_s = time.monotonic()
        try:
            routed = self.routing.decide(
                told,
                caller,
                peeked.model,
                wishes,
                now_s=now_s,
                unix_s=time.time(),
                turn=flight.turn,
                session=flight.conversation,
                stream=bool(peeked.stream),
                served=False,
            )
        except NoBackendWithinLimits as error:
            return answer(explanation.refused(told, error), 422)
        return answer(explanation.routed(routed))

    async def usage(self, request: Request, request_id: str) -> Response:
        """One request's receipt; only for its own team, and for administrators."""
        caller = self.caller(request)
        receipt = await self.find_receipt(request_id)
        if receipt is None or (receipt.record.team != caller.team and caller.role != "admin"):
            raise errors.not_found(
                f"There is no request {request_id!r} of your team. Its id is in the "
                "x-request-id header of the answer."
            )
        body = receipts.as_json(receipt, caller.role in ("lead", "admin"))
        text = self.routing.book.texts.get(receipt.record.policy_version)
        body["policy_text"] = None if text is None else msgspec.json.decode(text)["policy"]
        return answer(body)

    async def give_feedback(self, request: Request) -> Response:
        """A score of one answer, for the quality estimates."""
        caller = self.caller(request)
        try:
            given = msgspec.json.decode(await request.body(), type=dict[str, Any])
        except UNREADABLE as error:
            raise errors.invalid_body(f"The body should be a JSON object: {error}.") from None
        return answer(await self.feedback(caller, given))

    async def judged(self, request: Request) -> Response:
        """What judging has found out about the backends, for administrators."""
        if self.caller(request).role != "admin":
            raise errors.forbidden("Only an administrator sees how backends were judged.")
        return answer(await asyncio.to_thread(self.judging))

    async def savings(self, request: Request) -> Response:
        """What the hold-out of the caller's team proves; ``days`` back from now, 30 if not said."""
        caller = self.caller(request)
        days = request.query_params.get("days", "30")
        if not days.isascii() or not days.isdigit() or not 1 <= int(days[:9]) <= 3660:
            raise errors.invalid_body(
                "'days' should be a whole number of days.", code="invalid_value", param="days"
            )
        now_s = time.time()
        found = await asyncio.to_thread(
            self.find_savings, caller.team, now_s - int(days) * 86_400.0, now_s
        )
        data = [{**msgspec.to_builtins(one), "validates": one.validates} for one in found]
        return answer({"object": "list", "data": data})

    # -- agents ----------------------------------------------------------------------------------

    async def windows(self, request: Request) -> Response:
        """Closed windows from an agent; each is taken once, however often it is sent."""
        body = await request.body()
        status, said = await asyncio.to_thread(self.intake.accept, _bearer(request), body)
        return Response(said, status, media_type="application/json")

    async def clock(self, request: Request) -> Response:
        """The time here, for agents to measure theirs by."""
        status, said = self.intake.time(_bearer(request))
        return Response(said, status, media_type="application/json")

    # -- operation -------------------------------------------------------------------------------

    async def live(self) -> Response:
        """The process answers."""
        return answer({"status": "ok"})

    async def is_ready(self) -> Response:
        """It can serve; says what is degraded."""
        degraded = self.ready()
        ready = "backends" not in degraded
        return answer(
            {"status": "ready" if ready else "not ready", "degraded": degraded},
            200 if ready else 503,
        )

    async def metrics(self, request: Request) -> Response:
        """Prometheus' page; it tells of every team: where there are keys, it needs an admin's."""
        if self.caller(request).role != "admin":
            raise errors.forbidden("Metrics tell of every team: they need an administrator's key.")
        await self.refresh()
        return Response(await self.page(), media_type=CONTENT_TYPE_LATEST)


def _bearer(request: Request) -> str | None:
    key = key_in(request.scope["headers"])
    return key.decode("latin-1") if key is not None else None


def handle_errors(app: FastAPI) -> None:
    """Make every error of FastAPI's routes look like OpenAI's."""

    async def ours(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return refused(error)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "POST")
            response = refused(errors.method_not_allowed(request.method, allowed))
            response.headers["allow"] = allowed
            return response
        if error.status_code == 404:
            path = request.url.path
            return refused(errors.not_found(f"There is nothing at {request.method} {path}."))
        return refused(ApiError(error.status_code, "http_error", str(error.detail)))

    async def failed(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return refused(errors.internal())

    async def left(_: Request, error: Exception) -> Response:
        return Response(status_code=400)  # nobody is there to read it

    app.add_exception_handler(ApiError, ours)
    app.add_exception_handler(ClientDisconnect, left)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, failed)
