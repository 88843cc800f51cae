"""Sends a request to the chosen backend, or the next that fits, until one gives an answer worth
passing on."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable
from typing import TypeVar, cast

import aiohttp

from policies.answer_budget import AnswerBudget, applied
from proxy import errors, rewrite, upstream
from proxy.answering import own_headers
from proxy.asgi import RawHeaders, Send
from proxy.attempts import give_up
from proxy.backends import Engine, upstream_model
from proxy.cascading import Cascading
from proxy.endings import broken, left
from proxy.errors import ApiError
from proxy.features import Peek
from proxy.flight import Admitted, Flight
from proxy.outgoing import Outgoing
from proxy.relaying import BOM, Relaying
from proxy.routing import Routed, Router
from proxy.settings import Settings
from proxy.upstream import Held, Upstream

log = logging.getLogger("joulegate.forwarding")
T = TypeVar("T")

EVENTS = "text/event-stream"
EVENT_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")  # how a stream of events begins
NOT_IMPLEMENTED = 501  # llama.cpp's word for embeddings where it was started for chats
UNPROCESSABLE = frozenset({400, 422})
USAGE_ON_REQUEST = frozenset({"chat.completions", "completions"})


class Forwarding:
    """Forwards requests. Used from the event loop only."""

    def __init__(
        self, settings: Settings, router: Router, client: Upstream, relaying: Relaying
    ) -> None:
        self.settings = settings
        self.router = router
        self.client = client
        self.relaying = relaying
        self.cascading = Cascading(router, client, self._open)

    async def forward(
        self,
        flight: Flight,
        outgoing: Outgoing,
        routed: Routed,
        request: Peek,
        send: Send,
        keep: Admitted | None,
        warnings: RawHeaders,
    ) -> None:
        hide_usage = flight.stream and not request.wants_usage
        hide_usage = hide_usage and outgoing.endpoint.name in USAGE_ON_REQUEST
        hide_usage = hide_usage and not routed.engines[0].refuses_usage
        plain = outgoing
        if hide_usage:
            outgoing = plain.with_body(rewrite.with_usage_asked(plain.body, request))
        if routed.decision.escalate_to is None:
            response = await self._open(flight, outgoing, routed)
        else:
            response = await self.cascading.answered(
                flight, outgoing, routed, request, self.settings
            )
        complains = False
        if hide_usage and response.status in UNPROCESSABLE:
            response, complains = await self._complains_of_usage(flight, response)
        if complains:
            hide_usage, refusing = False, flight.engine
            response = await self._open(flight, plain, routed)
            _refused_usage(refusing, flight.engine, response.status)
        engine = flight.engine
        assert engine is not None  # _open set it or raised
        try:
            odd = upstream.no_answer(engine, response.status)
            if odd is not None:
                flight.sent_s = None  # nothing ran there
                raise odd
            flight.status = response.status
            if 400 <= response.status < 500 or response.status == NOT_IMPLEMENTED:
                flight.sent_s = None  # refused there, and nothing ran
            said = upstream.response_headers(response) + own_headers(flight, engine, warnings)
            events = response.headers.get("content-type", "").lower().startswith(EVENTS)
            if not events and flight.stream and response.status == 200:
                response, events = await self._looked_at(flight, response)
            if events:
                await self.relaying.stream(flight, response, said, send, hide_usage, keep, engine)
            else:
                await self.relaying.whole(flight, response, said, send, keep, engine)
        finally:
            if not response.closed:
                response.close()  # closes the connection unless all of the answer was read
            left(flight)

    async def _complains_of_usage(
        self, flight: Flight, response: aiohttp.ClientResponse
    ) -> tuple[aiohttp.ClientResponse, bool]:
        """The same answer, and whether what the engine was asked for usage by is in its reason for
        refusing the request: then it is to be asked again without."""
        if response.headers.get("content-type", "").startswith(EVENTS):
            return response, False
        reading = upstream.beginning(response, upstream.MAX_HELD_BYTES)
        said, all_of_it = await self._in_time(flight, reading)
        refused = b"stream_options" in said
        if refused:
            left(flight)
            response.close()
        return cast(aiohttp.ClientResponse, Held(response, said, all_of_it)), refused

    async def _looked_at(
        self, flight: Flight, response: aiohttp.ClientResponse
    ) -> tuple[aiohttp.ClientResponse, bool]:
        """The same answer, and whether it begins as events do: some servers of streams name no
        type of content, or another one."""
        if "content-length" in response.headers:
            return response, False
        first = await self._in_time(flight, response.content.readany())
        held = cast(aiohttp.ClientResponse, Held(response, first, not first))
        return held, first.removeprefix(BOM).lstrip().startswith(EVENT_FIELDS)

    async def _in_time(self, flight: Flight, reading: Awaitable[T]) -> T:
        """What is read of an answer before any of it goes on, within the limit of a gap."""
        flight.deadline_s = time.monotonic() + self.settings.time.between_chunks_s
        try:
            return await reading
        except (aiohttp.ClientError, OSError, asyncio.CancelledError) as error:
            raise broken(flight, error, self.settings.retries) from error
        finally:
            flight.deadline_s = None

    async def _open(
        self, flight: Flight, outgoing: Outgoing, routed: Routed
    ) -> aiohttp.ClientResponse:
        """The first response worth passing on: from the chosen engine or the next that fits, then
        from those of the fallbacks."""
        try:
            response = await self._first(flight, outgoing, routed)
        except ApiError:
            instead = flight.instead(flight) if flight.instead is not None else None
            if instead is None:
                raise
            if flight.sent_s is not None:
                give_up(flight)  # it may have worked all the while
        else:
            if response.status not in upstream.WORTH_ANOTHER or flight.instead is None:
                return response
            instead = flight.instead(flight)
            if instead is None:
                return response
            left(flight)
            response.close()
        log.info("%s: all that was chosen failed: to the fallbacks", flight.request_id)
        flight.tried += flight.attempts
        flight.attempts, flight.sent_s = 0, None
        flight.follow(instead)
        return await self._first(flight, outgoing, instead)

    async def _first(
        self, flight: Flight, outgoing: Outgoing, routed: Routed
    ) -> aiohttp.ClientResponse:
        """The first response worth passing on of the engines that were decided on, in order."""
        rules, limits = self.settings.retries, self.settings.time
        failure: ApiError | None = None
        order = list(routed.engines)
        attempt = 0
        while attempt < rules.attempts:
            engine = order[min(attempt, len(order) - 1)]
            if attempt >= len(order) and rules.wait_s:
                await asyncio.sleep(random.uniform(0, rules.wait_s))
            attempt += 1
            more = attempt < rules.attempts and attempt < len(order)
            model = upstream_model(engine, flight.asked)
            endpoint, headers, sent, kept = outgoing
            if model != flight.asked:
                form = flight.form
                sent = form.renamed(sent, model) if form else rewrite.with_model(sent, model, kept)
            if routed.budgets:
                sent = _within_budget(flight, sent, routed.budgets[min(attempt, len(order)) - 1])
            self._took(flight, engine, routed, attempt)
            flight.sent_s = time.monotonic()
            # An answer that is not streamed shows its first byte when all of it is there.
            limit_s = limits.first_byte_s
            limit_s = limit_s if flight.stream else min(limit_s, limits.total_s)
            flight.deadline_s = flight.sent_s + limit_s
            try:
                response = await self.client.post(
                    engine,
                    endpoint.path,
                    sent,
                    upstream.request_headers(headers, engine, flight.request_id),
                )
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                flight.wait_s += time.monotonic() - flight.sent_s
                flight.deadline_s = None
                left(flight)
                flight.sent_s = None  # nothing ran there
                engine.failed(time.monotonic(), rules)
                failure = upstream.as_error(engine, error)
                log.info("%s: %s failed: %s", flight.request_id, engine.name, type(error).__name__)
                continue
            except asyncio.CancelledError:
                left(flight)
                if flight.late is None:
                    raise
                asyncio.current_task().uncancel()  # type: ignore[union-attr]
                flight.late = None
                flight.wait_s += time.monotonic() - flight.sent_s
                engine.failed(time.monotonic(), rules)
                failure = errors.upstream_timeout(
                    f"The backend {engine.name} sent nothing within {limit_s:g} s."
                )
                if attempt >= len(order):
                    break  # waiting as long again for the same one helps nobody
                if attempt < rules.attempts:
                    give_up(flight)  # it may have worked all the while
                continue
            flight.wait_s += time.monotonic() - flight.sent_s
            flight.deadline_s = None
            if response.status >= 500 and response.status != NOT_IMPLEMENTED:
                engine.failed(time.monotonic(), rules)
            else:
                engine.succeeded()
            engine.refused(response.status if response.status in upstream.MISCONFIGURED else None)
            if more and response.status in upstream.WORTH_ANOTHER:
                left(flight)
                response.close()
                continue
            if flight.prefix is not None or flight.session is not None:
                self._went(flight, engine)
            return response
        flight.engine = None if flight.attempts == 0 else flight.engine
        assert failure is not None  # `retries.attempts` is 1 or more
        raise failure

    def _went(self, flight: Flight, engine: Engine) -> None:
        """Remember which engine has this turn's prefix now."""
        if flight.caller is not None and flight.features is not None:
            self.router.conversations.went(
                flight.caller.team,
                flight.session,
                flight.prefix,
                flight.conversation,
                engine.name,
                flight.features.prompt_tokens,
            )

    def _took(self, flight: Flight, engine: Engine, routed: Routed, attempt: int) -> None:
        flight.engine = engine
        flight.attempts = attempt
        flight.estimate = routed.estimate(flight.served_by)
        lengths = flight.estimate.output_tokens
        told = flight.features
        flight.context_tokens = (told.prompt_tokens if told else 0) + round(
            lengths.mean / 2 if lengths else 0
        )
        engine.started(flight.context_tokens)
        flight.loads = engine
        flight.begins = None
        if engine.prefixes is not None and flight.blocks:
            flight.begins = engine.prefixes.sent(flight.blocks)
        if engine.cooldown_until_s:
            engine.probing = flight.probes = True


def _within_budget(flight: Flight, body: bytes, budget: AnswerBudget | None) -> bytes:
    """The body as the budget has it; the answer is then no example of the backend's own."""
    flight.budget = budget
    if budget is None:
        return body
    flight.sample = None
    return rewrite.with_fields(body, lambda asked: applied(asked, budget))


def _refused_usage(engine: Engine | None, answered: Engine | None, status: int) -> None:
    """Note an engine that takes a request only without being asked for usage. One that refuses it
    in any case may have quoted the request in its reason, as vLLM does, and meant something else.
    """
    if engine is not None and engine is answered and status < 400:
        engine.refuses_usage = True
        log.warning("backend %s refuses stream_options: not asked for usage", engine.name)
