"""Streams go through as they come, however they are cut; only the usage that we asked for is
taken out again."""

from __future__ import annotations

import json
import random
from typing import Any

import openai
import pytest

from tests.fakes import answers
from tests.fakes.upstream import CUT, HANG, RESET, End, Gate, Received, Script, Upstream
from tests.joulegate_server import Joulegate, Start, config_of, reply

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}
ASK_USAGE = {**ASK, "stream_options": {"include_usage": True}}


def written(events: list[Any], **how: str) -> bytes:
    return b"".join(answers.event(one, **how) for one in events)


@pytest.mark.parametrize("usage_asked", [False, True], ids=["usage hidden", "usage asked"])
def test_how_a_stream_is_cut_changes_no_byte(
    running: Joulegate, upstream: Upstream, usage_asked: bool
) -> None:
    events = answers.chat_events(usage=True)
    whole = written(events)
    expected = whole if usage_asked else written([*events[:-2], events[-1]])
    draw = random.Random(20)
    cuts = [range(1, len(whole)), [], [len(whole) - 2], [whole.index("ü".encode()) + 1]]
    cuts += [draw.sample(range(1, len(whole)), 12) for _ in range(12)]
    for positions in cuts:
        upstream.play(answers.stream(answers.cut(whole, positions)))
        got = running.post(ASK_USAGE if usage_asked else ASK)
        assert got.status == 200
        assert got.body == expected, positions
        record = running.record(got.header("x-request-id"))
        assert (record.prompt_tokens, record.output_tokens) == (12, 3)


