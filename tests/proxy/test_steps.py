"""What the request path does when a request goes an uncommon way."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from proxy import relaying, sse
from tests.fakes import answers
from tests.fakes.upstream import CUT, HANG, Received, Script, Upstream
from tests.joulegate_server import Start, config_of
from tests.waiting import until

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**ASK, "stream": True}


# -- the backend's state ---------------------------------------------------------------------------


def test_a_probe_whose_client_leaves_is_followed_by_another(
    joulegate: Start, upstream: Upstream
) -> None:
    upstream.play([CUT])
    rules = {"failures": 1, "cooldown_s": 0.05, "health_check_s": 0, "attempts": 1}
    running = joulegate(config_of(upstream.base_url, retries=rules))
    assert running.proxy is not None
    engine = running.proxy.pool.engines[0]
    assert running.post(ASK).status == 503
    until(lambda: engine.available(time.monotonic()))
    upstream.play([HANG])
    probe = running.open(ASK)
    upstream.wait_for(2)
    assert not engine.available(time.monotonic())
    probe.close()
    until(lambda: engine.in_flight == 0)
    assert engine.available(time.monotonic())


def test_a_client_that_stops_reading_is_no_fault_of_the_backend(
    joulegate: Start, upstream: Upstream
) -> None:
    word = answers.event(answers.chat_events(["w" * 60_000])[1])
    upstream.play(answers.stream([word] * 800, end=False))
    rules = {"failures": 1, "cooldown_s": 60, "health_check_s": 0, "wait_s": 0}
    running = joulegate(config_of(upstream.base_url, retries=rules, time={"between_chunks_s": 0.7}))
    assert running.proxy is not None
    connection = running.connect()
    connection.sock = socket.socket()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sock.connect(("127.0.0.1", running.port))
    connection.request(
        "POST",
        "/v1/chat/completions",
        b'{"model":"tiny","stream":true,"messages":[{"role":"user","content":"hi"}]}',
    )
    (record,) = running.records()
    assert record.outcome == "cancelled"
    assert running.proxy.pool.engines[0].healthy
    connection.close()


# -- answers of other kinds ------------------------------------------------------------------------


def named(kind: str, data: str) -> bytes:
    return f"event: {kind}\ndata: {data}\n\n".encode()


RESPONSES = [
    named("response.created", '{"type":"response.created","response":{"usage":null}}'),
    named("response.output_text.delta", '{"type":"response.output_text.delta","delta":"Hi"}'),
    named(
        "response.completed",
        '{"type":"response.completed","response":{"usage":{"input_tokens":7,'
        '"input_tokens_details":{"cached_tokens":2},"output_tokens":5,'
        '"output_tokens_details":{"reasoning_tokens":1},"total_tokens":12}}}',
    ),
]
MESSAGES = [
    named(
        "message_start",
        '{"type":"message_start","message":{"usage":{"input_tokens":7,"output_tokens":1}}}',
    ),
    named("content_block_delta", '{"type":"content_block_delta","delta":{"text":"Hi"}}'),
    named("message_delta", '{"type":"message_delta","delta":{},"usage":{"output_tokens":5}}'),
    named("message_stop", '{"type":"message_stop"}'),
]


@pytest.mark.parametrize(
    ("path", "events"), [("/v1/responses", RESPONSES), ("/v1/messages", MESSAGES)]
)
def test_streams_of_other_apis_end_as_their_backend_ended_them(
    joulegate: Start, upstream: Upstream, path: str, events: list[bytes]
) -> None:
    upstream.play(answers.stream(events))
    running = joulegate(config_of(upstream.base_url))
    got = running.post({"model": "tiny", "input": "hi", "stream": True}, path=path)
    assert got.body == b"".join(events)
    record = running.record(got.header("x-request-id"))
    assert record.outcome == "ok"
    assert (record.prompt_tokens, record.output_tokens) == (7, 5)


@pytest.mark.parametrize(
    ("path", "events"), [("/v1/responses", RESPONSES), ("/v1/messages", MESSAGES)]
)
def test_streams_of_other_apis_that_break_off_say_so(
    joulegate: Start, upstream: Upstream, path: str, events: list[bytes]
) -> None:
    upstream.play(answers.stream(events[:2]))
    running = joulegate(config_of(upstream.base_url))
    got = running.post({"model": "tiny", "input": "hi", "stream": True}, path=path)
    last = got.body.removeprefix(b"".join(events[:2]))
    assert last.startswith(b"event: error\ndata: ")  # clients pass over what has no name
    assert last.endswith(b"\n\n")
    told = json.loads(last.partition(b"data: ")[2])
    assert (told["type"], told["error"]["code"]) == ("error", "upstream_failed")
    if path == "/v1/responses":  # clients refuse an event that has no number
        assert told["sequence_number"] == 2
    assert running.record(got.header("x-request-id")).outcome == "failed"


@pytest.mark.parametrize(
    ("path", "events"), [("/v1/responses", RESPONSES), ("/v1/messages", MESSAGES)]
)
def test_streams_of_other_apis_are_complete_with_their_last_event(
    joulegate: Start, upstream: Upstream, path: str, events: list[bytes]
) -> None:
    upstream.play(answers.stream([*events, HANG], end=False))
    running = joulegate(config_of(upstream.base_url))
    asked = {"model": "tiny", "input": "hi", "stream": True}
    connection = running.open(asked, path=path)
    response = connection.getresponse()
    whole = b"".join(events)
    assert response.read(len(whole)) == whole
    connection.close()  # while the backend still holds its own
    record = running.record(response.getheader("x-request-id"))
    assert (record.outcome, record.prompt_tokens, record.output_tokens) == ("ok", 7, 5)
    assert running.proxy is not None
    engine = running.proxy.pool.engines[0]
    until(lambda: engine.in_flight == 0)
    assert engine.failures_in_a_row == 0


def test_the_usage_of_a_whole_answer_of_another_api_is_read(
    joulegate: Start, upstream: Upstream
) -> None:
    usage = {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 2},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 1},
    }
    upstream.play(answers.answer({"object": "response", "usage": usage}))
    running = joulegate(config_of(upstream.base_url))
    got = running.post({"model": "tiny", "input": "hi"}, path="/v1/responses")
    record = running.record(got.header("x-request-id"))
    assert (record.prompt_tokens, record.output_tokens) == (7, 5)
    assert (record.cached_prompt_tokens, record.reasoning_tokens) == (2, 1)


def test_an_error_that_a_response_ends_with_is_the_last_that_its_client_gets(
    joulegate: Start, upstream: Upstream
) -> None:
    failed = '{"type":"error","code":"server_error","message":"It failed.","param":null}'
    events = [*RESPONSES[:2], named("error", failed)]
    upstream.play(answers.stream(events))
    running = joulegate(config_of(upstream.base_url))
    got = running.post({"model": "tiny", "input": "hi", "stream": True}, path="/v1/responses")
    assert got.body == b"".join(events)
    record = running.record(got.header("x-request-id"))
    assert (record.outcome, record.output_tokens) == ("failed", 1)


def test_a_response_with_an_image_in_it_ends_as_any_other(
    joulegate: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "MAX_LINE_BYTES", 10_000)
    image = {"type": "image_generation_call", "result": "A" * 50_000}
    usage = {"input_tokens": 7, "output_tokens": 5}
    response = {"output": [image], "usage": usage}
    last = json.dumps({"type": "response.completed", "response": response})
    whole = b"".join([*RESPONSES[:2], named("response.completed", last)])
    upstream.play(answers.stream(answers.cut(whole, range(0, len(whole), 4_000))))
    running = joulegate(config_of(upstream.base_url))
    got = running.post({"model": "tiny", "input": "hi", "stream": True}, path="/v1/responses")
    assert got.body == whole
    record = running.record(got.header("x-request-id"))
    assert (record.outcome, record.prompt_tokens, record.output_tokens) == ("ok", 7, 5)


@pytest.mark.parametrize("guess", [0, 1])
def test_a_message_that_broke_off_is_counted_by_what_came_of_it(
    joulegate: Start, upstream: Upstream, guess: int
) -> None:
    usage = f'{{"input_tokens":{7 * guess},"output_tokens":{guess}}}'
    start = named("message_start", f'{{"type":"message_start","message":{{"usage":{usage}}}}}')
    upstream.play(answers.stream([start, *MESSAGES[1:2] * 4, CUT], end=False))
    running = joulegate(config_of(upstream.base_url))
    asked = {**STREAM, "max_tokens": 9}
    got = running.post(asked, path="/v1/messages")
    record = running.record(got.header("x-request-id"))
    assert (record.outcome, record.output_tokens, record.usage_source) == ("failed", 4, "counted")
    assert record.prompt_tokens == (7 if guess else 8)  # 8 are counted here


@pytest.mark.parametrize("prompt_tokens", [-5, 2**70])
def test_counts_that_cannot_be_are_kept_out_of_the_books(
    joulegate: Start, upstream: Upstream, prompt_tokens: int
) -> None:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 3}
    upstream.play(answers.answer({**answers.CHAT, "usage": usage}))
    running = joulegate(config_of(upstream.base_url))
    got = running.post(ASK)
    record = running.record(got.header("x-request-id"))
    assert record.prompt_tokens is not None
    assert 0 < record.prompt_tokens < 20  # as counted here
    assert record.output_tokens == 3
    assert running.proxy is not None
    assert running.proxy.drain is not None
    assert running.proxy.drain.wait()
    assert running.proxy.drain.quarantined == 0


LONG = "Write a function that sorts a list of numbers. " * 100


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": [{"role": "user", "content": LONG}]}),
        ("/v1/responses", {"input": "Go on.", "instructions": LONG}),
        ("/v1/messages", {"messages": ASK["messages"], "system": LONG}),
        ("/v1/rerank", {"query": "sort", "documents": [LONG]}),
    ],
)
def test_the_prompts_of_other_apis_are_counted_whole(
    joulegate: Start, upstream: Upstream, path: str, body: dict[str, Any]
) -> None:
    upstream.play(answers.answer({"id": "x"}))
    running = joulegate(config_of(upstream.base_url))
    got = running.post({"model": "tiny", **body}, path=path)
    tokens = running.record(got.header("x-request-id")).prompt_tokens
    assert tokens is not None
    assert 900 < tokens < 1200


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/embeddings"])
def test_where_nothing_is_written_all_tokens_are_the_prompts(
    joulegate: Start, upstream: Upstream, path: str
) -> None:
    upstream.play(answers.answer({"data": [], "usage": {"total_tokens": 56}}))
    running = joulegate(config_of(upstream.base_url))
    got = running.post({"model": "tiny", "input": "a", "query": "a", "documents": []}, path=path)
    record = running.record(got.header("x-request-id"))
    assert (record.prompt_tokens, record.usage_source) == (56, "upstream")


@pytest.mark.parametrize("usage_first", [True, False])
def test_the_usage_of_what_is_too_large_to_be_held_is_read(
    joulegate: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, usage_first: bool
) -> None:
    monkeypatch.setattr(relaying, "MAX_HELD_BYTES", 10_000)
    parts: list[dict[str, object]] = [
        {"usage": {"prompt_tokens": 4321, "total_tokens": 4321}},
        {"data": [{"index": n, "embedding": [0.25] * 100} for n in range(100)]},
    ]
    whole = {k: v for part in (parts if usage_first else parts[::-1]) for k, v in part.items()}
    upstream.play(answers.answer(whole))
    running = joulegate(config_of(upstream.base_url))
    got = running.post({"model": "tiny", "input": "a"}, path="/v1/embeddings")
    assert got.json() == whole
    record = running.record(got.header("x-request-id"))
    assert (record.prompt_tokens, record.usage_source) == (4321, "upstream")


def test_sound_passes_as_it_came(joulegate: Start, upstream: Upstream) -> None:
    sound = b"ID3\x04\x00" + bytes(range(256)) * 8
    upstream.play(answers.answer(sound, headers={"content-type": "audio/mpeg"}))
    running = joulegate(config_of(upstream.base_url))
    got = running.post({"model": "tiny", "input": "hi"}, path="/v1/audio/speech")
    assert (got.status, got.body) == (200, sound)
    assert running.record(got.header("x-request-id")).outcome == "ok"


def test_an_upstreams_own_joulegate_headers_stay_behind(
    joulegate: Start, upstream: Upstream
) -> None:
    theirs = {"x-joulegate-backend": "theirs", "x-joulegate-energy-j": "1"}
    upstream.play(answers.answer(answers.CHAT, headers=theirs))
    running = joulegate(config_of(upstream.base_url))
    assert running.post(ASK).header("x-joulegate-backend") == "tiny-0"


def test_a_model_name_nobody_would_give_is_not_put_on_the_books(
    joulegate: Start, upstream: Upstream
) -> None:
    running = joulegate(config_of(upstream.base_url))
    refused = running.post({**ASK, "model": "secret " * 10_000})
    assert (refused.status, refused.code) == (404, "model_not_found")
    assert len(refused.body) < 2_000
    assert len(running.record(refused.header("x-request-id")).model_asked) <= 256


def test_a_client_that_leaves_while_it_sends_is_no_error_in_the_log(
    joulegate: Start, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    running = joulegate(config_of(upstream.base_url))
    connection = running.connect()
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("content-length", "1000")
    connection.endheaders(b'{"model":')
    connection.close()
    (record,) = running.records()
    assert record.outcome == "cancelled"
    assert running.get("/health/live").status == 200  # the server went on from there
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


# -- the cache -------------------------------------------------------------------------------------


def numbered() -> Callable[[Received], Script]:
    """A different answer each time."""
    given = iter(range(1_000))
    return lambda _: answers.answer({**answers.CHAT, "id": f"chatcmpl-{next(given)}"})


def test_sampled_responses_are_not_answered_from_the_cache(
    joulegate: Start, upstream: Upstream
) -> None:
    upstream.play(numbered())
    running = joulegate(config_of(upstream.base_url, cache={"enabled": True}))
    body = {"model": "tiny", "input": "hi", "temperature": 1}
    first = running.post(body, path="/v1/responses")
    second = running.post(body, path="/v1/responses")
    assert second.header("x-joulegate-cache") == "off"
    assert first.body != second.body


def test_an_answer_of_less_quality_than_asked_for_is_not_taken_from_the_cache(
    joulegate: Start, upstream: Upstream
) -> None:
    with Upstream(numbered()) as small:
        backends = [
            {"url": small.base_url, "quality": 0.3, "gpu": "H100-SXM", "params_b": 1.0},
            {"url": upstream.base_url, "quality": 0.9, "gpu": "H100-SXM", "params_b": 70.0},
        ]
        running = joulegate(config_of(*backends, cache={"enabled": True}))
        ask = {**ASK, "temperature": 0}
        assert running.post(ask).header("x-joulegate-backend") == "tiny-0"
        assert running.post(ask).header("x-joulegate-cache") == "hit"
        good = running.post(ask, headers={"x-joulegate-min-quality": "0.8"})
        assert good.header("x-joulegate-backend") == "tiny-1"


# -- what the log says -----------------------------------------------------------------------------


def test_a_line_for_each_request_has_nothing_of_its_content(
    joulegate: Start, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(upstream.base_url, log={"level": "info", "requests": True})
    with caplog.at_level(logging.INFO, logger="joulegate.requests"):
        running = joulegate(config)
        secret = {"model": "tiny", "messages": [{"role": "user", "content": "my secret"}]}
        request_id = running.post(secret).header("x-request-id")
        running.record(request_id)
        lines = [r.getMessage() for r in caplog.records if r.name == "joulegate.requests"]
    assert len(lines) == 1
    assert request_id is not None
    assert request_id in lines[0]
    assert "tiny-0" in lines[0]
    assert "200" in lines[0]
    assert "secret" not in caplog.text
