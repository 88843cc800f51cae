"""What a stranger's bytes can do to a connection: nothing but end it, with a reason."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import resource
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from proxy import connection
from tests.fakes import answers
from tests.fakes.upstream import Gate, Upstream
from tests.joulegate_server import KEY, TEAMS, Joulegate, Start, config_of

BODY = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}).encode()
KEYED = b"host: x\r\nauthorization: Bearer " + KEY.encode() + b"\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\n" + KEYED
EVIL = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream(answers.like_an_engine()) as server:
        yield server


@pytest.fixture
def running(joulegate: Start, upstream: Upstream) -> Joulegate:
    return joulegate(config_of(upstream.base_url, teams=TEAMS))


def sent(port: int, *pieces: bytes, end: bool = True) -> bytes:
    """All that comes back for bytes as they are, until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        try:
            for piece in pieces:
                sock.sendall(piece)
            if end:
                sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # closed before it had everything
        got = bytearray()
        try:
            while data := sock.recv(65_536):
                got += data
        except ConnectionResetError:
            pass
        return bytes(got)


def statuses(answer: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def code(answer: bytes) -> str:
    """The code of the last error in an answer."""
    error = json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    return str(error["code"])


# -- smuggling -----------------------------------------------------------------------------------

LENGTH = b"content-length: %d\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize(
    "raw",
    [
        POST + LENGTH + CHUNKED + b"\r\n" + CHUNKS,
        POST + CHUNKED + LENGTH + b"\r\n" + CHUNKS,
        POST + LENGTH + b"content-length: 5\r\n\r\n" + BODY,
        POST + b"content-length: 5, 5\r\n\r\n" + BODY,
        POST + b"content-length: +%d\r\n\r\n" % len(BODY) + BODY,
        POST + b"content-length: 99999999999999999999999\r\n\r\n" + BODY,
        POST + b"content-length : %d\r\n\r\n" % len(BODY) + BODY,
        POST + LENGTH.replace(b"\r\n", b"\n") + b"\n" + BODY,
        POST + LENGTH + b"x-a: b\rtransfer-encoding: chunked\r\n\r\n" + BODY,
        POST + LENGTH + b"x-a: b\0c\r\n\r\n" + BODY,
        POST + b"transfer-encoding: chunked, identity\r\n\r\n" + CHUNKS,
        POST + LENGTH + b"transfer-encoding: x\r\n\r\n" + BODY,
        POST + CHUNKED + b"\r\n" + b"-5\r\nhello\r\n0\r\n\r\n",
        POST + CHUNKED + b"\r\n" + b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        POST + CHUNKED + b"\r\n" + b"5\r\nhelloXX\r\n0\r\n\r\n",
    ],
)
def test_a_request_that_two_parsers_could_read_differently_ends_the_connection(
    running: Joulegate, upstream: Upstream, raw: bytes
) -> None:
    answer = sent(running.port, raw + EVIL)
    assert statuses(answer) == [400]
    assert code(answer) == "invalid_http"
    assert upstream.received == []


def test_a_folded_header_is_no_header_of_its_own(running: Joulegate, upstream: Upstream) -> None:
    folded = POST + LENGTH + b"x-folded: a\r\n transfer-encoding: chunked\r\n\r\n" + BODY
    answer = sent(running.port, folded + EVIL)
    assert statuses(answer) in ([400], [200, 200])
    assert all(one.body == BODY for one in upstream.received)


def test_trailers_are_not_headers(running: Joulegate, upstream: Upstream) -> None:
    bare = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + CHUNKED
    trailers = b"authorization: Bearer " + KEY.encode() + b"\r\nx-session-id: late\r\n\r\n"
    raw = bare + b"\r\n" + CHUNKS[:-2] + trailers
    assert statuses(sent(running.port, raw, end=False)) == [401]
    assert upstream.received == []


def test_garbage_after_a_request_is_not_answered_in_its_place(
    running: Joulegate, upstream: Upstream
) -> None:
    gate = Gate()
    upstream.play([gate, *answers.answer(answers.CHAT)])
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as sock:
        sock.sendall(POST + LENGTH + b"\r\n" + BODY)
        upstream.wait_for(1)
        sock.sendall(b"\0\0 garbage\r\n\r\n")
        got = b""
        while data := sock.recv(65_536):
            got += data
    gate.open()
    assert got == b""  # not the 400 that the garbage deserves


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
@pytest.mark.parametrize("body", [LENGTH + b"\r\n" + BODY, CHUNKED + b"\r\n" + CHUNKS])
@pytest.mark.parametrize("cut", [0, 3, 40])
def test_an_offer_to_speak_another_protocol_is_answered_in_http(
    running: Joulegate, upstream: Upstream, protocol: bytes, body: bytes, cut: int
) -> None:
    offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: " + protocol + b"\r\n"
    offer += b"http2-settings: AAMAAABkAAQAAP__\r\n"
    whole = POST + offer + body
    place = len(whole) - cut
    last = POST + LENGTH + b"connection: close\r\n\r\n" + BODY
    got = sent(running.port, whole[:place], whole[place:], last, end=False)
    assert statuses(got) == [200, 200]
    assert [json.loads(r.body) for r in upstream.wait_for(2)] == [json.loads(BODY)] * 2


