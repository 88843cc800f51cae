"""One request, in order: authenticate, read and count, look in the cache, find candidates,
estimate, decide, forward, record. The map of these steps is in ARCHITECTURE.md.

No disk, no database and no lock across an await on this path; what is learnt and kept happens
behind it (accounts.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import msgspec

from estimators.types import Features
from policies.types import NoBackendWithinLimits
from proxy import cache, errors, features, similar
from proxy.admission import Gate, warning_headers
from proxy.answering import Accounts, Answering
from proxy.asgi import RawHeaders, Receive, Scope, Send
from proxy.auth import Caller, KeyRing
from proxy.backends import Engine
from proxy.cached_answers import CachedAnswers
from proxy.endings import left
from proxy.endpoints import Endpoint
from proxy.errors import ApiError
from proxy.failed_keys import address_of
from proxy.features import Peek
from proxy.flight import Flight, Sample, TimeWatch, connection_of
from proxy.forms import is_form
from proxy.forwarding import Forwarding
from proxy.outgoing import Outgoing
from proxy.pseudonyms import Pseudonyms
from proxy.reading import Gone, Reading
from proxy.relaying import Relaying
from proxy.routing import Routed, Router, refusal
from proxy.settings import Settings
from proxy.tokens import TokenCounter
from proxy.upstream import Upstream
from proxy.usage_in_body import UsageInBody
from proxy.wishes import Wishes, wishes_in

log = logging.getLogger("joulegate.steps")

LONGEST_NAME = 256  # characters of a model's name
CALLER = "joulegate.caller"  # in a scope that no server made: in whose name that request is


class Judging(Protocol):
    """Who has some answers compared with others, behind the request path."""

    def sample(self, caller: Caller, body: bytes) -> Sample | None: ...

    def take(self, flight: Flight) -> None: ...


class Steps:
    """The request path. Built once by app.py with everything it needs."""

    def __init__(
        self,
        *,
        settings: Settings,
        keys: KeyRing,
        router: Router,
        client: Upstream,
        counter: TokenCounter,
        watch: TimeWatch,
        accounts: Accounts,
        gate: Gate,
        pseudonyms: Pseudonyms,
    ) -> None:
        self.settings = settings
        self.keys = keys
        self.router = router
        self.watch = watch
        self.gate = gate
        self.pseudonyms = pseudonyms
        self.judging: Judging | None = None
        self.reading = Reading(router, counter, settings.server.max_body_bytes)
        self.answering = Answering(accounts)
        self.cached = CachedAnswers(settings, gate, self.reading.small, self._watch)
        self.relaying = Relaying(settings, self.answering, self.cached)
        self.forwarding = Forwarding(settings, router, client, self.relaying)
        self.in_flight = 0
        self.stopping = False

    def take(self, settings: Settings) -> None:
        """Go by these settings from now on."""
        for part in (self, self.cached, self.relaying, self.forwarding):
            part.settings = settings

    async def serve(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST, whatever happens, and put it on the books."""
        flight = Flight(endpoint.name)
        self.in_flight += 1
        try:
            await self._serve(flight, endpoint, scope, receive, send)
        except ApiError as error:
            await self.answering.refuse(flight, error, send)
        except NoBackendWithinLimits as error:
            await self.answering.refuse(flight, refusal(error), send)
        except Gone:
            flight.outcome = "cancelled"
        except asyncio.CancelledError:
            flight.outcome = "cancelled"
            current = asyncio.current_task()
            if current is not None:
                current.uncancel()
            if not flight.gone:
                await self._cut(flight, send)
        except Exception:
            log.exception("%s failed", flight.request_id)
            await self.answering.refuse(flight, errors.internal(), send)
        finally:
            self.in_flight -= 1
            self.watch.flights.pop(flight.request_id, None)
            left(flight)
            if flight.end_s is None:
                flight.end_s = time.monotonic()
            await self.answering.book(flight)
            if flight.sample is not None and self.judging is not None:
                self.judging.take(flight)
            if flight.admitted is not None:
                if self.gate.instant:
                    await self._settle(flight)
                else:
                    await asyncio.shield(self._settle(flight))

    async def _cut(self, flight: Flight, send: Send) -> None:
        """End, in words that a client understands, what is in flight when stopping must wait no
        longer. Raised, it would be a page of the log for each, and for clients plain text or a
        stream that just ends."""
        error = errors.overloaded("Joulegate is stopping. Try again.")
        if not flight.headers_sent:
            await self.answering.refuse(flight, error, send)
            return
        cycle = flight.cycle
        stuck = flight.sending or (cycle is not None and cycle.flow.write_paused)
        if flight.body_sent:
            return
        if flight.events and not stuck:
            await self.answering.book(flight)
            last = b"\n\n" + error.event(flight.endpoint, flight.typed_events)
            await send({"type": "http.response.body", "body": last})
        elif cycle is not None:
            cycle.transport.abort()
            await asyncio.sleep(0)  # until it knows

    async def _serve(
        self, flight: Flight, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send
    ) -> None:
        headers = dict(scope["headers"])
        flight.traceparent = headers.get(b"traceparent")
        caller = flight.caller = scope.get(CALLER) or self.keys.caller(
            scope["headers"], flight.start_wall_s, address_of(scope)
        )
        flight.policy = caller.policy or self.router.default_policy
        if self.stopping:
            raise errors.overloaded("Joulegate is stopping. Try again.")
        if self.in_flight > self.settings.server.max_in_flight:
            raise errors.overloaded("Too many requests are in flight. Try again.")
        wishes = wishes_in(headers)
        if wishes.usage:
            send = UsageInBody(send)
        flight.tags = wishes.tags
        flight.session = wishes.session

        body = await self.reading.body(headers, receive)
        kept: list[tuple[int, int]] = []
        sort = headers.get(b"content-type", b"")
        if not endpoint.text and is_form(sort):
            form = flight.form = await self.reading.form(body, sort)
            request, skeleton = Peek(model=form.model, stream=form.stream), b""
        else:
            skeleton, kept = features.elided(body)
            request = features.peek(skeleton)
        if not request.model and endpoint.model and self.router.pool.serving(endpoint.model):
            request.model = endpoint.model
        if not request.model:
            raise (
                features.missing("model")
                if endpoint.listed
                else errors.for_no_backend(endpoint.path)
            )
        if len(request.model) > LONGEST_NAME:  # it would go into the books, whatever it is
            raise errors.model_not_found(request.model[:LONGEST_NAME], self.router.pool.names())
        flight.asked = request.model
        if caller.user_groups:
            flight.user_hash = self.pseudonyms.of(caller.team, request.user)
        flight.stream = bool(request.stream) and endpoint.streams
        if endpoint.chat:
            features.require_chat(request)
        if endpoint.text:
            if not endpoint.answers:
                request.max_tokens = request.max_completion_tokens = 1
            told = await self.reading.features_of(flight, request, skeleton, caller)
            if wishes.task is not None:
                told = flight.features = msgspec.structs.replace(told, task=wishes.task)
        else:
            flight.opaque = True
            told = Features(prompt_tokens=0, team=caller.team)
            wishes = msgspec.structs.replace(wishes, policy="pinned")

        among = None
        if endpoint.name == "responses" and bytes(request.previous_response_id):
            among = self._keeping(caller, request)
        try:
            routed = self._decide(flight, told, caller, wishes, among=among)
        except NoBackendWithinLimits:
            # What was left of a budget when its last request came may have changed since.
            if self.router.budgets_left.pop((caller.team, caller.key_id), None) is None:
                raise
            routed = self._decide(flight, told, caller, wishes, among=among)
        key = None
        if endpoint.text and cache.cacheable(request, body, endpoint.name, self.settings.cache):
            flight.cache = "miss"
            flight.cache_group = group = routed.engines[0].group
            quality = routed.limits.min_quality
            key = cache.key_of(body, endpoint.name, caller, quality, group=group, headers=headers)
            if caller.similar_answers is not None:
                whose = f"{endpoint.name}\n{caller.team}\n{group}\n{quality}"
                flight.question = similar.question_in(body, whose)
        read = not wishes.no_cache and wishes.max_age_s is None
        admitted = await self.gate.admit(flight, caller, key, read=read)
        warnings: RawHeaders = []
        if admitted is not None:
            flight.admitted = admitted
            answer = await self.cached.find(flight, caller, admitted, wishes, receive)
            if answer is not None:
                await self.answering.from_cache(flight, answer, send)
                return
            warnings = warning_headers(admitted.admission)
            thriftier = admitted.admission.fallback_policy
            if thriftier is not None:
                wishes = msgspec.structs.replace(wishes, policy=thriftier, ours=True)
            if admitted.admission.spent:
                budget_left = admitted.admission.budget_left
                if budget_left is not None:
                    until_s = min(spent.charge.period.end_s for spent in admitted.admission.spent)
                    self.router.budgets_left[caller.team, caller.key_id] = budget_left, until_s
                if thriftier is not None or routed.needs.budget_left:
                    routed = self._decide(flight, told, caller, wishes, budget_left, among)
        if self.router.budgets_left and (admitted is None or not admitted.charges):
            self.router.budgets_left.pop((caller.team, caller.key_id), None)  # it has none any more
        keep = None if wishes.no_store else admitted
        if caller.judged_share and self.judging is not None and endpoint.chat:
            flight.sample = self.judging.sample(caller, body)

        if self.router.pool.fallbacks and among is None:
            flight.instead = partial(self._instead, told, caller, wishes)
        watching = self._watch(flight, receive)
        try:
            outgoing = Outgoing(endpoint, headers, body, kept)
            await self.forwarding.forward(flight, outgoing, routed, request, send, keep, warnings)
        finally:
            if watching is not None:
                watching.cancel()

    def _decide(
        self,
        flight: Flight,
        told: Features,
        caller: Caller,
        wishes: Wishes,
        budget_left: float | None = None,
        among: Sequence[Engine] | None = None,
    ) -> Routed:
        flight.policy = wishes.policy or caller.policy or self.router.default_policy
        routed = self._routed(flight, told, caller, wishes, budget_left=budget_left, among=among)
        flight.follow(routed)
        return routed

    def _keeping(self, caller: Caller, request: Peek) -> Sequence[Engine] | None:
        """The one backend that can go on from an earlier response; None where nobody knows."""
        quoted = bytes(request.previous_response_id)
        name = self.relaying.kept_responses.holder(caller.team, quoted)
        found = [e for e in self.router.pool.serving(request.model or "") if e.name == name]
        return found or None

    def _instead(
        self, told: Features, caller: Caller, wishes: Wishes, flight: Flight
    ) -> Routed | None:
        """What to do now that all backends have failed that were chosen: the decision among those
        of the fallbacks; None where there is none."""
        tried = flight.routed.engines if flight.routed is not None else ()
        now_s = time.monotonic()
        others = self.router.pool.fallback_for(flight.asked)
        among = [one for one in others if one not in tried and one.available(now_s)]
        if not among:
            return None
        try:
            return self._routed(flight, told, caller, wishes, among=among)
        except (ApiError, NoBackendWithinLimits):
            return None

    def _routed(
        self,
        flight: Flight,
        told: Features,
        caller: Caller,
        wishes: Wishes,
        *,
        budget_left: float | None = None,
        among: Sequence[Engine] | None = None,
    ) -> Routed:
        return self.router.decide(
            told,
            caller,
            flight.asked,
            wishes,
            now_s=time.monotonic(),
            unix_s=flight.start_wall_s,
            estimated=not flight.opaque,
            turn=flight.turn,
            session=flight.conversation,
            stream=flight.stream,
            checkable=flight.endpoint == "chat.completions",
            budget_left=budget_left,
            among=among,
        )

    def _watch(self, flight: Flight, receive: Receive) -> asyncio.Future[None] | None:
        """From now on the request ends when its client goes; what is given is to be cancelled."""
        flight.task = asyncio.current_task()
        self.watch.flights[flight.request_id] = flight
        flight.cycle = connection_of(receive)
        if flight.cycle is not None:
            return None
        return asyncio.ensure_future(self._watch_client(flight, receive))

    async def _watch_client(self, flight: Flight, receive: Receive) -> None:
        """Cancel the request when its client goes away."""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                if not flight.body_sent and flight.task is not None:
                    flight.gone = True
                    flight.task.cancel()
                return

    async def _settle(self, flight: Flight) -> None:
        """Give the store back what was reserved, and end a claim that came to nothing."""
        admitted = flight.admitted
        if admitted is None:
            return
        try:
            await self.gate.settle(admitted, flight)
            if admitted.claims and not flight.kept:
                await self.gate.keep(admitted, None, 0.0)
        except Exception:
            log.exception("%s could not be settled", flight.request_id)
