"""Calling providers through the litellm SDK, which is imported only when a config names one; and
answering ``/responses`` and ``/messages`` over the chat completions of backends that have no more.

An answer looks like an aiohttp response to the request path: status, headers, bytes.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import re
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextvars import ContextVar
from typing import Any

from multidict import CIMultiDict

from proxy.backends import Engine
from proxy.errors import upstream_failed
from proxy.providers import messages_streams
from proxy.providers.refusals import (
    Refusal,
    as_message,
    refusal_of,
    refused,
    untranslatable,
)

log = logging.getLogger("joulegate.litellm")

# What of a request reaches the SDK. It takes many more names than the APIs have, and some of them
# choose where a call goes, with which key or headers: none of those may come from a request.
PASSED_ON = frozenset(
    {
        "audio",
        "best_of",
        "dimensions",
        "echo",
        "encoding_format",
        "frequency_penalty",
        "function_call",
        "functions",
        "input",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "modalities",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt",
        "reasoning_effort",
        "response_format",
        "seed",
        "service_tier",
        "stop",
        "stream",
        "stream_options",
        "suffix",
        "temperature",
        "thinking",
        "tool_choice",
        "tools",
        "top_k",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
    }
)

RESPONSES_PASSED_ON = frozenset(
    {
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "metadata",
        "parallel_tool_calls",
        "reasoning",
        "store",
        "stream",
        "temperature",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "truncation",
        "user",
    }
)
MESSAGES_PASSED_ON = frozenset(
    {
        "max_tokens",
        "messages",
        "metadata",
        "stop_sequences",
        "stream",
        "system",
        "temperature",
        "thinking",
        "tool_choice",
        "tools",
        "top_k",
        "top_p",
    }
)
# What needs a conversation to be kept somewhere: an answer without it would be another's.
NEEDS_STATE = ("previous_response_id", "conversation", "background", "prompt")
# How the SDK calls an OpenAI-compatible server when nothing but its chat completions is to be used.
OVER_CHAT = "hosted_vllm"

# Of a chunk, or a choice in it: what the SDK adds itself.
BARE = frozenset({"role", "index", "finish_reason", "provider_specific_fields"})
# How a message begins of which nothing is known yet.
NOBODY_COUNTED = b'"usage": {"input_tokens": 0, "output_tokens": 0'
# The SDK's names for what is no failure of a backend.
CLIENTS_OWN = {
    "AuthenticationError": 401,
    "BadRequestError": 400,
    "ContextWindowExceededError": 400,
    "NotFoundError": 404,
    "PermissionDeniedError": 403,
    "RateLimitError": 429,
}
LOGGERS = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy")
UNTRANSLATABLE = (
    "The request cannot be translated for the backend {}: a field of it has not the shape that it "
    "should have."
)
SENT: ContextVar[list[object] | None] = ContextVar("SENT", default=None)  # by the call under way

_sdk: Any = None


def sdk() -> Any:
    """The litellm package, kept from the network and from retries of its own."""
    global _sdk
    if _sdk is None:
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        _sdk = importlib.import_module("litellm")
        _sdk.telemetry = False
        for name in LOGGERS:  # what goes wrong is told by who calls it, without anybody's words
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        _sdk.suppress_debug_info = True
        _sdk.drop_params = True
        _sdk.disable_hf_tokenizer_download = True
        _sdk.use_chat_completions_url_for_anthropic_messages = True
        sys.modules[messages_streams.INSTEAD_OF] = messages_streams
        _notice_what_is_sent()
        # What its first call imports takes a second, of which the event loop should know nothing.
        _sdk.completion(model="openai/any", messages=[], mock_response="warm")
    return _sdk


def _notice_what_is_sent() -> None:
    """From now on every call knows whether it sent anything: the SDK falls over a request that it
    cannot translate as it does over an answer that it cannot read."""
    client: Any = importlib.import_module("httpx").AsyncClient  # the SDK's own
    send = client.send

    async def noticed(self: object, *given: Any, **named: Any) -> Any:
        sent = SENT.get()
        if sent is not None:
            sent.append(self)
        return await send(self, *given, **named)

    client.send = noticed


class Bridged:
    """One answer of the SDK, with what the request path uses of an aiohttp response."""

    def __init__(
        self,
        status: int,
        content_type: str,
        chunks: AsyncIterator[bytes],
        more: Iterable[tuple[str, str]] = (),
    ) -> None:
        self.status = status
        self.headers: CIMultiDict[str] = CIMultiDict([("content-type", content_type), *more])
        self.raw_headers = tuple(
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in self.headers.items()
        )
        self.closed = False
        self._chunks = chunks
        self.content = self

    async def readany(self) -> bytes:
        return await anext(self._chunks, b"")

    async def iter_any(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            yield chunk

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self._chunks])

    def close(self) -> None:
        self.closed = True
        closing = getattr(self._chunks, "aclose", None)
        if closing is not None:
            task = asyncio.ensure_future(closing())
            task.add_done_callback(lambda done: done.cancelled() or done.exception())


async def post(engine: Engine, path: str, body: bytes) -> Bridged:
    """Call the provider; its errors come back as answers in OpenAI's shape."""
    litellm = sdk()
    fields = json.loads(body)
    settings = engine.settings
    model = fields.pop("model")
    over_chat = settings.provider == "openai"
    provider = OVER_CHAT if over_chat else settings.provider
    call, passed_on, events = {
        "/chat/completions": (litellm.acompletion, PASSED_ON, _chat_events),
        "/completions": (litellm.atext_completion, PASSED_ON, _chat_events),
        "/embeddings": (litellm.aembedding, PASSED_ON, _chat_events),
        "/responses": (litellm.aresponses, RESPONSES_PASSED_ON, _response_events),
        "/messages": (litellm.anthropic_messages, MESSAGES_PASSED_ON, _message_events),
    }.get(path, (None, frozenset(), _chat_events))
    if call is None:
        return _told(refused(404, f"{settings.provider} is not served at {path}."), path)
    odd = malformed(path, fields)
    if odd is not None:
        message = f"Invalid value for {odd!r}: it cannot be read as what it should be."
        return _told(refused(400, message), path)
    if path == "/responses":
        for name in NEEDS_STATE:
            if fields.get(name):
                message = (
                    f"{engine.name} is served over its chat completions, which keep nothing "
                    f"between requests: {name!r} cannot be used. Send the whole conversation."
                )
                return _told(refused(400, message), path)
    fields = {name: value for name, value in fields.items() if name in passed_on}
    fields.update(settings.litellm_params)
    fields["model"] = model if "/" in model and not over_chat else f"{provider}/{model}"
    fields["num_retries"] = 0
    if path == "/responses":
        fields["use_chat_completions_api"] = over_chat
    if settings.api_key or over_chat:
        fields["api_key"] = settings.api_key or "none"
    if settings.url:
        fields["api_base"] = settings.url
    stream = bool(fields.get("stream"))
    sent: list[object] = []
    SENT.set(sent)
    try:
        answer = await call(**fields)
        if stream:
            coming = events(answer)
            first = await anext(coming)  # some calls go out, and fail, only now
    except asyncio.CancelledError:
        raise
    except Exception as error:
        log.info("%s refused: %s", engine.name, type(error).__name__)
        if not sent and untranslatable(error):
            return _told(refused(400, UNTRANSLATABLE.format(engine.name)), path)
        refusal = refusal_of(error, engine.name, settings.api_key, path, over_chat)
        return _told(refusal, path)
    if stream:
        return Bridged(200, "text/event-stream", _unbroken(first, coming, path.lstrip("/")))
    return Bridged(200, "application/json", _once(_whole(answer)))