@pytest.mark.parametrize("space", ["", " "], ids=["no space", "space"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_every_way_to_write_events_passes_and_is_understood(
    running: Joulegate, upstream: Upstream, newline: str, space: str
) -> None:
    *words, usage, done = answers.chat_events(usage=True)
    end = newline.encode()
    ping = b": keep-alive" + end + end
    before = ping + written(words, newline=newline, space=space)
    hidden = written([usage], newline=newline, space=space)
    after = ping + written([done], newline=newline, space=space)
    for step in (1, 7, 10_000):
        whole = before + hidden + after
        upstream.play(answers.stream(answers.cut(whole, range(step, len(whole), step))))
        got = running.post(ASK)
        assert got.body == before + after
        assert running.record(got.header("x-request-id")).output_tokens == 3


def test_events_arrive_while_the_engine_is_still_at_work(
    running: Joulegate, upstream: Upstream
) -> None:
    gate = Gate()
    first, *rest = (answers.event(one) for one in answers.chat_events())
    upstream.play(answers.stream([first, gate, *rest]))
    response = running.open(ASK).getresponse()
    assert response.read1() == first  # while the engine waits at the gate
    gate.open()
    assert response.read() == b"".join(rest)


def test_a_stream_is_on_disk_before_the_client_reads_that_it_is_done(
    running: Joulegate, upstream: Upstream
) -> None:
    gate = Gate()
    events = [answers.event(one) for one in answers.chat_events(usage=True)]
    upstream.play(answers.stream([*events, gate]))
    response = running.open(ASK_USAGE).getresponse()
    read = b""
    while not read.endswith(b"data: [DONE]\n\n"):
        read += response.read1()
    assert running.proxy is not None  # the engine has not closed the stream yet
    files = running.proxy.journal.folder.glob("*.journal")
    written_ = b"".join(path.read_bytes() for path in files)
    assert str(response.getheader("x-request-id")).encode() in written_
    gate.open()
    response.read()
    (record,) = running.records()
    assert (record.outcome, record.status, record.usage_source) == ("ok", 200, "upstream")


def test_the_head_of_a_stream_is_what_clients_expect(
    running: Joulegate, upstream: Upstream
) -> None:
    got = running.post(ASK)
    assert got.header("content-type") == "text/event-stream; charset=utf-8"
    assert got.header("content-length") is None
    assert got.header("x-joulegate-backend") == "tiny-0"
    assert float(got.header("x-joulegate-overhead-ms") or "") >= 0


def test_usage_is_asked_for_and_nothing_else_is_touched(
    running: Joulegate, upstream: Upstream
) -> None:
    body = b'{ "stream":true,"temperature": 1.0, "messages":[ ],"model":"tiny" , "x": 1e2}'
    running.post(body)
    sent = upstream.wait_for(1)[0]
    assert sent.json()["stream_options"] == {"include_usage": True}
    assert sent.body.replace(b'"stream_options":{"include_usage":true},', b"") == body.replace(
        b"{ ", b"{", 1
    )


def test_a_client_s_own_stream_options_are_kept(running: Joulegate, upstream: Upstream) -> None:
    running.post({**ASK, "stream_options": {"include_usage": False, "other": 1}})
    options = upstream.wait_for(1)[0].json()["stream_options"]
    assert options == {"include_usage": True, "other": 1}


@pytest.mark.parametrize("status", [400, 422])
def test_a_backend_that_refuses_to_be_asked_for_usage_is_not_asked_again(
    running: Joulegate, upstream: Upstream, status: int
) -> None:
    streamed = answers.stream([written(answers.chat_events(usage=False))])
    refusal = answers.failure(status, "invalid", "stream_options: extra inputs are not permitted")
    upstream.play(refusal, streamed)
    for _ in range(2):
        got = running.post(ASK)
        assert got.status == 200
        assert got.body == written(answers.chat_events(usage=False))
    asked = ["stream_options" in received.json() for received in upstream.wait_for(3)]
    assert asked == [True, False, False]
    assert [r.usage_source for r in running.records()] == ["counted", "counted"]

    # but whoever asks for it gets its error
    upstream.play(refusal)
    assert running.post(ASK_USAGE).status == status
    # and an error about anything else is passed on as it is
    other = answers.failure(status, "invalid", "temperature: extra inputs are not permitted")
    upstream.play(other)
    got = running.post({**ASK, "temperature": -9})
    assert (got.status, got.json()["error"]["message"][:11]) == (status, "temperature")


def test_a_refusal_that_only_quotes_the_request_stops_nobody_from_asking_for_usage(
    running: Joulegate, upstream: Upstream
) -> None:
    def judged(request: Received) -> Script:  # as vLLM does, whose reasons hold what it was sent
        if "tools" in request.json():
            return answers.failure(400, "invalid", f"tools: {request.body.decode()}")
        return answers.like_an_engine()(request)

    upstream.play(judged)
    refused = running.post({**ASK, "tools": 5})
    assert (refused.status, refused.code) == (400, "invalid")
    assert running.record(refused.header("x-request-id")).energy_j in (0.0, None)
    got = running.post(ASK)
    record = running.record(got.header("x-request-id"))
    assert (record.usage_source, record.output_tokens) == ("upstream", 3)


@pytest.mark.parametrize(("end", "status"), [(HANG, 504), (CUT, 502)])
def test_a_refusal_of_a_stream_that_does_not_come_to_its_end_is_a_status(
    joulegate: Start, upstream: Upstream, end: End, status: int
) -> None:
    limits = {"between_chunks_s": 0.7}
    running = joulegate(config_of(upstream.base_url, time=limits, retries={"attempts": 1}))
    upstream.play([answers.head(400, content_length="1000") + b"{", end])
    assert running.post(ASK).status == status


def test_a_client_that_asked_for_usage_sends_its_own_bytes(
    running: Joulegate, upstream: Upstream
) -> None:
    body = (
        b'{"stream_options":{ "include_usage" : true},"stream":true,"messages":[],"model":"tiny"}'
    )
    running.post(body)
    assert upstream.wait_for(1)[0].body == body


def test_cumulative_usage_on_every_chunk_is_not_added_up(
    running: Joulegate, upstream: Upstream
) -> None:
    events = answers.chat_events(["a", "b", "c", "d"], cumulative=True)
    upstream.play(answers.stream([answers.event(one) for one in events]))
    got = running.post(ASK)
    record = running.record(got.header("x-request-id"))
    assert (record.prompt_tokens, record.output_tokens) == (12, 4)


def test_an_upstream_that_never_tells_usage_is_counted_by_its_events(
    running: Joulegate, upstream: Upstream
) -> None:
    events = answers.chat_events(["a", "b", "c", "d"])
    upstream.play(answers.stream([answers.event(one) for one in events]))
    record = running.record(running.post(ASK).header("x-request-id"))
    assert record.usage_source == "counted"
    assert record.output_tokens is not None
    assert 4 <= record.output_tokens <= 6  # one event a word, and those that begin and end


def test_a_line_longer_than_any_buffer_passes(running: Joulegate, upstream: Upstream) -> None:
    long = answers.event({"choices": [{"delta": {"content": "x" * 3_000_000}}]})
    whole = written(answers.chat_events()[:1]) + long + written(answers.chat_events()[1:])
    upstream.play(answers.stream(answers.cut(whole, range(65_536, len(whole), 65_536))))
    assert running.post(ASK).body == whole


@pytest.mark.parametrize("sort", ["Text/Event-Stream", "text/plain; charset=utf-8", None])
def test_a_stream_is_known_by_what_it_is_where_its_type_does_not_say(
    running: Joulegate, upstream: Upstream, sort: str | None
) -> None:
    events = [answers.event(one) for one in answers.chat_events(usage=True)]
    named = {"content-type": sort} if sort else {}
    gate = Gate()
    head = answers.head(200, named, transfer_encoding="chunked")
    rest = [answers.framed(b"".join(events[1:])), b"0\r\n\r\n"]
    upstream.play([head, answers.framed(events[0]), gate, *rest])
    connection = running.open(ASK)
    response = connection.getresponse()
    assert response.getheader("content-type") == sort
    assert response.read1() == events[0]  # while the rest is still to come
    gate.open()
    assert response.read() == b"".join([*events[1:-2], events[-1]])
    record = running.record(response.getheader("x-request-id"))
    assert (record.outcome, record.prompt_tokens, record.output_tokens) == ("ok", 12, 3)
    connection.close()


@pytest.mark.parametrize("sort", ["application/json", "text/plain"])
def test_a_whole_answer_to_who_asked_for_a_stream_is_passed_on(
    running: Joulegate, upstream: Upstream, sort: str
) -> None:
    body = json.dumps(answers.CHAT).encode()
    pieces = [body[:30], body[30:]]
    upstream.play(answers.stream(pieces, headers={"content-type": sort}))
    got = running.post(ASK)
    assert (got.status, got.body) == (200, body)
    record = running.record(got.header("x-request-id"))
    assert (record.outcome, record.output_tokens) == ("ok", 3)


@pytest.mark.parametrize(("end", "status"), [(HANG, 504), (CUT, 502)])
def test_an_answer_of_unknown_type_that_never_begins_is_a_status(
    joulegate: Start, upstream: Upstream, end: End, status: int
) -> None:
    running = joulegate(config_of(upstream.base_url, time={"between_chunks_s": 0.7}))
    upstream.play([answers.head(200, transfer_encoding="chunked"), end])
    failed = running.post(ASK)
    assert failed.status == status
    assert running.record(failed.header("x-request-id")).outcome == "failed"
    assert running.proxy is not None
    assert running.proxy.pool.engines[0].in_flight == 0


# -- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    [[CUT], [RESET], answers.failure(503, "busy", "Busy."), [b"garbage\r\n\r\n", CUT]],
    ids=["closed", "reset", "503", "garbage"],
)
def test_a_failure_before_the_first_byte_goes_to_the_next_backend(
    joulegate: Start, upstream: Upstream, broken: Any
) -> None:
    with Upstream(broken) as bad:
        running = joulegate(config_of(bad.base_url, upstream.base_url))
        for _ in range(4):  # whichever is chosen first
            got = running.post(ASK)
            assert got.status == 200
            assert got.header("x-joulegate-backend") == "tiny-1"
        assert bad.received
        tried = running.records(lambda record: record.attempts == 2)
        assert tried[0].backend == "tiny-1"


def test_a_stream_that_opens_and_dies_before_an_event_is_a_status(
    running: Joulegate, upstream: Upstream
) -> None:
    upstream.play(answers.stream([CUT], end=False))
    failed = running.post(ASK)
    assert (failed.status, failed.code) == (502, "upstream_failed")


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (lambda first: answers.stream([first, CUT], end=False), "upstream_failed"),
        (lambda first: answers.stream([first]), "upstream_failed"),  # ends, but says no end
        (lambda first: answers.stream([first, answers.event("{")]), "upstream_failed"),
    ],
    ids=["dies", "stops early", "garbage"],
)
def test_a_failure_in_the_middle_is_an_error_event_and_no_done(
    running: Joulegate, upstream: Upstream, script: Any, code: str
) -> None:
    first = written(answers.chat_events()[:2])
    upstream.play(script(first))
    got = running.post(ASK)
    assert got.status == 200
    assert got.body.startswith(first)
    last = got.body.rstrip().split(b"\n\n")[-1]
    assert last.startswith(b'data: {"error":')
    assert code.encode() in last
    assert b"[DONE]" not in got.body
    record = running.record(got.header("x-request-id"))
    assert (record.outcome, record.error_code) == ("failed", code)
    assert record.output_tokens  # what was generated until then is charged


