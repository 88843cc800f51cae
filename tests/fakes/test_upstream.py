from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator

import openai
import pytest

from tests.fakes import answers
from tests.fakes.upstream import CUT, HANG, RESET, Gate, Upstream, refusing_address


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream(pages=answers.engine_pages()) as running:
        yield running


def post(upstream: Upstream, body: bytes = b"{}") -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=10)
    connection.request("POST", "/v1/chat/completions?a=%20b", body, {"X-Odd-Case": "Yes"})
    return connection


def test_remembers_a_request_byte_for_byte(upstream: Upstream) -> None:
    upstream.play(answers.answer(answers.CHAT))
    post(upstream, b'{"z": 1.0, "a": 1e2}').getresponse().read()
    (request,) = upstream.wait_for(1)
    assert request.body == b'{"z": 1.0, "a": 1e2}'
    assert request.target == "/v1/chat/completions?a=%20b"
    assert ("X-Odd-Case", "Yes") in request.headers
    assert request.head.startswith(b"POST /v1/chat/completions?a=%20b HTTP/1.1\r\n")


def test_plays_scripts_in_order_and_the_last_for_ever(upstream: Upstream) -> None:
    upstream.play(answers.failure(429, "slow_down", "Later."), answers.answer(answers.CHAT))
    seen = [post(upstream).getresponse().status for _ in range(3)]
    assert seen == [429, 200, 200]


def test_pieces_of_a_stream_arrive_apart(upstream: Upstream) -> None:
    gate = Gate()
    whole = answers.event("Grüß")
    first, second = answers.cut(whole, [9])  # within the ü
    upstream.play(answers.stream([first, gate, second]))
    response = post(upstream).getresponse()
    assert response.read1() == first
    gate.open()
    assert response.read() == second
    with pytest.raises(UnicodeDecodeError):
        first.decode()


def test_an_openai_client_understands_its_streams(upstream: Upstream) -> None:
    upstream.play(answers.like_an_engine(("a", "b")))
    client = openai.OpenAI(base_url=upstream.base_url, api_key="x", max_retries=0)
    stream = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "ab"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 2


@pytest.mark.parametrize("end", [CUT, RESET])
def test_can_die_before_the_first_byte(upstream: Upstream, end: object) -> None:
    upstream.play([end])  # type: ignore[list-item]
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        post(upstream).getresponse()


def test_can_die_in_the_middle_of_a_stream(upstream: Upstream) -> None:
    upstream.play(answers.stream([b"data: 1\n\n", CUT], end=False))
    response = post(upstream).getresponse()
    with pytest.raises(http.client.IncompleteRead) as broken:
        response.read()
    assert broken.value.partial == b"data: 1\n\n"


@pytest.mark.alone
def test_notices_within_a_moment_that_the_client_is_gone(upstream: Upstream) -> None:
    upstream.play([HANG])
    noticed_s = []
    for number in range(3):
        connection = post(upstream)
        request = upstream.wait_for(number + 1)[-1]
        assert request.gone_s is None
        closed_s = time.monotonic()
        connection.sock.shutdown(socket.SHUT_RDWR)
        assert request.gone.wait(5)
        assert request.gone_s is not None
        noticed_s.append(request.gone_s - closed_s)
    assert 0 <= min(noticed_s) < 0.1, "the machine may stall once"


def test_a_client_that_got_its_whole_answer_was_never_gone(upstream: Upstream) -> None:
    upstream.play(answers.answer(answers.CHAT))
    connection = post(upstream)
    connection.getresponse().read()
    connection.close()
    (request,) = upstream.wait_for(1)
    assert request.answered.wait(5)
    assert request.gone_s is None


def test_pages_use_up_no_script(upstream: Upstream) -> None:
    upstream.play(answers.failure(500, "oops", "Once."), answers.answer(answers.CHAT))
    connection = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=10)
    connection.request("GET", "/v1/models")
    assert json.loads(connection.getresponse().read())["data"][0]["id"] == "tiny"
    assert post(upstream).getresponse().status == 500


def test_nobody_listens_at_a_refusing_address() -> None:
    with refusing_address() as address:
        host, _, port = address.removeprefix("http://").partition(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=5)
