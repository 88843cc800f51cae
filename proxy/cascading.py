"""Cascades on the request path: a thrifty backend's answer is held, checked, and kept or replaced.

Nothing has gone to the client while an answer is held, so another can take its place. Both are on
the books: the first as an activity of the same request on its own node, its estimate beside the
second's. policies/cascade.py says when this pays, and what speaks against an answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import aiohttp
import msgspec
import orjson

from policies.cascade import Checks, faults
from proxy import upstream
from proxy.backends import upstream_model
from proxy.endings import broken, left
from proxy.errors import ApiError
from proxy.features import Peek
from proxy.flight import Attempt, Flight
from proxy.outgoing import Outgoing
from proxy.rewrite import with_fields
from proxy.routing import Routed, Router
from proxy.settings import Settings
from proxy.sse import StreamWatcher, usage_in

MOST_HELD = 8_388_608  # a longer answer goes out unchecked
JUDGE_TOKENS = 4
VERDICT = (
    "Below are a request and an answer to it. Does the answer do what was asked, correctly and "
    "completely? Reply with one word, yes or no.\n\n# Request\n{request}\n\n# Answer\n{answer}"
)


class Answer(msgspec.Struct):
    """What checks look at in one answer: its choices' texts and how they ended."""

    texts: list[str]
    finishes: list[str | None]
    calls: bool = False  # a tool is called
    logprobs: list[float] = []
    complete: bool = True


Open = Callable[[Flight, Outgoing, Routed], Awaitable[aiohttp.ClientResponse]]


