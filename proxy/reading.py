"""What a client sent: its body whole, and what estimators look at in it.

A short prompt is read in the event loop, all that takes long in threads of its own.
"""

from __future__ import annotations

import asyncio
import zlib

import msgspec

from estimators.text import coarse_task
from estimators.types import Features
from meters.prefixes import blocks_of
from proxy import errors, features
from proxy.asgi import Receive
from proxy.auth import Caller
from proxy.errors import ApiError
from proxy.features import Peek, Prompt
from proxy.flight import Flight
from proxy.forms import Form, form_of
from proxy.routing import Router
from proxy.tokens import PATIENCE_S, TokenCounter, Uncountable, Worker, guess

SHORT_BODY = 4_096  # bytes: counted in 0.1 ms, and in 0.6 ms whatever they are


class Gone(Exception):
    """The client left before its request was complete."""


class Reading:
    """Reads requests. Used from the event loop only."""

    def __init__(
        self,
        router: Router,
        counter: TokenCounter,
        max_body_bytes: int,
    ) -> None:
        self.router = router
        self.counter = counter
        self.max_body_bytes = max_body_bytes
        self.small = Worker("joulegate-tokens")
        self.large = Worker("joulegate-tokens-large")

    def close(self) -> None:
        self.small.close()
        self.large.close()

    async def body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
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

    async def form(self, body: bytes, content_type: bytes) -> Form:
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
        task: str | None
        counted = self.counter.exact
        if len(body) <= SHORT_BODY:
            prompt = features.prompt_of(request)
            tokens = self._count(request, prompt) + prompt.overhead_tokens
            task = coarse_task(prompt.last)
        else:
            reading = self.large.submit(lambda: self._read(request, flight))
            try:
                tokens, prompt, task = await asyncio.wait_for(asyncio.shield(reading), PATIENCE_S)
            except (TimeoutError, Uncountable):
                tokens, counted, prompt, task = guess(len(body)), False, None, None
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
            text="" if prompt is None else prompt.last,
            team=caller.team,
            cached_tokens=cached,
        )
        return flight.features

    def _read(self, request: Peek, flight: Flight) -> tuple[int, Prompt, str | None]:
        if flight.end_s is not None:  # counting falls behind: only who still waits is served
            raise Uncountable
        prompt = features.prompt_of(request)
        tokens = self._count(request, prompt) + prompt.overhead_tokens
        return tokens, prompt, coarse_task(prompt.last)

    def _count(self, request: Peek, prompt: Prompt) -> int:
        if self.router.pool.remembers and not prompt.images:
            prompt.blocks = blocks_of(prompt.text, (request.model, bytes(request.tools)))
        return self.counter.count(prompt.texts)


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


def _count_later(flight: Flight, done: asyncio.Future[tuple[int, Prompt, str | None]]) -> None:
    """A count that came late still goes into the record."""
    if done.cancelled() or done.exception() is not None or flight.features is None:
        return
    flight.features = msgspec.structs.replace(
        flight.features, prompt_tokens=done.result()[0], prompt_tokens_counted=True
    )
    flight.blocks, engine = done.result()[1].blocks, flight.engine
    if engine is not None and engine.prefixes is not None and flight.loads is engine:
        flight.begins = engine.prefixes.sent(flight.blocks)
