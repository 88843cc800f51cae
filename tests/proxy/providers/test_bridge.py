"""Responses and messages, answered over the chat completions of a backend that has no more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import cast

import openai
import pytest

from tests.fakes import answers
from tests.fakes.upstream import Script, Upstream
from tests.joulegate_server import Joulegate, Start, config_of

# litellm's own types warn while pydantic reads them.
pytestmark = pytest.mark.filterwarnings("ignore")


STREAM = answers.stream(
    [answers.event(e) for e in answers.chat_events(["Grüß", " ", "Gott"], usage=True)]
)
MESSAGE = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


@pytest.fixture
def running(joulegate: Start, upstream: Upstream) -> Joulegate:
    backend = {"url": upstream.base_url, "bridge": ["responses", "messages"]}
    return joulegate(config_of(backend))


def test_a_response_is_made_of_a_chat_and_its_usage_counted(
    running: Joulegate, upstream: Upstream
) -> None:
    upstream.play(answers.answer(answers.CHAT))
    response = running.client().responses.create(
        model="tiny",
        input="hello",
        instructions="Be brief.",
        max_output_tokens=9,
        extra_body={"api_base": "http://127.0.0.1:9", "extra_headers": {"x-api-key": "stolen"}},
    )
    assert response.output_text == "Grüß Gott"
    (received,) = upstream.wait_for(1)
    assert received.target == "/v1/chat/completions"
    sent = json.loads(received.body)
    assert [m["content"] for m in sent["messages"]] == ["Be brief.", "hello"]
    assert sent["max_tokens"] == 9
    (record,) = running.records()
    assert (record.endpoint, record.prompt_tokens, record.output_tokens) == ("responses", 12, 3)


def test_a_response_streams_as_events_that_the_client_understands(
    running: Joulegate, upstream: Upstream
) -> None:
    upstream.play(STREAM)
    with running.client().responses.stream(model="tiny", input="hello") as stream:
        deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == "Grüß Gott"
    assert final.output_text == "Grüß Gott"
    (record,) = running.records()
    assert (record.outcome, record.prompt_tokens, record.output_tokens) == ("ok", 12, 3)


def test_a_message_in_anthropics_shape_is_made_of_a_chat(
    running: Joulegate, upstream: Upstream
) -> None:
    upstream.play(answers.answer(answers.CHAT))
    reply = running.post({**MESSAGE, "system": "Be brief."}, path="/v1/messages")
    assert reply.status == 200
    message = json.loads(reply.body)
    assert message["content"][0]["text"] == "Grüß Gott"
    assert message["usage"]["output_tokens"] == 3
    (received,) = upstream.wait_for(1)
    assert received.target == "/v1/chat/completions"
    (record,) = running.records()
    assert (record.endpoint, record.prompt_tokens, record.output_tokens) == ("messages", 12, 3)


def test_messages_stream_as_anthropics_events(running: Joulegate, upstream: Upstream) -> None:
    upstream.play(STREAM)
    reply = running.post({**MESSAGE, "stream": True}, path="/v1/messages")
    names = [
        line.removeprefix("event: ")
        for line in reply.body.decode().splitlines()
        if line.startswith("event: ")
    ]
    assert names[0] == "message_start"
    assert names[-1] == "message_stop"
    (record,) = running.records()
    assert (record.outcome, record.prompt_tokens, record.output_tokens) == ("ok", 12, 3)


def test_what_needs_a_conversation_to_be_kept_is_refused(
    running: Joulegate, upstream: Upstream
) -> None:
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        running.client().responses.create(
            model="tiny", input="hello", previous_response_id="resp_1"
        )
    assert upstream.received == []


def test_an_upstreams_refusal_keeps_its_status(running: Joulegate, upstream: Upstream) -> None:
    upstream.play(answers.failure(429, "rate_limit_exceeded", "slow down"))
    with pytest.raises(openai.RateLimitError):
        running.client().responses.create(model="tiny", input="hello")


def test_an_upstreams_refusal_says_when_to_try_again_in_its_own_words(
    running: Joulegate, upstream: Upstream
) -> None:
    when = {"retry-after": "7", "retry-after-ms": "7000", "x-ratelimit-remaining-requests": "0"}
    refusal = answers.failure(429, "busy", "Slow down.", when)
    upstream.play(refusal)
    for path in ("/v1/responses", "/v1/messages"):
        refused = running.post({**MESSAGE, "input": "hello"}, path=path)
        assert (refused.status, refused.code) == (429, "busy")
        assert refused.json()["error"]["message"] == "Slow down."
        for name, value in when.items():
            assert refused.header(name) == value


@pytest.mark.parametrize(
    ("path", "odd"),
    [
        ("/v1/responses", {"input": 5}),
        ("/v1/responses", {"input": [5]}),
        ("/v1/responses", {}),
        ("/v1/responses", {"input": "hello", "tools": [5]}),
        ("/v1/messages", {"messages": "hello", "max_tokens": 9}),
        ("/v1/messages", {"messages": [5], "max_tokens": 9}),
        ("/v1/messages", {"messages": MESSAGE["messages"]}),
    ],
)
def test_what_cannot_be_translated_is_the_clients_mistake_and_no_failure_of_a_backend(
    running: Joulegate, upstream: Upstream, path: str, odd: dict[str, object]
) -> None:
    refused = running.post({"model": "tiny", **odd}, path=path)
    assert (refused.status, refused.json()["error"]["type"]) == (400, "invalid_request_error")
    assert upstream.received == []
    assert running.proxy is not None
    assert running.proxy.pool.engines[0].failures_in_a_row == 0


def test_an_upstream_that_answers_no_json_is_a_502(running: Joulegate, upstream: Upstream) -> None:
    upstream.play(answers.answer(b"<html>", headers={"content-type": "text/html"}))
    assert running.post({**MESSAGE, "input": "hello"}, path="/v1/responses").status == 502


def test_what_a_backend_quotes_of_a_prompt_is_in_no_log(
    running: Joulegate, upstream: Upstream, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = answers.event({"error": {"message": "in 'my secret'", "code": 500}})
    upstream.play(answers.stream([answers.event(answers.chat_events()[1]), broken]))
    asked = {**MESSAGE, "input": "my secret", "stream": True}
    for path in ("/v1/messages", "/v1/responses"):
        assert b"error" in running.post(asked, path=path).body
    assert "secret" not in "".join(capfd.readouterr())


def test_without_a_bridge_both_are_passed_through(joulegate: Start, upstream: Upstream) -> None:
    running = joulegate(config_of(upstream.base_url))
    usage = {"input_tokens": 5, "output_tokens": 2}
    upstream.play(answers.answer({"id": "resp_1", "usage": usage}))
    for path in ("/v1/responses", "/v1/messages"):
        assert running.post({**MESSAGE, "input": "x"}, path=path).status == 200
    assert [r.target for r in upstream.wait_for(2)] == ["/v1/responses", "/v1/messages"]
    assert {(r.prompt_tokens, r.output_tokens) for r in running.records()} == {(5, 2)}


NO_ROUTES = [
    answers.answer({"detail": "Not Found"}, status=404),  # FastAPI, vLLM
    answers.answer({"error": {"message": "Not Found", "code": 404}}, status=404),  # vLLM
    answers.answer({"error": {"message": "File Not Found", "code": 404}}, status=404),  # llama.cpp
    answers.answer({"error": {"message": "Invalid URL (POST /v1/responses)"}}, status=404),
    answers.answer({"detail": "Method Not Allowed"}, status=405),
]


@pytest.mark.parametrize("refusal", NO_ROUTES)
def test_a_backend_without_the_route_is_asked_over_its_chat_completions(
    joulegate: Start, upstream: Upstream, refusal: Script
) -> None:
    running = joulegate(config_of(upstream.base_url))
    upstream.play(refusal, answers.answer(answers.CHAT))
    for _ in range(2):
        response = running.client().responses.create(model="tiny", input="hello")
        assert response.output_text == "Grüß Gott"
    asked = [received.target for received in upstream.wait_for(3)]
    assert asked == ["/v1/responses", "/v1/chat/completions", "/v1/chat/completions"]
    assert {(r.outcome, r.output_tokens) for r in running.records()} == {("ok", 3)}


def test_a_404_that_is_not_about_the_route_is_passed_through(
    joulegate: Start, upstream: Upstream
) -> None:
    running = joulegate(config_of(upstream.base_url))
    upstream.play(answers.failure(404, "not_found", "Response with id 'resp_1' not found."))
    with pytest.raises(openai.NotFoundError, match="resp_1"):
        running.client().responses.create(
            model="tiny", input="hello", previous_response_id="resp_1"
        )
    assert [received.target for received in upstream.received] == ["/v1/responses"]


def test_a_list_is_all_that_is_bridged(joulegate: Start, upstream: Upstream) -> None:
    running = joulegate(config_of({"url": upstream.base_url, "bridge": ["messages"]}))
    upstream.play(NO_ROUTES[0])
    with pytest.raises(openai.NotFoundError):
        running.client().responses.create(model="tiny", input="hello")
    assert [received.target for received in upstream.received] == ["/v1/responses"]


THOUGHT = {
    **answers.CHAT,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi", "reasoning_content": "Hm."},
            "finish_reason": "stop",
        }
    ],
}


def test_what_was_thought_before_a_response_is_summarised_as_openai_does(
    running: Joulegate, upstream: Upstream
) -> None:
    thinking = {"choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}}]}
    chunks = answers.chat_events(["Hi"], usage=True)
    first = {**cast(dict[str, object], chunks[0]), **thinking}
    upstream.play(
        answers.answer(THOUGHT), answers.stream([answers.event(e) for e in [first, *chunks]])
    )
    client = running.client()
    whole = client.responses.create(model="tiny", input="hello")
    with client.responses.stream(model="tiny", input="hello") as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_response()
    for response in (whole, streamed):
        item = response.output[0]
        assert item.type == "reasoning"
        assert [part.text for part in item.summary] == ["Hm."]


def test_what_was_thought_before_a_message_has_a_signature_as_clients_demand(
    running: Joulegate, upstream: Upstream
) -> None:
    upstream.play(answers.answer(THOUGHT))
    thought = running.post(MESSAGE, path="/v1/messages").json()["content"][0]
    assert thought == {"type": "thinking", "thinking": "Hm.", "signature": ""}


@pytest.mark.parametrize("stream", [False, True])
def test_what_refuses_a_message_is_told_as_its_clients_know_it(
    running: Joulegate, upstream: Upstream, stream: bool
) -> None:
    upstream.play(answers.failure(400, "too_hot", "The temperature is too high."))
    reply = running.post({**MESSAGE, "stream": stream}, path="/v1/messages")
    told = reply.json()
    assert (reply.status, told["type"], told["error"]["type"]) == (
        400,
        "error",
        "invalid_request_error",
    )
    assert told["error"]["message"] == "The temperature is too high."


def test_a_message_of_which_nobody_tells_the_usage_is_not_one_of_0_tokens(
    running: Joulegate, upstream: Upstream
) -> None:
    upstream.play(answers.answer({k: v for k, v in answers.CHAT.items() if k != "usage"}))
    reply = running.post(MESSAGE, path="/v1/messages")
    assert (reply.status, reply.json()["usage"]) == (200, None)
    (record,) = running.records()
    assert (record.output_tokens, record.usage_source) == (None, "unknown")


def test_a_bridged_stream_that_breaks_off_says_so_in_our_words(
    running: Joulegate, upstream: Upstream
) -> None:
    upstream.play(answers.stream([answers.event(e) for e in answers.chat_events(["Hi"])[:2]]))
    reply = running.post({**MESSAGE, "stream": True}, path="/v1/messages")
    assert b"event: error" in reply.body
    assert b"broke off" in reply.body
    assert b"litellm" not in reply.body