class Cascading:
    """Serves the requests that a policy gave to a thrifty backend first."""

    def __init__(self, router: Router, client: upstream.Upstream, open: Open) -> None:
        """``open`` sends a request and gives the first response worth passing on."""
        self.router = router
        self.client = client
        self.open = open

    async def answered(
        self,
        flight: Flight,
        outgoing: Outgoing,
        routed: Routed,
        request: Peek,
        settings: Settings,
    ) -> aiohttp.ClientResponse:
        """The first answer where it passes, else the response of the backend after it. The first
        is kept, faulty as it is, where nobody else answers."""
        checks = routed.needs.cascade or Checks()
        # Not in a stream: there they could not be taken out again without writing it anew.
        asks = checks.least_mean_logprob is not None and not flight.stream
        asks = asks and not bytes(request.logprobs)
        asking = outgoing
        if asks:
            body = with_fields(outgoing.body, lambda fields: {**fields, "logprobs": True})
            asking = outgoing.with_body(body)
        response = await self.open(flight, asking, routed)
        assert flight.engine is not None
        if flight.served_by == routed.decision.escalate_to or response.status != 200:
            return response
        held, against = await self._held(flight, routed, request, response, checks, settings, asks)
        if held is not None and not against:
            return held
        before = (flight.engine, flight.usage, flight.first_token_s, flight.sent_s)
        before_too = (flight.events, flight.estimate, flight.attempts, flight.budget)
        following = _following(routed, flight.served_by)
        place = len(flight.earlier)
        self._replaced(flight, against)
        try:
            response = await self.open(flight, outgoing, following)
            if response.status < 500 or held is None:
                return response
            response.close()
            left(flight)
        except ApiError:
            if held is None:
                raise
        del flight.earlier[place]
        flight.engine, flight.usage, flight.first_token_s, flight.sent_s = before
        flight.events, flight.estimate, flight.attempts, flight.budget = before_too
        return held

    async def _held(
        self,
        flight: Flight,
        routed: Routed,
        request: Peek,
        response: aiohttp.ClientResponse,
        checks: Checks,
        settings: Settings,
        asked: bool,
    ) -> tuple[aiohttp.ClientResponse | None, list[str]]:
        """The first answer, whole, and what speaks against it; None where it broke off.

        Raises CancelledError when the client left.
        """
        engine, passing = flight.engine, self.router.passing
        assert engine is not None
        length = response.headers.get("content-length", "")
        if length.isdigit() and int(length) > MOST_HELD:
            return response, []
        try:
            body, complete = await self._read(flight, response, settings)
        except (aiohttp.ClientError, OSError, asyncio.CancelledError) as error:
            broken(flight, error, settings.retries)
            passing.checked(routed.policy.name, False)
            return None, ["it broke off"]
        stream = response.headers.get("content-type", "").startswith("text/event-stream")
        if not stream:
            flight.usage = usage_in(body)
        if not complete:
            return cast(aiohttp.ClientResponse, upstream.Held(response, body, complete)), []
        answer = in_stream(body) if stream else in_body(body)
        against = wrong(answer, request, checks)
        if not against and checks.judge is not None and answer is not None:
            against = await self._judged(flight, checks.judge, answer, settings)
        passing.checked(routed.policy.name, not against)
        if asked and not stream:
            body = without_logprobs(body)
        return cast(aiohttp.ClientResponse, upstream.Held(response, body, complete)), against

    async def _read(
        self, flight: Flight, response: aiohttp.ClientResponse, settings: Settings
    ) -> tuple[bytes, bool]:
        """The answer, and whether it is all of it; notes what attribution wants to know."""
        watcher = StreamWatcher()
        stream = response.headers.get("content-type", "").startswith("text/event-stream")
        parts: list[bytes] = []
        size, begun_s = 0, time.monotonic()
        flight.deadline_s = begun_s + settings.time.between_chunks_s
        complete = True
        while chunk := await response.content.readany():
            now_s = time.monotonic()
            flight.deadline_s = now_s + settings.time.between_chunks_s
            parts.append(chunk)
            size += len(chunk)
            if stream:
                watcher.feed(chunk)
                if watcher.events and flight.first_token_s is None:
                    flight.first_token_s = now_s
                flight.events = watcher.events
            if size > MOST_HELD:
                complete = False
                break
        if stream:
            watcher.end()
            flight.usage = watcher.usage
        flight.deadline_s = None
        flight.wait_s += time.monotonic() - begun_s
        return b"".join(parts), complete

    async def _judged(
        self, flight: Flight, judge: str, answer: Answer, settings: Settings
    ) -> list[str]:
        """What a judge says against the answer; nothing where it cannot be asked."""
        engines, told = self.router.pool.serving(judge), flight.features
        if not engines or told is None:
            return []
        engine = engines[0]
        asked = VERDICT.format(request=told.text, answer="\n\n".join(answer.texts))
        body = orjson.dumps(
            {
                "model": upstream_model(engine, judge),
                "messages": [{"role": "user", "content": asked}],
                "max_tokens": JUDGE_TOKENS,
                "temperature": 0,
            }
        )
        sent_s = time.monotonic()
        headers = upstream.request_headers({}, engine, flight.request_id)
        engine.started(0)
        try:
            async with asyncio.timeout(settings.time.first_byte_s):
                response = await self.client.post(engine, "/chat/completions", body, headers)
                said, _ = await upstream.beginning(response, upstream.MAX_HELD_BYTES)
                response.close()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return []
        finally:
            engine.ended(0)
            flight.wait_s += time.monotonic() - sent_s
        usage, verdict = usage_in(said), in_body(said)
        written = usage.prompt_tokens if usage else None
        judging = msgspec.structs.replace(
            told,
            prompt_tokens=written or told.prompt_tokens + flight.events,
            max_tokens=JUDGE_TOKENS,
            cached_prompt_tokens=0,
        )
        (candidate,) = self.router.candidates(judging, [engine], time.monotonic())
        flight.earlier.append(
            Attempt(
                kind="judge",
                backend=engine.name,
                node=engine.node,
                hosted=engine.facts.engine == "api",
                sent_s=sent_s,
                end_s=time.monotonic(),
                first_token_s=None,
                prompt_tokens=usage.prompt_tokens if usage else None,
                output_tokens=usage.completion_tokens if usage else None,
                estimate=candidate.estimate,
            )
        )
        no = verdict is not None and verdict.texts and "no" in _words(verdict.texts[0])
        return [f"{engine.name} judged that it will not do"] if no else []

    def _replaced(self, flight: Flight, against: list[str]) -> None:
        """Put the first answer on the books as an attempt of this request, and clear the way."""
        engine, usage = flight.engine, flight.usage
        assert engine is not None
        left(flight)
        flight.earlier.append(
            Attempt(
                kind="answer",
                backend=engine.name,
                node=engine.node,
                hosted=engine.facts.engine == "api",
                sent_s=flight.sent_s or flight.start_s,
                end_s=time.monotonic(),
                first_token_s=flight.first_token_s,
                prompt_tokens=usage.prompt_tokens if usage else None,
                output_tokens=(usage.completion_tokens if usage else None) or flight.events or None,
                estimate=flight.estimate,
                against="; ".join(against),
                answer_budget=flight.budget.name if flight.budget is not None else None,
            )
        )
        flight.tried += flight.attempts
        flight.usage = flight.first_token_s = flight.sent_s = None
        flight.events = 0


