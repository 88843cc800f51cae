"""A client that goes away takes its upstream request with it within 100 ms, and what was used
until then is on the books."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes import answers
from tests.fakes.upstream import HANG, Gate, Received, Upstream
from tests.joulegate_server import Joulegate

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
WITHIN_S = 0.1

pytestmark = pytest.mark.alone


def leave(connection: http.client.HTTPConnection, how: str) -> float:
    """Go away; when that was."""
    left_s = time.monotonic()
    if how == "reset":
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.sock.close()
    else:
        connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    return left_s


def sent(
    running: Joulegate, upstream: Upstream, body: dict[str, Any]
) -> tuple[http.client.HTTPConnection, Received]:
    """A request that is at the upstream."""
    before = len(upstream.received)
    connection = running.open(body)
    return connection, upstream.wait_for(before + 1)[-1]


def noticed_s(request: Received, left_s: float) -> float:
    """How long after its client had left the upstream was told."""
    assert request.gone.wait(5), "the upstream was never told"
    assert request.gone_s is not None
    return request.gone_s - left_s


def in_time(leaving_s: Callable[[], float]) -> bool:
    """Whether one of three clients that leave is noticed in time: a machine may stall for longer
    than that."""
    return any(leaving_s() < WITHIN_S for _ in range(3))


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_before_the_upstream_answered(
    running: Joulegate, upstream: Upstream, stream: bool, how: str
) -> None:
    upstream.play([HANG])

    def leaving_s() -> float:
        connection, request = sent(running, upstream, {**ASK, "stream": stream})
        return noticed_s(request, leave(connection, how))

    assert in_time(leaving_s)
    record = running.records()[0]
    assert record.outcome == "cancelled"
    assert record.backend == "tiny-0"
    assert record.sent_s is not None
    assert record.prompt_tokens is not None


def test_in_the_middle_of_an_answer(running: Joulegate, upstream: Upstream) -> None:
    upstream.play([answers.head(content_length="1000") + b'{"id":', HANG])

    def leaving_s() -> float:
        connection, request = sent(running, upstream, ASK)
        return noticed_s(request, leave(connection, "close"))

    assert in_time(leaving_s)
    assert running.records()[0].outcome == "cancelled"


@pytest.mark.parametrize("how", ["close", "reset"])
def test_in_the_middle_of_a_stream(running: Joulegate, upstream: Upstream, how: str) -> None:
    events = [answers.event(one) for one in answers.chat_events(["a", "b", "c", "d", "e"])]
    upstream.play(answers.stream([*events[:4], HANG], end=False))

    def leaving_s() -> float:
        connection, request = sent(running, upstream, {**ASK, "stream": True})
        response = connection.getresponse()
        seen = b""
        while len(seen) < sum(map(len, events[:4])):
            seen += response.read1()
        response.close()
        return noticed_s(request, leave(connection, how))

    assert in_time(leaving_s)
    record = running.records()[0]
    assert record.outcome == "cancelled"
    assert record.usage_source == "counted"
    assert record.output_tokens == 4
    assert record.ttft_s is not None
    assert record.energy_j is None or record.energy_j > 0


def test_while_a_stream_keeps_coming(running: Joulegate, upstream: Upstream) -> None:
    many = [answers.event(one) for one in answers.chat_events(["word"] * 3)[:-1]] * 2_000

    def leaving_s() -> float:
        gate = Gate()
        upstream.play(answers.stream([many[0], gate, *many, HANG], end=False))
        connection, request = sent(running, upstream, {**ASK, "stream": True})
        response = connection.getresponse()
        response.read1()
        gate.open()
        response.read1()
        response.close()
        return noticed_s(request, leave(connection, "reset"))

    assert in_time(leaving_s)
    assert running.records()[0].outcome == "cancelled"


def test_while_it_still_sends_its_body(running: Joulegate, upstream: Upstream) -> None:
    connection = running.connect()
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("content-length", "1000")
    connection.endheaders(b'{"model":')
    leave(connection, "close")
    (record,) = running.records()
    assert record.outcome == "cancelled"
    assert record.backend is None
    assert upstream.received == []


def test_a_cancelled_request_frees_its_place(running: Joulegate, upstream: Upstream) -> None:
    upstream.play([HANG])
    connections = [running.open(ASK) for _ in range(5)]
    requests = upstream.wait_for(5)
    for connection in connections:
        leave(connection, "close")
    assert all(request.gone.wait(5) for request in requests)
    running.records(lambda record: record.outcome == "cancelled")
    upstream.play(answers.like_an_engine())
    assert running.post(ASK).status == 200
    assert running.proxy is not None
    assert running.proxy.steps.in_flight == 0
    assert running.proxy.pool.engines[0].in_flight == 0
    assert running.proxy.pool.engines[0].context_in_flight == 0


def test_a_client_that_leaves_is_no_fault_of_the_backend(
    running: Joulegate, upstream: Upstream
) -> None:
    upstream.play([HANG])
    for _ in range(5):
        connection, request = sent(running, upstream, ASK)
        leave(connection, "close")
        assert request.gone.wait(5)
    assert running.proxy is not None
    assert running.proxy.pool.engines[0].healthy


def test_a_client_that_read_all_and_left_at_once_has_its_answer_on_the_books(
    running: Joulegate, upstream: Upstream
) -> None:
    for stream in (False, True):
        connection = running.open({**ASK, "stream": stream})
        response = connection.getresponse()
        response.read()
        leave(connection, "reset")
        record = running.record(response.headers["x-request-id"])
        assert record.outcome == "ok"