def test_an_offer_without_a_body_leaves_the_connection_as_it_was(running: Joulegate) -> None:
    offer = b"connection: upgrade\r\nupgrade: h2c\r\n\r\n"
    live = b"GET /health/live HTTP/1.1\r\nhost: x\r\n"
    last = live + b"connection: close\r\n\r\n"
    assert statuses(sent(running.port, live + offer, last, end=False)) == [200, 200]


# -- what can be held ----------------------------------------------------------------------------


@pytest.mark.parametrize("endless", [b"x-a: " + b"a" * 60_000, b"x-a: b\r\n" * 7_500])
def test_a_head_without_end_is_cut_off(running: Joulegate, endless: bytes) -> None:
    answer = sent(running.port, POST, *[endless] * 40, end=False)
    assert statuses(answer) in ([431], [])  # or the connection was reset before it was read


def test_a_request_that_never_gets_complete_is_given_up(
    running: Joulegate, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.05)
    monkeypatch.setattr(connection, "BODY_S", 0.05)
    for part in (b"PO", POST, POST + LENGTH + b"\r\n" + BODY[:-1]):
        answer = sent(running.port, part, end=False)
        assert statuses(answer) == [408]
        assert code(answer) == "request_timeout"
    assert upstream.received == []


def test_a_connection_on_which_nothing_comes_is_closed_without_a_word(
    running: Joulegate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "IDLE_S", 0.05)
    with socket.create_connection(("127.0.0.1", running.port), timeout=5) as sock:
        assert sock.recv(1) == b""


def test_a_slow_second_request_does_not_cut_off_the_answer_to_the_first(
    running: Joulegate, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.02)
    gate = Gate()
    upstream.play([gate, *answers.answer(answers.CHAT)])
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as sock:
        sock.sendall(POST + LENGTH + b"\r\n" + BODY + b"POST /v1/chat")
        upstream.wait_for(1)
        sock.settimeout(0.2)  # ten times what the second head may take
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(20)
        gate.open()
        assert statuses(sock.recv(65_536))[0] == 200  # what the second is told may follow at once


@pytest.mark.parametrize(
    "path", ["/dashboard/sign-in", "/v1/feedback", "/v1/route", "/meters/windows", "/admin/keys"]
)
@pytest.mark.parametrize("chunked", [False, True])
def test_no_route_holds_more_than_the_limit(
    joulegate: Start, upstream: Upstream, path: str, chunked: bool
) -> None:
    limit = {"max_body_bytes": 50_000}
    running = joulegate(config_of(upstream.base_url, teams=TEAMS, server=limit))
    head = b"POST " + path.encode() + b" HTTP/1.1\r\n" + KEYED + b"connection: close\r\n"
    body = b"x" * 50_001
    if chunked:
        raw = head + CHUNKED + b"\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    else:
        raw = head + b"content-length: %d\r\n\r\n" % len(body) + body
    status = statuses(sent(running.port, raw, end=False))
    assert status in ([413], [401], [403]), status  # agents' tokens are looked at later


def test_a_bomb_of_a_thousand_to_one_is_refused_in_bounded_memory(
    joulegate: Start, upstream: Upstream
) -> None:
    limit = {"max_body_bytes": 1_000_000}
    running = joulegate(config_of(upstream.base_url, teams=TEAMS, server=limit))
    bomb = gzip.compress(b" " * 500_000_000, 1)
    bomb = bomb[:900_000]  # as much as may be sent: it would unpack to hundreds of megabytes
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        headers = {"authorization": f"Bearer {KEY}", "content-encoding": "gzip"}
        refused = running.post(bomb, headers=headers)
        assert (refused.status, refused.code) == (413, "request_too_large")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 30_000


def test_a_length_beyond_the_limit_is_refused_before_anything_is_sent(running: Joulegate) -> None:
    raw = (
        POST + b"content-length: 999999999999\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n"
    )
    assert statuses(sent(running.port, raw, end=False)) == [413]


def test_20_mb_without_a_right_key_is_refused_and_not_kept(running: Joulegate) -> None:
    head = POST.replace(KEY.encode(), b"sk-wrong") + b"content-length: 20000000\r\n\r\n"
    answer = sent(running.port, head, b" " * 20_000_000)
    assert statuses(answer) in ([401], [])
    assert running.proxy is not None
    assert running.get("/health/live").status == 200