def _following(routed: Routed, first: str) -> Routed:
    """The decision without the candidate that answered first, the one to escalate to in front."""
    last = routed.decision.escalate_to
    places = [place for place, name in enumerate(routed.names) if name != first]
    places.sort(key=lambda place: routed.names[place] != last)
    return msgspec.structs.replace(
        routed,
        names=tuple(routed.names[place] for place in places),
        engines=tuple(routed.engines[place] for place in places),
        budgets=tuple(routed.budgets[place] for place in places) if routed.budgets else (),
    )


def wrong(answer: Answer | None, request: Peek, checks: Checks) -> list[str]:
    """What speaks against an answer."""
    if answer is None or not answer.texts:
        return ["it cannot be read"]
    if not answer.complete:
        return ["it broke off"]
    found: list[str] = []
    schema = schema_in(bytes(request.response_format))
    logprobs = answer.logprobs
    for text, finish in zip(answer.texts, answer.finishes, strict=True):
        found += faults(
            text,
            finish_reason=finish,
            schema=None if answer.calls else schema,
            # A tool's call says nothing else; the limit on length is then the caller's own.
            least_characters=0 if answer.calls else checks.least_characters,
            mean_logprob=sum(logprobs) / len(logprobs) if logprobs else None,
            least_mean_logprob=checks.least_mean_logprob,
        )
    return list(dict.fromkeys(found))


def schema_in(response_format: bytes) -> dict[str, Any] | None:
    """The JSON schema that a request asks its answer to fit; ``{}`` for any JSON object."""
    if not response_format:
        return None
    try:
        given = orjson.loads(response_format)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(given, dict):
        return None
    if given.get("type") == "json_object":
        return {"type": "object"}
    schema = (given.get("json_schema") or {}).get("schema")
    return schema if isinstance(schema, dict) else None


def in_body(body: bytes) -> Answer | None:
    """The answer in a chat completion; None where there is none."""
    try:
        choices = orjson.loads(body)["choices"]
        texts = [choice["message"].get("content") or "" for choice in choices]
        return Answer(
            texts=[text if isinstance(text, str) else str(text) for text in texts],
            finishes=[choice.get("finish_reason") for choice in choices],
            calls=any(choice["message"].get("tool_calls") for choice in choices),
            logprobs=[p for choice in choices for p in _logprobs(choice)],
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None


def in_stream(body: bytes) -> Answer | None:
    """The answer in the events of a streamed chat completion."""
    texts: dict[int, list[str]] = {}
    finishes: dict[int, str | None] = {}
    calls, logprobs = False, []
    try:
        for event in _events(body):
            if "error" in event:
                return Answer([""], [None], complete=False)
            for choice in event.get("choices") or ():
                index, delta = choice.get("index", 0), choice.get("delta") or {}
                texts.setdefault(index, []).append(delta.get("content") or "")
                calls = calls or bool(delta.get("tool_calls"))
                finishes[index] = choice.get("finish_reason") or finishes.get(index)
                logprobs += _logprobs(choice)
    except (orjson.JSONDecodeError, TypeError, AttributeError):
        return None
    return Answer(
        texts=["".join(texts[index]) for index in sorted(texts)],
        finishes=[finishes.get(index) for index in sorted(texts)],
        calls=calls,
        logprobs=logprobs,
        complete=bool(finishes) and all(finishes.values()),
    )


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    for line in body.splitlines():
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data and data != b"[DONE]":
                yield orjson.loads(data)


def _logprobs(choice: dict[str, Any]) -> list[float]:
    tokens = (choice.get("logprobs") or {}).get("content") or ()
    return [token["logprob"] for token in tokens if token.get("logprob") is not None]


def without_logprobs(body: bytes) -> bytes:
    """The answer as it would have been had nobody asked for log-probabilities."""
    try:
        answer = orjson.loads(body)
        for choice in answer["choices"]:
            choice["logprobs"] = None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return body
    return orjson.dumps(answer)


def _words(text: str) -> set[str]:
    return {word.strip(".,!:*\"'").lower() for word in text.split()}