@pytest.mark.parametrize("ask", [ASK, ASK_USAGE], ids=["usage hidden", "usage asked"])
@pytest.mark.parametrize("end", [True, False], ids=["ends", "dies"])
def test_an_error_event_stands_alone_where_a_stream_ends_within_one(
    running: Joulegate, upstream: Upstream, ask: dict[str, Any], end: bool
) -> None:
    first, *_, last = (answers.event(one) for one in answers.chat_events()[:3])
    upstream.play(answers.stream([first + last[:30], *([] if end else [CUT])], end=end))
    got = running.post(ask)
    assert got.body.startswith(first)
    begun, error = got.body[len(first) :].split(b'data: {"error":')
    assert begun in (b"", last[:30] + b"\n\n")
    assert b"upstream_failed" in error


def test_the_openai_client_raises_at_the_error_event(
    running: Joulegate, upstream: Upstream
) -> None:
    upstream.play(answers.stream([written(answers.chat_events()[:2]), CUT], end=False))
    with openai.OpenAI(base_url=running.base_url, api_key="x", max_retries=0) as client:
        stream = client.chat.completions.create(**ASK)  # type: ignore[call-overload]
        with pytest.raises(openai.APIError) as raised:
            list(stream)
    assert "broke off" in raised.value.message


def test_an_upstream_s_own_error_event_passes_and_is_on_the_books(
    running: Joulegate, upstream: Upstream
) -> None:
    event = answers.event({"error": {"message": "Out of memory", "code": 500}})
    whole = written(answers.chat_events()[:2]) + event
    upstream.play(answers.stream([whole]))
    got = running.post(ASK)
    assert got.body == whole
    assert running.record(got.header("x-request-id")).outcome == "failed"


