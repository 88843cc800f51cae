"""One request, in order: authenticate, read and count, look in the cache, find candidates,
estimate, decide, forward, record. The map of these steps is in ARCHITECTURE.md.

No disk, no database and no lock across an await on this path; what is learnt and kept happens
behind it (accounts.py).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol, cast

import aiohttp
import msgspec

from estimators.types import Estimate, Features
from meters.prefixes import blocks_of
from policies.answer_budget import AnswerBudget, applied
from policies.types import NoBackendWithinLimits
from proxy import cache, errors, features, rewrite, similar, upstream
from proxy.admission import Gate, warning_headers
from proxy.attempts import give_up, whole
from proxy.auth import Caller, KeyRing
from proxy.backends import Engine, upstream_model
from proxy.cache import FUNCTIONS, Answer
from proxy.cascading import Cascading, Held
from proxy.endpoints import Endpoint
from proxy.errors import ApiError
from proxy.failed_keys import address_of
from proxy.features import Peek, Prompt
from proxy.flight import Admitted, Flight, Sample, TimeWatch, connection_of
from proxy.forms import Form, form_of, is_form
from proxy.pseudonyms import Pseudonyms
from proxy.routing import Routed, Router, refusal
from proxy.settings import Settings
from proxy.sse import StreamWatcher, usage_in
from proxy.tokens import PATIENCE_S, TokenCounter, Worker, guess
from proxy.upstream import Upstream
from proxy.wishes import Wishes, wishes_in

log = logging.getLogger("joulegate.steps")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
RawHeaders = list[tuple[bytes, bytes]]

SHORT_BODY = 4_096  # bytes: counted in 0.1 ms, and in 0.6 ms whatever they are


class Accounts(Protocol):
    """Who is told of finished requests."""

    def finished(self, flight: Flight) -> asyncio.Future[bool] | None: ...

    async def on_disk(self, written: asyncio.Future[bool]) -> None: ...


class Judging(Protocol):
    """Who has some answers compared with others, behind the request path."""

    def sample(self, caller: Caller, body: bytes) -> Sample | None: ...

    def take(self, flight: Flight) -> None: ...


class Gone(Exception):
    """The client left before its request was complete."""


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
        describe: Callable[[Prompt], tuple[str | None, str]] | None = None,
        pseudonyms: Pseudonyms | None = None,
    ) -> None:
        self.settings = settings
        self.keys = keys
        self.router = router
        self.client = client
        self.counter = counter
        self.watch = watch
        self.accounts = accounts
        self.gate = gate
        self.describe = describe
        self.pseudonyms = pseudonyms
        self.judging: Judging | None = None
        self.small = Worker("joulegate-tokens")
        self.large = Worker("joulegate-tokens-large")
        self.similar = similar.SimilarPrompts()
        self.in_flight = 0
        self.stopping = False
        self.cascading = Cascading(router, client, open=self._open, broken=self._broken, left=_left)
        self.max_body_bytes = settings.server.max_body_bytes

    def close(self) -> None:
        self.small.close()
        self.large.close()

    async def serve(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST, whatever happens, and put it on the books."""
        flight = Flight(endpoint.name)
        self.in_flight += 1
        try:
            await self._serve(flight, endpoint, scope, receive, send)
        except ApiError as error:
            await self._refuse(flight, error, send)
        except NoBackendWithinLimits as error:
            await self._refuse(flight, refusal(error), send)
        except Gone:
            flight.outcome = "cancelled"
        except asyncio.CancelledError:
            flight.outcome = "cancelled"
            if not flight.gone:
                raise
            current = asyncio.current_task()
            if current is not None:
                current.uncancel()
        except Exception:
            log.exception("%s failed", flight.request_id)
            await self._refuse(flight, errors.internal(), send)
        finally:
            self.in_flight -= 1
            self.watch.flights.pop(flight.request_id, None)
            _left(flight)
            if flight.end_s is None:
                flight.end_s = time.monotonic()
            if (written := self._book(flight)) is not None:
                await self.accounts.on_disk(written)
            if flight.sample is not None and self.judging is not None:
                self.judging.take(flight)
            if flight.admitted is not None:
                if self.gate.instant:
                    await self._settle(flight)
                else:
                    await asyncio.shield(self._settle(flight))

    def _book(self, flight: Flight) -> asyncio.Future[bool] | None:
        """Put a request on the books, once: before its last byte leaves, so that no client ever
        holds a whole answer that a killed replica did not record."""
        if flight.booked:
            return None
        flight.booked = True
        return self.accounts.finished(flight)

    # -- the steps -----------------------------------------------------------------------------

    async def _serve(
        self, flight: Flight, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send
    ) -> None:
        headers = dict(scope["headers"])
        flight.traceparent = headers.get(b"traceparent")
        caller = flight.caller = self.keys.caller(
            scope["headers"], flight.start_wall_s, address_of(scope)
        )
        if self.stopping:
            raise errors.overloaded("Joulegate is stopping. Try again.")
        if self.in_flight > self.settings.server.max_in_flight:
            raise errors.overloaded("Too many requests are in flight. Try again.")
        wishes = wishes_in(headers)
        flight.tags = wishes.tags
        flight.session = wishes.session

        body = await self._body(headers, receive)
        kept: list[tuple[int, int]] = []
        sort = headers.get(b"content-type", b"")
        if not endpoint.text and is_form(sort):
            form = flight.form = await self._form(body, sort)
            request, skeleton = Peek(model=form.model, stream=form.stream), b""
        else:
            skeleton, kept = features.elided(body)
            request = features.peek(skeleton)
        if not request.model:
            raise features.missing("model")
        if len(request.model) > LONGEST_NAME:  # it would go into the books, whatever it is
            raise errors.model_not_found(request.model[:LONGEST_NAME], self.router.pool.names())
        flight.asked = request.model
        if caller.user_groups and self.pseudonyms is not None:
            flight.user_hash = self.pseudonyms.of(caller.team, request.user)
        flight.stream = bool(request.stream) and endpoint.streams
        if endpoint.chat:
            features.require_chat(request)
        if endpoint.text:
            if not endpoint.answers:
                request.max_tokens = request.max_completion_tokens = 1
            told = await self.features_of(flight, request, skeleton, caller)
            if wishes.task is not None:
                told = flight.features = msgspec.structs.replace(told, task=wishes.task)
        else:
            flight.opaque = True
            told = Features(prompt_tokens=0, team=caller.team)
            wishes = msgspec.structs.replace(wishes, policy="pinned")

        routed = self._decide(flight, told, caller, wishes)
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
            answer = await self._cached(flight, caller, admitted, wishes, receive)
            if answer is not None:
                await self._answer_from_cache(flight, answer, send)
                return
            warnings = warning_headers(admitted.admission)
            thriftier = admitted.admission.fallback_policy
            if thriftier is not None:
                wishes = msgspec.structs.replace(wishes, policy=thriftier, ours=True)
            if admitted.admission.spent:
                left = admitted.admission.budget_left
                if thriftier is not None or routed.needs.budget_left:
                    routed = self._decide(flight, told, caller, wishes, left)
                if left is not None:
                    self.router.budgets_left[caller.team, caller.key_id] = left
        keep = None if wishes.no_store else admitted
        if caller.judged_share and self.judging is not None and endpoint.chat:
            flight.sample = self.judging.sample(caller, body)

        watching = self._watch(flight, receive)
        try:
            await self._forward(
                flight, endpoint, routed, headers, body, kept, request, send, keep, warnings
            )
        finally:
            if watching is not None:
                watching.cancel()

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        length = headers.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 18 or int(length) > self.max_body_bytes):
            raise errors.body_too_large(self.max_body_bytes)
        message = await receive()
        body: bytes = message.get("body", b"")
        if message["type"] == "http.disconnect":
            raise Gone
        if message.get("more_body", False):
            parts, size = [body], len(body)
            while message.get("more_body", False):
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                part = message.get("body", b"")
                parts.append(part)
                size += len(part)
                if size > self.max_body_bytes:
                    raise errors.body_too_large(self.max_body_bytes)
            body = b"".join(parts)
        if len(body) > self.max_body_bytes:
            raise errors.body_too_large(self.max_body_bytes)
        encoding = headers.get(b"content-encoding")
        if encoding is not None and encoding.strip().lower() != b"identity":
            body = await self._decoded(body, encoding.strip().lower())
        return body

    async def _form(self, body: bytes, content_type: bytes) -> Form:
        """What a form says of itself; a large one is read in a thread."""
        if len(body) < features.ELIDE_BYTES:
            return form_of(body, content_type)
        return await self.large.submit(lambda: form_of(body, content_type))

    async def _decoded(self, body: bytes, encoding: bytes) -> bytes:
        if encoding not in (b"gzip", b"x-gzip", b"deflate"):
            raise ApiError(
                415,
                "unsupported_encoding",
                f"The content-encoding {encoding.decode('latin-1')!r} is not supported. "
                "Send gzip, deflate or nothing.",
            )
        return await self.large.submit(lambda: inflate(body, encoding, self.max_body_bytes))

    async def features_of(
        self, flight: Flight, request: Peek, body: bytes, caller: Caller
    ) -> Features:
        """What estimators look at; the prompt is counted, or guessed from bytes.

        A short one is counted here: waking a thread and being woken by it costs more. A long one
        is read and counted in a thread, and not waited for beyond PATIENCE_S.
        """
        prompt: Prompt | None
        counted = self.counter.exact
        if len(body) <= SHORT_BODY:
            prompt = features.prompt_of(request)
            tokens = self._count(request, prompt) + prompt.overhead_tokens
            task, text = self._described(prompt)
        else:
            reading = self.large.submit(lambda: self._read(request))
            try:
                tokens, prompt, task, text = await asyncio.wait_for(
                    asyncio.shield(reading), PATIENCE_S
                )
            except TimeoutError:
                tokens, counted, task, text = guess(len(body)), False, None, ""
                prompt = None
                reading.add_done_callback(lambda done: _count_later(flight, done))
        cached = 0
        if prompt is not None:
            flight.prefix, flight.blocks = prompt.whole, prompt.blocks
            if prompt.before is not None or flight.session is not None:
                known = self.router.conversations
                flight.turn = known.before(caller.team, flight.session, prompt.before)
                cached = 0 if flight.turn is None else flight.turn.tokens
        flight.features = features.features_from(
            request,
            prompt,
            tokens=tokens,
            counted=counted,
            task=task,
            text=text,
            team=caller.team,
            cached_tokens=cached,
        )
        return flight.features

    def _read(self, request: Peek) -> tuple[int, Prompt, str | None, str]:
        prompt = features.prompt_of(request)
        tokens = self._count(request, prompt) + prompt.overhead_tokens
        return tokens, prompt, *self._described(prompt)

    def _count(self, request: Peek, prompt: Prompt) -> int:
        if self.router.pool.remembers and not prompt.images:
            prompt.blocks = blocks_of(prompt.text, (request.model, bytes(request.tools)))
        return self.counter.count(prompt.text)

    def _described(self, prompt: Prompt) -> tuple[str | None, str]:
        return self.describe(prompt) if self.describe is not None else (None, prompt.last)

    def _decide(
        self,
        flight: Flight,
        told: Features,
        caller: Caller,
        wishes: Wishes,
        budget_left: float | None = None,
    ) -> Routed:
        flight.policy = wishes.policy or caller.policy or self.router.default_policy
        routed = self.router.decide(
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
        )
        flight.decision = routed.decision
        flight.policy = routed.decision.policy
        flight.candidates = routed.candidates
        flight.routed = routed
        flight.estimate = routed.estimate(routed.decision.chosen)
        return routed

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

    # -- forwarding ----------------------------------------------------------------------------

    async def _forward(
        self,
        flight: Flight,
        endpoint: Endpoint,
        routed: Routed,
        headers: dict[bytes, bytes],
        body: bytes,
        kept: list[tuple[int, int]],
        request: Peek,
        send: Send,
        keep: Admitted | None,
        warnings: RawHeaders,
    ) -> None:
        hide_usage = flight.stream and endpoint.name in USAGE_ON_REQUEST and not request.wants_usage
        hide_usage = hide_usage and not routed.engines[0].refuses_usage
        plain, parts = body, kept
        if hide_usage:
            body = rewrite.with_usage_asked(body, request)
            kept = [(0, len(body))] if len(kept) == 1 else features.elided(body)[1]
        if routed.decision.escalate_to is None:
            response = await self._open(flight, endpoint, routed, headers, body, kept)
        else:
            response = await self.cascading.answered(
                flight, endpoint, routed, headers, body, kept, request, self.settings.time
            )
        if hide_usage and await self._complains_of_usage(flight, response):
            hide_usage, refusing = False, flight.engine
            response = await self._open(flight, endpoint, routed, headers, plain, parts)
            _refused_usage(refusing, flight.engine, response.status)
        engine = flight.engine
        assert engine is not None  # _open set it or raised
        try:
            if not 200 <= response.status < 600:
                raise errors.upstream_failed(
                    f"The backend {engine.name} answered with the status {response.status}."
                )
            flight.status = response.status
            if 400 <= response.status < 500 or response.status == NOT_IMPLEMENTED:
                flight.sent_s = None  # refused there, and nothing ran
            ours = self._headers(flight, engine, warnings)
            theirs = upstream.response_headers(response)
            events = response.headers.get("content-type", "").lower().startswith(EVENTS)
            if not events and flight.stream and response.status == 200:
                response, events = await self._looked_at(flight, response, engine)
            if events:
                await self._stream(flight, response, theirs + ours, send, hide_usage, keep, engine)
            else:
                await self._whole(flight, response, theirs + ours, send, keep, engine)
        finally:
            if not response.closed:
                response.close()  # closes the connection unless all of the answer was read
            _left(flight)

    async def _complains_of_usage(self, flight: Flight, response: aiohttp.ClientResponse) -> bool:
        """Whether the engine refused the request, and what it was asked for usage by is in its
        reason: then it is to be asked again without."""
        engine = flight.engine
        if engine is None or response.status not in UNPROCESSABLE:
            return False
        flight.deadline_s = time.monotonic() + self.settings.time.between_chunks_s
        try:
            refused = await upstream.complains_of(response, b"stream_options")
        except (aiohttp.ClientError, OSError, asyncio.CancelledError) as error:
            raise self._broken(flight, engine, error) from error
        finally:
            flight.deadline_s = None
        if refused:
            _left(flight)
        return refused

    async def _looked_at(
        self, flight: Flight, response: aiohttp.ClientResponse, engine: Engine
    ) -> tuple[aiohttp.ClientResponse, bool]:
        """The same answer, and whether it begins as events do: some servers of streams name no
        type of content, or another one."""
        if "content-length" in response.headers:
            return response, False
        flight.deadline_s = time.monotonic() + self.settings.time.between_chunks_s
        try:
            first = await response.content.readany()
        except (aiohttp.ClientError, OSError, asyncio.CancelledError) as error:
            raise self._broken(flight, engine, error) from error
        finally:
            flight.deadline_s = None
        held = cast(aiohttp.ClientResponse, Held(response, first, not first))
        return held, first.removeprefix(BOM).lstrip().startswith(EVENT_FIELDS)

    async def _open(
        self,
        flight: Flight,
        endpoint: Endpoint,
        routed: Routed,
        headers: dict[bytes, bytes],
        body: bytes,
        kept: list[tuple[int, int]],
    ) -> aiohttp.ClientResponse:
        """The first response worth passing on, from the chosen engine or the next that fits."""
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
            sent = body
            if model != flight.asked:
                form = flight.form
                sent = form.renamed(body, model) if form else rewrite.with_model(body, model, kept)
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
                _left(flight)
                flight.sent_s = None  # nothing ran there
                engine.failed(time.monotonic(), rules)
                failure = upstream.as_error(engine, error)
                log.info("%s: %s failed: %s", flight.request_id, engine.name, type(error).__name__)
                continue
            except asyncio.CancelledError:
                _left(flight)
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
            if more and response.status in upstream.WORTH_ANOTHER:
                _left(flight)
                response.close()
                continue
            if flight.prefix is not None or flight.session is not None:
                self._went(flight, engine)
            return response
        flight.engine = None if flight.attempts == 0 else flight.engine
        raise failure or errors.no_backend_available("No backend could be tried. Try again.", 1.0)

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

    async def _whole(
        self,
        flight: Flight,
        response: aiohttp.ClientResponse,
        headers: RawHeaders,
        send: Send,
        keep: Admitted | None,
        engine: Engine,
    ) -> None:
        """Pass on an answer that is not a stream of events."""
        limits = self.settings.time
        begun_s = time.monotonic()
        since_s = begun_s if flight.sent_s is None else flight.sent_s
        flight.deadline_s = min(since_s + limits.total_s, begun_s + limits.between_chunks_s)
        length = response.headers.get("content-length")
        if "content-encoding" in response.headers:
            length = None  # of something else than what we pass on
        try:
            if length is not None and int(length) > MAX_HELD_BYTES:
                await self._relay(flight, response, [*headers, _length(length)], send)
                return
            body = await response.read()
        except (aiohttp.ClientError, OSError, asyncio.CancelledError) as error:
            raise self._broken(flight, engine, error) from error
        now_s = time.monotonic()
        flight.wait_s += now_s - begun_s
        flight.deadline_s = None
        _left(flight)  # however slowly the client reads
        flight.first_token_s = None  # a whole answer does not say when its first token came
        flight.end_s = now_s
        if response.status < 400:
            flight.usage = usage = usage_in(body)
            if usage is not None and usage.prompt_tokens is None and flight.endpoint in FUNCTIONS:
                usage.prompt_tokens = usage.total_tokens  # all that Jina and Voyage tell
            if flight.sample is not None:
                flight.sample.hear(body)
            sort = response.headers.get("content-type", "")
            known = (
                body.removeprefix(BOM).lstrip()[:1] in JSON
                or sort.startswith(MEDIA)
                or flight.opaque
            )
            if flight.usage is None and not known:
                engine.failed(now_s, self.settings.retries)
                raise errors.upstream_failed(
                    f"The backend {engine.name} answered with something that is not JSON."
                )
        else:
            flight.outcome = "failed"
        headers.append(_length(str(len(body))))
        headers.append(overhead(flight, now_s))
        await self._send(flight, send, response.status, headers, body)
        if can_keep(keep) and response.status == 200 and flight.usage is not None:
            await self._keep(flight, keep, response, body)

    async def _relay(
        self,
        flight: Flight,
        response: aiohttp.ClientResponse,
        headers: RawHeaders,
        send: Send,
    ) -> None:
        """Pass on an answer too large to be held, such as audio, as it comes."""
        headers.append(overhead(flight, time.monotonic()))
        flight.headers_sent = True
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        async for chunk in response.content.iter_any():
            flight.deadline_s = time.monotonic() + self.settings.time.between_chunks_s
            flight.sending = True
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            flight.sending = False
        flight.deadline_s = None
        _left(flight)
        flight.body_sent = True
        flight.end_s = time.monotonic()
        if (written := self._book(flight)) is not None:
            await self.accounts.on_disk(written)
        await send({"type": "http.response.body", "body": b""})

    async def _stream(
        self,
        flight: Flight,
        response: aiohttp.ClientResponse,
        headers: RawHeaders,
        send: Send,
        hide_usage: bool,
        keep: Admitted | None,
        engine: Engine,
    ) -> None:
        """Pass events on as they come; note first token, usage and end."""
        gap_s = self.settings.time.between_chunks_s
        watcher = StreamWatcher(hide_usage=hide_usage)
        readany = response.content.readany
        clock = time.monotonic
        held: list[bytes] | None = [] if can_keep(keep) and response.status == 200 else None
        room = self.settings.cache.max_answer_bytes
        now_s = clock()
        flight.deadline_s = now_s + gap_s
        noted_s = 0.0  # when progress was last noted
        broken: ApiError | None = None
        headers.append(overhead(flight, now_s))
        try:
            while chunk := await readany():
                now_s = clock()
                flight.deadline_s = now_s + gap_s
                out = watcher.feed(chunk)
                if watcher.events != flight.events:
                    flight.events = watcher.events
                    if flight.first_token_s is None:
                        flight.first_token_s = now_s
                        noted_s = now_s
                        if flight.begins is not None:
                            flight.begins.first_token(now_s)
                    elif now_s - noted_s > PROGRESS_S and len(flight.progress) < MAX_PROGRESS:
                        noted_s = now_s
                        flight.progress.append((now_s, float(watcher.events)))
                if watcher.done and not flight.booked:  # clients read no further than this
                    flight.usage, flight.end_s = watcher.usage, now_s
                    if watcher.failed:
                        flight.outcome = "failed"
                    if (written := self._book(flight)) is not None:
                        await self.accounts.on_disk(written)
                flight.sending = True
                if not flight.headers_sent:
                    flight.headers_sent = True
                    await send(
                        {
                            "type": "http.response.start",
                            "status": response.status,
                            "headers": headers,
                        }
                    )
                if out:
                    if flight.sample is not None:
                        flight.sample.hear(out)
                    if held is not None:
                        held.append(out)
                        room -= len(out)
                        if room < 0:
                            held = None  # too large to be kept
                    await send({"type": "http.response.body", "body": out, "more_body": True})
                flight.sending = False
            rest = watcher.end()
            ended = watcher.done or watcher.finished or watcher.failed or flight.opaque
            if not ended and response.status < 400:
                broken = errors.upstream_failed(
                    f"The backend {engine.name} ended the stream before the answer was complete."
                )
        except (aiohttp.ClientError, OSError, asyncio.CancelledError) as error:
            rest = b""
            broken = self._broken(flight, engine, error, fault=not watcher.done)
            broken = None if watcher.done else broken  # nothing is missing after "[DONE]"
        finally:
            flight.usage = watcher.usage
            flight.deadline_s = None
            flight.end_s = clock()
            _left(flight)
        if broken is not None:
            if not flight.headers_sent:
                raise broken
            flight.error = broken
            flight.outcome = "failed"
            rest = rest + b"data: " + broken.body() + b"\n\n"
        elif watcher.failed:
            flight.outcome = "failed"
        if not flight.headers_sent:
            flight.headers_sent = True
            await send(
                {"type": "http.response.start", "status": response.status, "headers": headers}
            )
        flight.body_sent = True
        if (written := self._book(flight)) is not None:
            await self.accounts.on_disk(written)
        await send({"type": "http.response.body", "body": rest})
        if held is not None and watcher.done and not watcher.failed and broken is None:
            await self._keep(flight, keep, response, b"".join(held) + rest)

    def _broken(
        self, flight: Flight, engine: Engine, error: BaseException, *, fault: bool = True
    ) -> ApiError:
        """What a failure in the middle of an answer means. Re-raises when the client left."""
        late = isinstance(error, asyncio.CancelledError)
        if late:
            if flight.late is None:
                raise error
            asyncio.current_task().uncancel()  # type: ignore[union-attr]
            flight.late = None
        if fault:
            engine.failed(time.monotonic(), self.settings.retries)
        if late:
            return errors.upstream_timeout(f"The backend {engine.name} stopped sending.")
        return errors.upstream_failed(
            f"The backend {engine.name} broke off before the answer was complete."
        )

    # -- answering -----------------------------------------------------------------------------

    def _headers(self, flight: Flight, engine: Engine, warnings: RawHeaders) -> RawHeaders:
        """Our own response headers."""
        headers = [
            (b"x-request-id", flight.request_id.encode()),
            (b"x-joulegate-backend", engine.name.encode()),
            (b"x-joulegate-policy", flight.policy.encode()),
            (b"x-joulegate-cache", flight.cache.encode()),
        ]
        estimate = flight.estimate if not flight.earlier else whole(flight)
        if estimate is not None:
            headers += estimate_headers(estimate)
        if flight.budget is not None:
            headers.append((b"x-joulegate-answer-budget", flight.budget.name.encode()))
        if flight.earlier:
            first = next((a.backend for a in flight.earlier if a.kind == "answer"), None)
            if first is not None:
                headers.append((b"x-joulegate-escalated-from", first.encode()))
        if engine.facts.simulated:
            headers.append((b"x-joulegate-simulated", b"true"))
        return headers + warnings

    async def _send(
        self, flight: Flight, send: Send, status: int, headers: RawHeaders, body: bytes
    ) -> None:
        flight.headers_sent = True
        if flight.end_s is None:
            flight.end_s = time.monotonic()
        flight.body_sent = True
        if (written := self._book(flight)) is not None:
            await self.accounts.on_disk(written)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer_from_cache(self, flight: Flight, answer: Answer, send: Send) -> None:
        if flight.cache == "miss":
            flight.cache = "hit"
        flight.status = 200
        now_s = flight.end_s = time.monotonic()
        headers: RawHeaders = [
            (b"content-type", answer.content_type),
            (b"x-request-id", flight.request_id.encode()),
            (b"x-joulegate-backend", answer.backend.encode()),
            (b"x-joulegate-policy", b"cache"),
            (b"x-joulegate-cache", flight.cache.encode()),
            (b"x-joulegate-energy-j", b"0"),
            (b"x-joulegate-energy-range-j", b"0-0"),
            (b"x-joulegate-carbon-g", b"0"),
            (b"x-joulegate-evidence", answer.evidence.encode()),
            overhead(flight, now_s),
            _length(str(len(answer.body))),
        ]
        await self._send(flight, send, 200, headers, answer.body)

    async def _keep(
        self,
        flight: Flight,
        admitted: Admitted | None,
        response: aiohttp.ClientResponse,
        body: bytes,
    ) -> None:
        if (
            admitted is None
            or admitted.cache_key is None
            or len(body) > self.settings.cache.max_answer_bytes
            or flight.engine is None
            or flight.engine.group != flight.cache_group  # a fallback's answer, or a thriftier one
            or not cache.keepable(response.headers, body)
            or flight.budget is not None  # the next one may ask for a whole answer
        ):
            return
        usage, estimate = flight.usage, whole(flight)
        answer = Answer(
            content_type=response.headers.get("content-type", "application/json").encode(),
            body=body,
            backend=flight.engine.name,
            prompt_tokens=usage.prompt_tokens if usage else None,
            output_tokens=usage.completion_tokens if usage else None,
            energy_j=estimate.energy_j.mid if estimate and estimate.energy_j else None,
            evidence=str(estimate.evidence) if estimate else "unknown",
            made_s=flight.start_wall_s,
        )
        await self.gate.keep(admitted, cache.pack(answer), self.settings.cache.ttl_s)
        flight.kept = True
        if flight.question is not None:
            prompt = await self.small.submit(flight.question.prompt)
            self.similar.add(flight.question.scope, prompt, admitted.cache_key)

    async def _cached(
        self,
        flight: Flight,
        caller: Caller,
        admitted: Admitted,
        wishes: Wishes,
        receive: Receive,
    ) -> Answer | None:
        """The answer from the cache, also when another request is just fetching it."""
        stored = admitted.admission.cached
        if stored is None and not admitted.admission.leads:
            watching = self._watch(flight, receive)  # whoever waits may also leave
            try:
                stored = await self.gate.wait(admitted, self.gate.claim_s)
            finally:
                if watching is not None:
                    watching.cancel()
        oldest_s = 0.0
        if wishes.max_age_s is not None and not wishes.no_cache:
            oldest_s = flight.start_wall_s - wishes.max_age_s
            stored = await self.gate.look(admitted, admitted.cache_key)
        if stored is None and flight.question is not None and not wishes.no_cache:
            stored = await self._alike(flight, caller, admitted)
        answer = cache.unpack(stored) if stored is not None else None
        if answer is None or answer.made_s < oldest_s:
            flight.cache = "miss" if flight.cache == "similar" else flight.cache
            return None
        return answer

    async def _alike(self, flight: Flight, caller: Caller, admitted: Admitted) -> bytes | None:
        """The answer to a prompt that asks the same in other words, where the team wants that."""
        question, threshold = flight.question, caller.similar_answers
        assert question is not None
        assert threshold is not None
        prompt = await self.small.submit(question.prompt)
        other = self.similar.find(question.scope, prompt, threshold)
        if other is None or other == admitted.cache_key:
            return None
        stored = await self.gate.look(admitted, other)
        if stored is None:
            self.similar.drop(question.scope, prompt, other)
        else:
            flight.cache = "similar"
        return stored

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

    async def _refuse(self, flight: Flight, error: ApiError, send: Send) -> None:
        """Send an error, unless the answer has begun already."""
        flight.error = error
        flight.status = error.status
        flight.outcome = "refused" if flight.attempts == 0 else "failed"
        if flight.headers_sent:
            return
        body = error.body()
        headers = error.headers()
        headers.append((b"x-request-id", flight.request_id.encode()))
        if flight.engine is not None:
            headers.append((b"x-joulegate-backend", flight.engine.name.encode()))
        if flight.policy:
            headers.append((b"x-joulegate-policy", flight.policy.encode("latin-1", "replace")))
        headers.append((b"x-joulegate-cache", flight.cache.encode()))
        estimate = whole(flight)
        if estimate is not None:
            headers += estimate_headers(estimate)
        headers.append(overhead(flight, time.monotonic()))
        headers.append(_length(str(len(body))))
        try:
            await self._send(flight, send, error.status, headers, body)
        except OSError:
            log.debug("%s: the client was gone before its error", flight.request_id)


