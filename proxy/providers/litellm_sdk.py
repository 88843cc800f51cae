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
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from multidict import CIMultiDict

from proxy.backends import Engine

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

LOGGERS = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy")
# Headers of a refusal that reach the client.
WHEN_AGAIN = ("retry-after", "x-should-retry", "x-ratelimit-", "anthropic-ratelimit-")
# How the SDK tells of a provider that it got no answer from.
_NOBODY_THERE = re.compile(
    r"cannot connect to|connection (?:error|refused)|connect call failed", re.I
)

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
    return _sdk


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
        return _refused(404, f"{settings.provider} is not served at {path}.")
    odd = malformed(path, fields)
    if odd is not None:
        return _refused(400, f"Invalid value for {odd!r}: it cannot be read as what it should be.")
    if path == "/responses":
        for name in NEEDS_STATE:
            if fields.get(name):
                return _refused(
                    400,
                    f"{engine.name} is served over its chat completions, which keep nothing "
                    f"between requests: {name!r} cannot be used. Send the whole conversation.",
                )
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
    try:
        answer = await call(**fields)
    except asyncio.CancelledError:
        raise
    except Exception as error:
        status = int(getattr(error, "status_code", None) or 502)
        log.info("%s refused: %s", engine.name, type(error).__name__)
        said = str(getattr(error, "message", error))
        if status >= 500 and _NOBODY_THERE.search(said):
            return _refused(503, f"The backend {engine.name} cannot be reached. Try again.")
        if status < 400:  # what it sent was no answer
            status = 502
        return _refused(status, said, _passed_on_of(error), _own_error(said) if over_chat else None)
    if fields.get("stream"):
        return Bridged(200, "text/event-stream", _unbroken(events(answer)))
    whole = json.dumps(answer) if isinstance(answer, dict) else answer.model_dump_json()
    return Bridged(200, "application/json", _once(whole.encode()))


def malformed(path: str, fields: Mapping[str, Any]) -> str | None:
    """The name of a field that has not the shape it must have; None where all have it. The SDK
    fails at one as it fails at a backend that is broken."""
    for name in ("messages", "tools"):
        value = fields.get(name)
        if value is not None and not _are_objects(value):
            return name
    if path == "/messages":
        for name in ("messages", "max_tokens"):
            if fields.get(name) is None:
                return name
    given = fields.get("input")
    if path == "/responses" and not (isinstance(given, str) or _are_objects(given)):
        return "input"
    return None


def _are_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _passed_on_of(error: Exception) -> list[tuple[str, str]]:
    """What a backend said beside its refusal of when to try again."""
    given: Any = getattr(error, "litellm_response_headers", None)
    return [
        (name.lower(), str(value))
        for name, value in dict(given or {}).items()
        if name.lower().startswith(WHEN_AGAIN)
    ]


def _own_error(said: str) -> bytes | None:
    """The backend's own error, which the SDK puts after words of its own."""
    body = said[max(said.find("{"), 0) :]
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return None
    return body.encode() if isinstance(error, dict) else None


async def _unbroken(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events; one that says so where they break off."""
    try:
        async for event in events:
            yield event
    except Exception as error:
        log.info("a stream broke off: %s", type(error).__name__)
        yield b"data: " + _error(502, "The provider broke off before the answer was complete.")
        yield b"\n\n"


async def _chat_events(answer: Any) -> AsyncIterator[bytes]:
    async for chunk in answer:
        yield b"data: " + chunk.model_dump_json(exclude_none=True).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


async def _response_events(answer: Any) -> AsyncIterator[bytes]:
    number = 0
    async for event in answer:
        # Clients keep events in order by this number, and the SDK leaves it out of most.
        fields = {**event.model_dump(mode="json", exclude_none=True), "sequence_number": number}
        number += 1
        yield f"event: {fields['type']}\ndata: {json.dumps(fields)}\n\n".encode()


async def _message_events(answer: Any) -> AsyncIterator[bytes]:
    async for event in answer:
        yield event


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _refused(
    status: int,
    message: str,
    more: Iterable[tuple[str, str]] = (),
    body: bytes | None = None,
) -> Bridged:
    body = _error(status, message) if body is None else body
    return Bridged(status, "application/json", _once(body), more)


def _error(status: int, message: str) -> bytes:
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    error = {"message": message, "type": kind, "param": None, "code": str(status)}
    return json.dumps({"error": error}, separators=(",", ":")).encode()
