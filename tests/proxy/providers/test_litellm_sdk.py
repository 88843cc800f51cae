"""A provider that does not speak OpenAI's API, behind a real server that speaks Anthropic's."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest

from tests.fakes.upstream import CUT, HANG, Received, Script, Upstream, refusing_address
from tests.joulegate_server import Joulegate, Start, config_of

# litellm's own types warn while pydantic reads them.
pytestmark = pytest.mark.filterwarnings("ignore")


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


def test_a_chat_is_answered_in_openais_shape_and_counted(
    joulegate: Start, provider: Upstream
) -> None:
    provider.play([response("200 OK", "application/json", json.dumps(MESSAGE).encode())])
    running = start_with(joulegate, provider)
    answer = running.client().chat.completions.create(
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


def test_a_response_that_a_provider_cannot_keep_is_not_asked_for_there(
    joulegate: Start, provider: Upstream
) -> None:
    provider.play([response("200 OK", "application/json", json.dumps(MESSAGE).encode())])
    client = start_with(joulegate, provider).client()
    given = client.responses.create(model="claude-test", input="hello")
    provider.wait_for(1)
    with pytest.raises(openai.NotFoundError, match="not known here"):
        client.responses.retrieve(given.id)
    assert len(provider.received) == 1


def test_a_stream_is_answered_as_events(joulegate: Start, provider: Upstream) -> None:
    body = b"".join(
        f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in EVENTS
    )
    provider.play([response("200 OK", "text/event-stream", body)])
    running = start_with(joulegate, provider)
    chunks = running.client().chat.completions.create(
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
        running.client().chat.completions.create(
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


CHAT = {"model": "claude-test", "messages": [{"role": "user", "content": "hello"}]}
MESSAGES = {**CHAT, "max_tokens": 9}
OVERLOADED: dict[str, object] = {
    "type": "error",
    "error": {"type": "overloaded_error", "message": "Overloaded"},
}


def events(*sent: dict[str, object]) -> bytes:
    return b"".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in sent)


def refusal(status: str, error: dict[str, object], more: str = "") -> list[bytes]:
    body = json.dumps(error).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{more}"
    return [f"{head}content-length: {len(body)}\r\n\r\n".encode() + body]


def test_messages_stream_from_a_provider_that_speaks_them(
    joulegate: Start, provider: Upstream
) -> None:
    sent = events(*EVENTS)
    provider.play([response("200 OK", "text/event-stream", sent)])
    running = start_with(joulegate, provider)
    reply = running.post({**MESSAGES, "stream": True}, path="/v1/messages")
    assert (reply.status, reply.body) == (200, sent)
    (record,) = running.records()
    assert (record.outcome, record.prompt_tokens, record.output_tokens) == ("ok", 11, 4)


def test_a_messages_stream_ends_at_the_provider_when_its_client_leaves(
    joulegate: Start, provider: Upstream
) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 99999\r\n\r\n"
    provider.play([head + events(*EVENTS[:3]), HANG])
    running = start_with(joulegate, provider)
    connection = running.open({**MESSAGES, "stream": True}, path="/v1/messages")
    answer = connection.getresponse()
    assert b"Guten" in answer.read(len(events(*EVENTS[:3])))
    answer.close()
    connection.close()
    (received,) = provider.wait_for(1)
    assert received.gone.wait(5)
    (record,) = running.records()
    assert record.outcome == "cancelled"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        ("413 Payload Too Large", "request_too_large", "Too large."),
        ("529 Overloaded", "overloaded_error", "Come back later."),
    ],
)
def test_a_refusal_has_the_providers_status_and_words(
    joulegate: Start, provider: Upstream, status: str, kind: str, words: str, stream: bool
) -> None:
    error: dict[str, object] = {"type": "error", "error": {"type": kind, "message": words}}
    provider.play(refusal(status, error, "retry-after: 7\r\n"))
    running = start_with(joulegate, provider)
    refused = running.post({**CHAT, "stream": stream})
    assert str(refused.status) == status[:3]
    assert refused.code == status[:3]
    told = refused.json()["error"]
    assert (told["message"], told["type"]) == (words, kind)
    assert refused.header("retry-after") == "7"
    of_messages = running.post({**MESSAGES, "stream": stream}, path="/v1/messages")
    assert of_messages.json() == error  # as Anthropic's clients know it


def test_a_prompt_that_is_too_long_has_openais_code(joulegate: Start, provider: Upstream) -> None:
    words = "prompt is too long: 210000 tokens > 200000 maximum"
    told = {"type": "invalid_request_error", "message": words}
    error: dict[str, object] = {"type": "error", "error": told}
    provider.play(refusal("400 Bad Request", error))
    refused = start_with(joulegate, provider).post(CHAT)
    assert (refused.status, refused.code) == (400, "context_length_exceeded")


@pytest.mark.parametrize("stream", [False, True])
def test_a_page_instead_of_an_answer_is_a_failure_and_says_nothing_of_our_own_files(
    joulegate: Start, provider: Upstream, stream: bool
) -> None:
    page = response("200 OK", "text/html", b"<html>Sign in to this network</html>")
    provider.play([page], [response("200 OK", "application/json", b'{"hello": 1}')])
    running = start_with(joulegate, provider)
    for _ in range(2):
        refused = running.post({**CHAT, "stream": stream})
        assert (refused.status, refused.code) == (502, "upstream_failed")
        assert b".py" not in refused.body
        assert b"Traceback" not in refused.body


def test_a_stream_that_fails_at_once_goes_to_the_next_backend(
    joulegate: Start, provider: Upstream
) -> None:
    fine = response("200 OK", "text/event-stream", events(*EVENTS))
    scripts = [[response("200 OK", "text/event-stream", events(OVERLOADED))], [fine]]

    def play(_: Received) -> Script:
        return scripts.pop(0)

    with Upstream() as other:
        one = {"provider": "anthropic", "api_key": "k", "engine": "api"}
        running = joulegate(
            config_of({**one, "url": provider.address}, {**one, "url": other.address})
        )
        provider.play(play)
        other.play(play)
        reply = running.post({**CHAT, "model": "tiny", "stream": True})
    assert (len(provider.received), len(other.received)) == (1, 1)
    assert reply.status == 200
    assert b"Guten" in reply.body
    assert reply.body.endswith(b"data: [DONE]\n\n")


def test_a_stream_that_a_provider_refuses_late_is_refused_with_its_status(
    joulegate: Start, provider: Upstream
) -> None:
    error: dict[str, object] = {
        "error": {"code": 429, "message": "Quota used up.", "status": "RESOURCE_EXHAUSTED"}
    }
    provider.play(refusal("429 Too Many Requests", error, "retry-after: 9\r\n"))
    backend = {"provider": "gemini", "url": provider.address, "api_key": "k", "engine": "api"}
    running = joulegate(config_of({**backend, "upstream_model": "gemini-2.5-flash"}))
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages"):
        ask = {**MESSAGES, "model": "tiny", "input": "hello", "stream": True}
        if path == "/v1/chat/completions":
            del ask["input"]
        refused = running.post(ask, path=path)
        assert refused.status == 429  # the SDK asks Gemini only when the first event is wanted
        assert refused.json()["error"]["message"] == "Quota used up."
    assert all(record.energy_j in (0.0, None) for record in running.records())


def test_a_response_that_breaks_off_ends_in_an_event_with_a_name(
    joulegate: Start, provider: Upstream
) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 99999\r\n\r\n"
    provider.play([head + events(*EVENTS[:3]), CUT])
    running = start_with(joulegate, provider)
    with pytest.raises(openai.APIError, match="broke off"):
        for _ in running.client().responses.create(model="claude-test", input="hello", stream=True):
            pass


PLAIN = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
    ],
}


def test_a_usage_that_a_provider_does_not_tell_is_unknown_and_not_0(
    joulegate: Start, provider: Upstream
) -> None:
    provider.play([response("200 OK", "application/json", json.dumps(PLAIN).encode())])
    backend = {"provider": "mistral", "url": provider.base_url, "api_key": "k", "engine": "api"}
    running = joulegate(config_of({**backend, "upstream_model": "mistral-large-latest"}))
    reply = running.post({**CHAT, "model": "tiny"})
    assert reply.json()["usage"] is None
    (record,) = running.records()
    assert (record.outcome, record.output_tokens, record.usage_source) == ("ok", None, "unknown")


@pytest.mark.parametrize(
    ("backend", "status", "error", "message", "code"),
    [
        (
            {"provider": "mistral", "upstream_model": "mistral-large-latest"},
            "401 Unauthorized",
            {"message": "Unauthorized", "request_id": "x"},
            "Unauthorized",
            "401",
        ),
        (
            {
                "provider": "azure",
                "upstream_model": "gpt-4o",
                "litellm_params": {"api_version": "2024-10-21"},
            },
            "400 Bad Request",
            {"error": {"code": "content_filter", "message": "Filtered.", "param": "prompt"}},
            "Filtered.",
            "content_filter",
        ),
        (
            {"provider": "mistral", "upstream_model": "mistral-large-latest"},
            "429 Too Many Requests",
            {"detail": "The key sk-hush is used up."},
            "The key REDACTED is used up.",
            "429",
        ),
    ],
)
def test_refusals_of_every_shape_are_told_in_the_providers_words(
    joulegate: Start,
    provider: Upstream,
    backend: dict[str, object],
    status: str,
    error: dict[str, object],
    message: str,
    code: str,
) -> None:
    provider.play(refusal(status, error))
    running = joulegate(
        config_of({**backend, "url": provider.base_url, "api_key": "sk-hush", "engine": "api"})
    )
    refused = running.post({**CHAT, "model": "tiny"})
    assert (str(refused.status), refused.code) == (status[:3], code)
    assert refused.json()["error"]["message"] == message


@pytest.mark.parametrize(
    ("path", "odd"),
    [
        ("/v1/chat/completions", {"tools": [{"type": "function"}]}),
        ("/v1/chat/completions", {"response_format": {"type": "json_schema"}}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "odd"}]}]}),
        ("/v1/messages", {"metadata": 5}),
        ("/v1/responses", {"input": "hello", "reasoning": 5}),
    ],
)
def test_a_request_that_cannot_be_translated_takes_no_backend_from_the_others(
    joulegate: Start, provider: Upstream, path: str, odd: dict[str, object]
) -> None:
    running = start_with(joulegate, provider)
    for _ in range(4):
        refused = running.post({**MESSAGES, **odd}, path=path)
        assert (refused.status, refused.code) == (400, "400")
    assert provider.received == []
    provider.play([response("200 OK", "application/json", json.dumps(MESSAGE).encode())])
    assert running.post(CHAT).status == 200


def test_an_answer_that_cannot_be_read_is_no_mistake_of_the_client(
    joulegate: Start, provider: Upstream
) -> None:
    provider.play([response("200 OK", "application/json", b'{"content": 5}')])
    refused = start_with(joulegate, provider).post(CHAT)
    assert (refused.status, refused.code) == (502, "upstream_failed")