LONGEST_NAME = 256  # characters of a model's name
JSON = (b"{", b"[")  # how an answer in JSON begins
MEDIA = ("audio/", "image/", "video/", "application/octet-stream")  # answers that are not JSON
EVENTS = "text/event-stream"
EVENT_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")  # how a stream of events begins
BOM = b"\xef\xbb\xbf"
MAX_HELD_BYTES = 8_388_608  # larger answers are relayed without being read
MAX_PROGRESS = 4_096
PROGRESS_S = 0.1  # a stream's progress is noted this often, for dividing windows of a second
NOT_IMPLEMENTED = 501  # llama.cpp's word for embeddings where it was started for chats
UNPROCESSABLE = frozenset({400, 422})
USAGE_ON_REQUEST = frozenset({"chat.completions", "completions"})


def estimate_headers(estimate: Estimate) -> RawHeaders:
    """The estimate as response headers; an unknown figure is left out."""
    headers = [(b"x-joulegate-evidence", estimate.evidence.encode())]
    energy = estimate.energy_j
    if energy is not None:
        headers.append((b"x-joulegate-energy-j", b"%.4g" % energy.mid))
        headers.append((b"x-joulegate-energy-range-j", b"%.4g-%.4g" % (energy.low, energy.high)))
    if estimate.carbon_g is not None:
        headers.append((b"x-joulegate-carbon-g", b"%.4g" % estimate.carbon_g.mid))
    return headers