@pytest.mark.parametrize(
    "event",
    [
        {"error": {"message": "Out of memory", "type": "Internal", "code": 500}},
        {"object": "error", "message": "Out of memory", "type": "Internal", "code": 500},
    ],
    ids=["now", "older vLLM"],
)
def test_an_error_in_an_event_is_no_token_and_no_answer(
    running: Joulegate, upstream: Upstream, event: dict[str, Any]
) -> None:
    whole = written([event, "[DONE]"])
    upstream.play(answers.stream([whole]))
    got = running.post(ASK)
    assert got.body == whole
    record = running.record(got.header("x-request-id"))
    assert (record.outcome, record.output_tokens, record.ttft_s) == ("failed", None, None)


@pytest.mark.parametrize("end", [CUT, RESET, HANG])
def test_what_happens_after_done_is_no_failure(
    joulegate: Start, upstream: Upstream, end: End
) -> None:
    running = joulegate(config_of(upstream.base_url, time={"between_chunks_s": 0.7}))
    whole = written(answers.chat_events(usage=True))
    upstream.play(answers.stream([whole, end], end=False))
    got = running.post(ASK_USAGE)
    assert (got.status, got.body) == (200, whole)
    assert running.record(got.header("x-request-id")).outcome == "ok"
    assert running.proxy is not None
    assert running.proxy.pool.engines[0].failures_in_a_row == 0


def test_an_upstream_that_closes_to_end_its_stream_is_understood(
    running: Joulegate, upstream: Upstream
) -> None:
    whole = written(answers.chat_events(usage=True)[:-1])  # no [DONE] either
    upstream.play([answers.head(200, answers.STREAM_HEADERS, connection="close"), whole, CUT])
    got = running.post(ASK_USAGE)
    assert got.body == whole
    assert running.record(got.header("x-request-id")).outcome == "ok"


def test_a_hundred_streams_at_once_keep_apart(running: Joulegate, upstream: Upstream) -> None:
    gate = Gate()

    def play(request: Any) -> Any:
        word = str(request.json()["user"])
        first, *rest = (answers.event(one) for one in answers.chat_events([word] * 5))
        return answers.stream([first, gate, *rest])

    upstream.play(play)
    opened = [running.open({**ASK, "user": f"<{number}>"}) for number in range(100)]
    upstream.wait_for(100)
    gate.open()
    for number, connection in enumerate(opened):
        body = reply(connection.getresponse()).body.decode()
        assert body.count(f"<{number}>") == 5
        assert body.endswith("data: [DONE]\n\n")
        connection.close()
