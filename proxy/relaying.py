"""Passes a backend's answer on: whole, as it comes, or as a stream of events."""

from __future__ import annotations

import asyncio
import re
import time
from typing import cast

import aiohttp

from proxy import errors
from proxy.answering import Answering, content_length, overhead
from proxy.asgi import RawHeaders, Send
from proxy.backends import Engine
from proxy.cache import FUNCTIONS
from proxy.cached_answers import CachedAnswers, can_keep
from proxy.endings import broken, left
from proxy.errors import ApiError
from proxy.flight import Admitted, Flight
from proxy.kept_responses import KeptResponses
from proxy.settings import Settings
from proxy.sse import StreamWatcher, TokenUsage, usage_in, usage_in_part
from proxy.upstream import MAX_HELD_BYTES, Held, beginning

BOM = b"\xef\xbb\xbf"
JSON = (b"{", b"[")  # how an answer in JSON begins
IS_ERROR = re.compile(rb'\s*\{\s*"error"\s*:\s*\{')
MEDIA = ("audio/", "image/", "video/", "application/octet-stream")  # answers that are not JSON
EDGE_BYTES = 4_096  # of their beginnings and ends, where the usage stands
MAX_PROGRESS = 4_096
PROGRESS_S = 0.1  # a stream's progress is noted this often, for dividing windows of a second


class Relaying:
    """Hands answers through and notes their usage, first token and end."""

    def __init__(self, settings: Settings, answering: Answering, cached: CachedAnswers) -> None:
        self.settings = settings
        self.answering = answering
        self.cached = cached
        self.kept_responses = KeptResponses()

    async def whole(
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
                await self._relay(flight, response, [*headers, content_length(length)], send)
                return
            if length is not None:
                body = await response.read()
            else:
                body, all_of_it = await beginning(response, MAX_HELD_BYTES)
                if not all_of_it:
                    response = cast(aiohttp.ClientResponse, Held(response, body, False))
                    await self._relay(flight, response, headers, send)
                    return
        except (aiohttp.ClientError, OSError, asyncio.CancelledError) as error:
            raise broken(flight, error, self.settings.retries) from error
        now_s = time.monotonic()
        flight.wait_s += now_s - begun_s
        flight.deadline_s = None
        left(flight)  # however slowly the client reads
        flight.first_token_s = None  # a whole answer does not say when its first token came
        flight.end_s = now_s
        if response.status < 400:
            flight.usage = _for(flight, usage_in(body))
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
            if IS_ERROR.match(body):  # whatever its status says
                flight.outcome = "failed"
            if flight.endpoint == "responses":
                self._keeps(flight, engine, body)
        else:
            flight.outcome = "failed"
        headers.append(content_length(str(len(body))))
        headers.append(overhead(flight, now_s))
        await self.answering.send(flight, send, response.status, headers, body)
        fine = response.status == 200 and flight.outcome == "ok"
        if can_keep(keep) and fine and flight.usage is not None:
            await self.cached.keep(flight, keep, response, body)

    def _keeps(self, flight: Flight, engine: Engine, answer: bytes) -> None:
        if flight.caller is not None and not engine.bridges("/responses"):
            self.kept_responses.note(flight.caller.team, engine.name, answer)

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
        first = last = b""
        while chunk := await response.content.readany():
            first, last = first or chunk[:EDGE_BYTES], (last + chunk)[-EDGE_BYTES:]
            flight.deadline_s = time.monotonic() + self.settings.time.between_chunks_s
            flight.sending = True
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            flight.sending = False
        flight.deadline_s = None
        left(flight)
        flight.body_sent = True
        flight.end_s = time.monotonic()
        if response.status < 400:
            flight.usage = _for(flight, usage_in_part(last) or usage_in_part(first))
        await self.answering.book(flight)
        await send({"type": "http.response.body", "body": b""})

    async def stream(
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
        failure: ApiError | None = None
        headers.append(overhead(flight, now_s))
        try:
            while chunk := await readany():
                now_s = clock()
                flight.deadline_s = now_s + gap_s
                out = watcher.feed(chunk)
                flight.typed_events = watcher.typed
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
                if watcher.complete and not flight.booked:  # clients read no further than this
                    flight.usage, flight.end_s = watcher.usage, now_s
                    if watcher.failed or response.status >= 400:
                        flight.outcome = "failed"
                    await self.answering.book(flight)
                flight.sending = True
                if not flight.headers_sent:
                    flight.headers_sent = True
                    if flight.endpoint == "responses":
                        self._keeps(flight, engine, chunk)
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
            midway = watcher.midway
            rest = watcher.end()
            ended = watcher.done or watcher.finished or watcher.failed or flight.opaque
            if not ended and response.status < 400:
                failure = errors.upstream_failed(
                    f"The backend {engine.name} ended the stream before the answer was complete."
                )
        except (aiohttp.ClientError, OSError, asyncio.CancelledError) as error:
            rest, midway = b"", watcher.midway
            failure = broken(flight, error, self.settings.retries, fault=not watcher.complete)
            failure = None if watcher.complete else failure  # nothing is missing
        finally:
            flight.usage = watcher.counts
            flight.deadline_s = None
            flight.end_s = clock()
            left(flight)
        if failure is not None:
            if not flight.headers_sent:
                raise failure
            flight.error = failure
            flight.outcome = "failed"
            rest = (b"\n\n" if midway else b"") + failure.event(flight.endpoint, watcher.typed)
        elif watcher.failed or response.status >= 400:
            flight.outcome = "failed"
        if not flight.headers_sent:
            flight.headers_sent = True
            await send(
                {"type": "http.response.start", "status": response.status, "headers": headers}
            )
        flight.body_sent = True
        await self.answering.book(flight)
        await send({"type": "http.response.body", "body": rest})
        if held is not None and watcher.done and not watcher.failed and failure is None:
            await self.cached.keep(flight, keep, response, b"".join(held) + rest)


def _for(flight: Flight, usage: TokenUsage | None) -> TokenUsage | None:
    """An answer's usage, where nothing is written with all tokens as the prompt's."""
    if usage is not None and usage.prompt_tokens is None and flight.endpoint in FUNCTIONS:
        usage.prompt_tokens = usage.total_tokens  # all that Jina and Voyage tell
    return usage