def _whole(answer: Any) -> bytes:
    """An answer that is not streamed. The SDK makes up a usage of nothing where a provider told
    none; nobody knows it then."""
    if isinstance(answer, dict):  # of Messages
        usage = answer.get("usage") or {}
        if not usage.get("input_tokens") and not usage.get("output_tokens"):
            answer = {**answer, "usage": None}
        return json.dumps(_with_signatures(answer)).encode()
    usage = getattr(answer, "usage", None)
    if usage is not None and getattr(usage, "total_tokens", None) == 0:
        answer.usage = None
    if getattr(answer, "object", None) == "response":
        return json.dumps(_with_summaries(answer.model_dump(mode="json"))).encode()
    return str(answer.model_dump_json()).encode()


def _with_signatures(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose thoughts are signed with nothing where the SDK has null for a signature:
    clients refuse the whole message for it."""
    for block in message.get("content") or ():
        if block.get("type") == "thinking" and block.get("signature") is None:
            block["signature"] = ""
    return message


def _with_summaries(response: dict[str, Any]) -> dict[str, Any]:
    """A response with its reasoning as OpenAI has it; the SDK makes a message of it, and clients
    fail where it has no ``summary``."""
    for item in response.get("output") or ():
        if item.get("type") == "reasoning" and "summary" not in item:
            said = "".join(part.get("text") or "" for part in item.pop("content", None) or ())
            item.pop("role", None)
            item["summary"] = [{"type": "summary_text", "text": said}] if said else []
    return response


def malformed(path: str, fields: Mapping[str, Any]) -> str | None:
    """The name of a field that has not the shape it must have; None where all have it. The SDK
    fails at one as it fails at a backend that is broken."""
    for name in ("messages", "tools"):
        value = fields.get(name)
        if value is not None and not _are_objects(value):
            return name
    if path == "/messages":
        for name in ("messages", "max_tokens"):
            if fields.get(name) in (None, []):
                return name
    given = fields.get("input")
    if path == "/responses" and not (isinstance(given, str) or _are_objects(given)):
        return "input"
    return None


def _are_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


async def _unbroken(
    first: bytes, events: AsyncIterator[bytes], endpoint: str
) -> AsyncIterator[bytes]:
    """The events; one that says so where they break off."""
    number = 1
    try:
        yield first
        async for event in events:
            yield event
            number += 1
    except Exception as error:
        log.info("a stream broke off: %s", type(error).__name__)
        message = "The provider broke off before the answer was complete."
        yield upstream_failed(message).event(endpoint, number)
    finally:
        closing = getattr(events, "aclose", None)
        if closing is not None:
            await closing()


class Unanswered(Exception):
    """A stream ended that had held nothing, or in an error that the SDK worded."""

    def __init__(self, event: bytes = b"{}") -> None:
        super().__init__("no answer")
        self.message = str((json.loads(event).get("error") or {}).get("message") or "")
        kinds = re.findall(r"litellm\.(\w+):", self.message)
        self.status_code = CLIENTS_OWN.get(kinds[-1] if kinds else "", 502)


async def _chat_events(answer: Any) -> AsyncIterator[bytes]:
    """A chat's events. The SDK makes up a last one for whatever it got, a page that is no stream
    included: what has nothing of an answer in it waits for something that has. Raises Unanswered.
    """
    held: list[bytes] | None = []
    async for chunk in answer:
        event = b"data: " + chunk.model_dump_json(exclude_none=True).encode() + b"\n\n"
        if held is not None and _is_bare(chunk):
            held.append(event)
            continue
        if held:
            yield b"".join(held)
        held = None
        yield event
        await asyncio.sleep(0)  # the SDK takes a millisecond for each, and others wait
    if held is not None:
        raise Unanswered
    yield b"data: [DONE]\n\n"


def _is_bare(chunk: Any) -> bool:
    """Whether nothing in a chunk came from a model: neither words nor usage."""
    if getattr(chunk, "usage", None) is not None:
        return False
    for choice in chunk.choices:
        if getattr(choice, "finish_reason", None) not in (None, "stop"):
            return False
        delta = getattr(choice, "delta", None)
        told = choice.model_dump(exclude_none=True) if delta is None else delta.model_dump()
        if any(value for name, value in told.items() if name not in BARE):
            return False
    return True


async def _response_events(answer: Any) -> AsyncIterator[bytes]:
    number = 0
    async for event in answer:
        # Clients keep events in order by this number, and the SDK leaves it out of most.
        fields = {**event.model_dump(mode="json", exclude_none=True), "sequence_number": number}
        number += 1
        if isinstance(fields.get("response"), dict):
            _with_summaries(fields["response"])
        yield f"event: {fields['type']}\ndata: {json.dumps(fields)}\n\n".encode()
        await asyncio.sleep(0)


async def _message_events(answer: Any) -> AsyncIterator[bytes]:
    """A message's events. The one that the SDK begins with before it has asked a provider waits
    for the next; a refusal that comes then instead is raised. Raises Unanswered."""
    begun = b""
    async for event in answer:
        if event.startswith(b"event: error") and b"litellm." in event:
            raise Unanswered(event.partition(b"data: ")[2])  # the SDK's own words for a failure
        if event.startswith(b"event: message_start") and NOBODY_COUNTED in event:
            begun = event
            continue
        yield begun + event
        begun = b""


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _told(refusal: Refusal, path: str) -> Bridged:
    body = as_message(refusal) if path == "/messages" else refusal.body
    return Bridged(refusal.status, "application/json", _once(body), refusal.headers)