# -- bodies that are hard to read ----------------------------------------------------------------

START = b'{"model":"tiny","messages":[{"role":"user","content":"x"}]'


@pytest.mark.parametrize(
    "body",
    [
        START + b',"metadata":' + b"[" * 100_000,
        START + b',"metadata":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model":"tiny","messages":' + b'{"a":' * 50_000,
        START + b',"max_tokens":' + b"9" * 100_000 + b"}",
        START + b',"n":1e999}',
        START + b',"max_completion_tokens":1' + b"0" * 400 + b"}",
        START + b',"seed":9223372036854775808}',
        START + b',"temperature":NaN}',
        b'{"model":"tiny","messages":[{"role":"\xed\xa0\x80"}]}',
        b'{"model":"tiny","messages":[],"x":"\xff"}',
        b'{"model":"tiny\\ud800","messages":[]}',
    ],
)
def test_bodies_meant_to_break_parsers_are_the_callers_mistake(
    running: Joulegate, upstream: Upstream, body: bytes
) -> None:
    refused = running.post(body, headers={"authorization": f"Bearer {KEY}"})
    assert refused.status in (400, 404)
    assert refused.code in ("invalid_json", "invalid_type", "model_not_found")
    assert upstream.received == []


@pytest.mark.parametrize(
    "body",
    [
        b'{"\\u006dodel":"tiny","messages":[],"x":"\\ud800"}',
        b'{"\\u006dodel":"tiny","messages":[],"x":' + b"[" * 600 + b"]" * 600 + b"}",
    ],
)
def test_what_cannot_be_written_again_is_the_callers_mistake_too(
    joulegate: Start, upstream: Upstream, body: bytes
) -> None:
    backend = {"url": upstream.base_url, "upstream_model": "other"}
    refused = joulegate(config_of(backend)).post(body)
    assert (refused.status, refused.code) == (400, "invalid_json")


def test_a_client_that_leaves_while_it_sends_is_no_failure_of_ours(
    running: Joulegate, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (b"/v1/chat/completions", b"/v1/route", b"/dashboard/sign-in"):
        sent(running.port, POST.replace(b"/v1/chat/completions", path) + LENGTH + b"\r\n" + b"{")
    head = sent(running.port, b"HEAD /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert statuses(head) == [404]
    assert head.endswith(b"\r\n\r\n")
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == []


@pytest.mark.parametrize("endpoint", ["chat/completions", "audio/speech", "completions"])
@pytest.mark.parametrize("numbers", [{"max_completion_tokens": -2}, {"max_tokens": -1}, {"n": -3}])
def test_negative_numbers_are_for_the_engine_to_judge(
    running: Joulegate, upstream: Upstream, endpoint: str, numbers: dict[str, int]
) -> None:
    body = {**json.loads(BODY), **numbers}
    got = running.post(body, path=f"/v1/{endpoint}", headers={"authorization": f"Bearer {KEY}"})
    assert got.status == 200
    assert upstream.wait_for(1)[0].json() == body
    assert running.record(got.header("x-request-id")).outcome == "ok"


class Wire:
    """What is written to a transport, write by write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.writes.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


async def test_the_head_of_an_answer_goes_with_what_follows_and_never_waits_long() -> None:
    wire: Any = Wire()
    out = connection.OneSegment(wire, asyncio.get_running_loop())
    out.write(b"HTTP/1.1 200 OK\r\n\r\n")
    out.write(b"first")
    out.write(b"second")
    assert wire.writes == [b"HTTP/1.1 200 OK\r\n\r\nfirst", b"second"]
    await asyncio.sleep(0)
    assert len(wire.writes) == 2
    out.write(b"HTTP/1.1 200 OK\r\n\r\n")  # and nothing to say yet
    await asyncio.sleep(0)
    assert wire.writes[2:] == [b"HTTP/1.1 200 OK\r\n\r\n"]
    large = bytes(connection.MAX_JOINED_BYTES + 1)
    out.write(b"HTTP/1.1 200 OK\r\n\r\n")
    out.write(large)
    assert wire.writes[3:] == [b"HTTP/1.1 200 OK\r\n\r\n", large]
    out.write(b"HTTP/1.1 204 No Content\r\n\r\n")
    out.close()
    assert wire.writes[5:] == [b"HTTP/1.1 204 No Content\r\n\r\n"]
    out.write(b"HTTP/1.1 200 OK\r\n\r\n")
    await asyncio.sleep(0)  # the client is gone: nothing is written


def test_an_answer_comes_in_one_piece(running: Joulegate) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as sock:
        for _ in range(5):
            sock.sendall(POST + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
            answer = sock.recv(65_536)
            head, _, body = answer.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower())
            assert length is not None
            assert len(body) == int(length[1])