def overhead(flight: Flight, now_s: float) -> tuple[bytes, bytes]:
    """The time until now that was ours, not the upstream's."""
    ours_ms = max(0.0, (now_s - flight.start_s - flight.wait_s) * 1e3)
    return b"x-joulegate-overhead-ms", b"%.2f" % ours_ms


def inflate(body: bytes, encoding: bytes, limit: int) -> bytes:
    """A compressed body, at most ``limit`` bytes of it. Raises ApiError 400 or 413."""
    inflater = zlib.decompressobj(zlib.MAX_WBITS | (16 if encoding != b"deflate" else 0))
    try:
        out = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise errors.invalid_body(
            f"The body is not valid {encoding.decode()}: {error}.", code="invalid_encoding"
        ) from None
    if len(out) > limit:
        raise errors.body_too_large(limit)
    if not inflater.eof:
        raise errors.invalid_body("The compressed body is cut off.", code="invalid_encoding")
    return out


def _within_budget(flight: Flight, body: bytes, budget: AnswerBudget | None) -> bytes:
    """The body as the budget has it; the answer is then no example of the backend's own."""
    flight.budget = budget
    if budget is None:
        return body
    flight.sample = None
    return rewrite.with_fields(body, lambda asked: applied(asked, budget))


def _left(flight: Flight) -> None:
    """Take a request's load off its engine again, once; a probe that ends so lets another in."""
    engine = flight.loads
    if engine is None:
        return
    flight.loads = None
    if flight.begins is not None:
        if flight.first_token_s is not None:  # its prompt may have been read after that
            flight.begins.first_token(flight.first_token_s)
        elif not flight.stream and 200 <= flight.status < 300:
            flight.begins.first_token(time.monotonic())
        flight.begins.ended()
    engine.ended(flight.context_tokens)
    flight.context_tokens = 0
    if flight.probes:
        engine.probing = flight.probes = False


def _refused_usage(engine: Engine | None, answered: Engine | None, status: int) -> None:
    """Note an engine that takes a request only without being asked for usage. One that refuses it
    in any case may have quoted the request in its reason, as vLLM does, and meant something else.
    """
    if engine is not None and engine is answered and status < 400:
        engine.refuses_usage = True
        log.warning("backend %s refuses stream_options: not asked for usage", engine.name)


def can_keep(admitted: Admitted | None) -> bool:
    """Whether the answer may go into the cache."""
    return admitted is not None and admitted.cache_key is not None


def _length(value: str) -> tuple[bytes, bytes]:
    return b"content-length", value.encode()


def _count_later(flight: Flight, done: asyncio.Future[tuple[int, Prompt, str | None, str]]) -> None:
    """A count that came late still goes into the record."""
    if done.cancelled() or done.exception() is not None or flight.features is None:
        return
    flight.features = msgspec.structs.replace(
        flight.features, prompt_tokens=done.result()[0], prompt_tokens_counted=True
    )
    flight.blocks, engine = done.result()[1].blocks, flight.engine
    if engine is not None and engine.prefixes is not None and flight.loads is engine:
        flight.begins = engine.prefixes.sent(flight.blocks)
