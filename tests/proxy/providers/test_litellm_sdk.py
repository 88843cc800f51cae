"""A provider that does not speak OpenAI's API, behind a real server that speaks Anthropic's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import openai
import pytest

from tests.fakes.upstream import CUT, Upstream, refusing_address
from tests.joulegate_server import Config, Joulegate, config_of

# litellm's own types warn while pydantic reads them.
pytestmark = pytest.mark.filterwarnings("ignore")

Start = Callable[[Config], Joulegate]
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-test",
    "content": [{"type": "text", "text": "Guten Tag"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 11, "output_tokens": 4},
}
EVENTS: list[dict[str, object]] = [
    {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Guten "}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Tag"}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 4},
    },
    {"type": "message_stop"},
]


def response(status: str, kind: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.fixture
def provider() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


def start_with(joulegate: Start, provider: Upstream) -> Joulegate:
    backend = {
        "model": "claude-test",
        "name": "claude",
        "provider": "anthropic",
        "url": provider.address,
        "api_key": "sk-upstream",
        "engine": "api",
    }
    return joulegate({**config_of(), "backends": [backend]})


def client_of(running: Joulegate) -> openai.OpenAI:
    return openai.OpenAI(base_url=running.base_url, api_key="any", max_retries=0)


def test_a_chat_is_answered_in_openais_shape_and_counted(
    joulegate: Start, provider: Upstream
) -> None:
    provider.play([response("200 OK", "application/json", json.dumps(MESSAGE).encode())])
    running = start_with(joulegate, provider)
    answer = client_of(running).chat.completions.create(
        model="claude-test",
        messages=[{"role": "user", "content": "hello"}],
        extra_body={
            "api_base": "http://127.0.0.1:9",
            "api_key": "stolen",
            "extra_headers": {"x-api-key": "stolen"},
            "mock_response": "made up",
            "fallbacks": ["openai/gpt-4o"],
            "custom_llm_provider": "openai",
        },
    )
    assert answer.choices[0].message.content == "Guten Tag"
    (received,) = provider.wait_for(1)
    assert received.path == "/v1/messages"
    assert received.header("x-api-key") == "sk-upstream"  # never the request's
    (record,) = running.records()
    assert (record.backend, record.prompt_tokens, record.output_tokens) == ("claude", 11, 4)


def test_a_stream_is_answered_as_events(joulegate: Start, provider: Upstream) -> None:
    body = b"".join(
        f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in EVENTS
    )
    provider.play([response("200 OK", "text/event-stream", body)])
    running = start_with(joulegate, provider)
    chunks = client_of(running).chat.completions.create(
        model="claude-test", messages=[{"role": "user", "content": "hello"}], stream=True
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Guten Tag"
    (record,) = running.records()
    assert record.output_tokens == 4
    assert record.outcome == "ok"


def test_a_stream_that_breaks_off_ends_in_an_error_event(
    joulegate: Start, provider: Upstream
) -> None:
    body = b"".join(
        f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in EVENTS[:3]
    )
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 99999\r\n\r\n"
    provider.play([head + body, CUT])
    running = start_with(joulegate, provider)
    ask = {
        "model": "claude-test",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
    }
    reply = running.post(ask)
    assert b"Guten" in reply.body
    assert b'data: {"error":' in reply.body
    assert b"[DONE]" not in reply.body
    (record,) = running.records()
    assert record.outcome == "failed"


def test_a_providers_refusal_keeps_its_status(joulegate: Start, provider: Upstream) -> None:
    error = {"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}}
    body = json.dumps(error).encode()
    provider.play([response("429 Too Many Requests", "application/json", body)])
    running = start_with(joulegate, provider)
    with pytest.raises(openai.RateLimitError):
        client_of(running).chat.completions.create(
            model="claude-test", messages=[{"role": "user", "content": "hello"}]
        )


def test_a_provider_that_cannot_be_reached_is_named_and_its_address_is_not(
    joulegate: Start,
) -> None:
    backend = {"model": "claude-test", "name": "claude", "provider": "anthropic", "api_key": "k"}
    with refusing_address() as nowhere:
        running = joulegate(config_of({**backend, "url": nowhere}))
        messages = [{"role": "user", "content": "x"}]
        refused = running.post({"model": "claude-test", "messages": messages})
    assert refused.status == 503
    said = refused.json()["error"]["message"]
    assert said == "The backend claude cannot be reached. Try again."
