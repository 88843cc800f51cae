"""HTTP as clients and browsers really send it, over real sockets."""

from __future__ import annotations

import base64
import gzip
import json
import os
import socket
import zlib
from typing import Any
from urllib.parse import quote

import pytest

from tests.fakes import answers
from tests.fakes.upstream import Gate, Upstream
from tests.joulegate_server import KEY, TEAMS, Joulegate, Start, config_of, reply

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def test_a_connection_is_kept_for_many_requests_on_both_sides(
    running: Joulegate, upstream: Upstream
) -> None:
    connection = running.connect()
    socket_used = None
    for stream in (False, True, False, True):
        body = json.dumps({**ASK, "stream": stream})
        connection.request("POST", "/v1/chat/completions", body)
        socket_used = socket_used or connection.sock
        assert connection.sock is socket_used
        assert reply(connection.getresponse()).status == 200
    assert upstream.connections == 1


def test_an_error_does_not_end_a_connection(running: Joulegate) -> None:
    connection = running.connect()
    for body, status in ((b"{", 400), (json.dumps(ASK).encode(), 200)):
        connection.request("POST", "/v1/chat/completions", body)
        assert reply(connection.getresponse()).status == status


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads Linux's /proc")
def test_no_socket_waits_to_fill_a_packet(running: Joulegate, upstream: Upstream) -> None:
    gate = Gate()
    upstream.play([gate, *answers.answer(answers.CHAT)])
    connection = running.open(ASK)
    upstream.wait_for(1)
    seen = {"from the client": 0, "to the upstream": 0}
    for number in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(number))) as one:
                ours, theirs = one.getsockname(), one.getpeername()
                at_once = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        except OSError:
            continue  # not a connected socket
        if ours[1] == running.port:
            assert at_once
            seen["from the client"] += 1
        elif theirs[1] == upstream.port:
            assert at_once
            seen["to the upstream"] += 1
    assert all(seen.values()), seen
    gate.open()
    assert reply(connection.getresponse()).status == 200


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_chunked_body_is_put_together(running: Joulegate, upstream: Upstream, size: int) -> None:
    body = json.dumps({**ASK, "padding": "ü" * size}).encode()
    connection = running.connect()
    pieces = iter([body[:1], body[1:50], body[50:]])
    connection.request("POST", "/v1/chat/completions", pieces, encode_chunked=True)
    assert reply(connection.getresponse()).status == 200
    assert upstream.wait_for(1)[0].body == body


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP"])
def test_a_compressed_body_is_unpacked(
    running: Joulegate, upstream: Upstream, encoding: str
) -> None:
    body = json.dumps({**ASK, "padding": "x" * 10_000}).encode()
    packed = zlib.compress(body) if encoding == "deflate" else gzip.compress(body)
    assert running.post(packed, headers={"content-encoding": encoding}).status == 200
    sent = upstream.wait_for(1)[0]
    assert sent.body == body
    assert sent.header("content-encoding") is None


def test_a_body_that_unpacks_to_too_much_is_refused(joulegate: Start, upstream: Upstream) -> None:
    running = joulegate(config_of(upstream.base_url, server={"max_body_bytes": 100_000}))
    bomb = gzip.compress(b" " * 10_000_000)
    refused = running.post(bomb, headers={"content-encoding": "gzip"})
    assert (refused.status, refused.code) == (413, "request_too_large")
    for bad in (bomb[:-20], b"not gzip at all"):
        refused = running.post(bad, headers={"content-encoding": "gzip"})
        assert refused.status in (400, 413)
    refused = running.post(b"x", headers={"content-encoding": "br"})
    assert (refused.status, refused.code) == (415, "unsupported_encoding")


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/chat/completions", "/v1/chat/completions/"]
)
def test_paths_work_with_and_without_v1(running: Joulegate, upstream: Upstream, path: str) -> None:
    assert running.post(ASK, path=path).status == 200
    assert upstream.wait_for(1)[0].path == "/v1/chat/completions"


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/health/live", "/v1/models/tiny"])
def test_head_says_what_get_would_without_the_body(running: Joulegate, path: str) -> None:
    got, head = running.get(path), running.get(path, method="HEAD")
    assert (head.status, head.body) == (got.status, b"")
    assert head.header("content-type") == got.header("content-type")
    assert head.header("content-length") == got.header("content-length")


@pytest.mark.parametrize(
    "name", ["meta/llama-3.1:8b", "org/model@int4", "a:b@c/d", "ü-model", "with space"]
)
def test_names_of_models_may_hold_what_names_hold(
    joulegate: Start, upstream: Upstream, name: str
) -> None:
    running = joulegate(config_of({"url": upstream.base_url, "model": name}))
    assert running.post({**ASK, "model": name}).status == 200
    assert upstream.wait_for(1)[0].json()["model"] == name
    connection = running.connect()
    connection.request("GET", f"/v1/models/{quote(name, safe='/:@')}")
    assert reply(connection.getresponse()).json()["id"] == name


# -- browsers ------------------------------------------------------------------------------------

PAGE, OTHER = "https://app.example", "https://other.example"


@pytest.fixture
def for_browsers(joulegate: Start, upstream: Upstream) -> Joulegate:
    return joulegate(config_of(upstream.base_url, server={"cors_origins": [OTHER, PAGE]}))


def test_a_preflight_from_a_configured_origin_is_allowed(for_browsers: Joulegate) -> None:
    said = for_browsers.get(
        "/v1/chat/completions",
        method="OPTIONS",
        origin=PAGE,
        access_control_request_method="POST",
        access_control_request_headers="authorization,x-joulegate-policy",
    )
    assert said.status == 204
    assert said.header("access-control-allow-origin") == PAGE
    allowed = said.header("access-control-allow-headers") or ""
    assert {"authorization", "x-joulegate-policy"} <= set(allowed.split(","))
    assert "POST" in (said.header("access-control-allow-methods") or "")


def test_answers_and_errors_may_be_read_by_a_configured_origin(for_browsers: Joulegate) -> None:
    stream = {**ASK, "stream": True}
    asked = [for_browsers.post(body, headers={"origin": PAGE}) for body in (ASK, stream, b"{")]
    for said in (*asked, for_browsers.get("/v1/models", origin=PAGE)):
        assert said.header("access-control-allow-origin") == PAGE
        assert said.header("access-control-expose-headers") == "*"
        assert said.header("vary") == "origin"


def test_another_origin_is_told_nothing(for_browsers: Joulegate) -> None:
    stranger = "https://elsewhere.example"
    said = for_browsers.post(ASK, headers={"origin": stranger})
    assert said.header("access-control-allow-origin") is None
    assert (
        for_browsers.get("/v1/models", origin=stranger).header("access-control-allow-origin")
        is None
    )


def test_without_configured_origins_no_page_may_call(running: Joulegate) -> None:
    said = running.get("/v1/chat/completions", method="OPTIONS", origin=PAGE)
    assert said.header("access-control-allow-origin") is None
    assert running.post(ASK, headers={"origin": PAGE}).header("access-control-allow-origin") is None


def as_browsers_send(host: str | None, origin: str | None, **more: str) -> dict[str, str]:
    return {k: v for k, v in {"host": host, "origin": origin, **more}.items() if v is not None}


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        (None, "https://elsewhere.example"),  # a page posts without being allowed to read
        (None, "null"),  # from a sandboxed frame
        ("elsewhere.example:4000", None),  # its own name has come to mean this machine
        ("elsewhere.example:4000", "http://elsewhere.example:4000"),
        ("elsewhere.example.", None),
        ("[", None),
    ],
)
def test_without_keys_no_other_sites_page_gets_in(
    running: Joulegate, upstream: Upstream, host: str | None, origin: str | None
) -> None:
    sent = as_browsers_send(host, origin, **{"content-type": "text/plain"})
    for path, body in (
        ("/v1/chat/completions", ASK),
        ("/admin/teams", {"team": "theirs"}),
        ("/dashboard/sign-in", b"key=x"),
    ):
        said = running.post(body, path=path, headers=sent)
        assert (said.status, said.code) == (403, "forbidden"), path
    for path in ("/metrics", "/dashboard/default/overview", "/admin/teams"):
        assert running.get(path, **sent).status == 403
    assert upstream.received == []
    assert running.get("/admin/teams").json()["data"] == []


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:4000", "http://localhost:3000"),
        ("127.0.0.1:4000", "http://127.0.0.1:4000"),
        ("[::1]:4000", "http://[::1]:4000"),
        ("joulegate", None),
        ("joulegate.internal:4000", "http://joulegate.internal:4000"),
        ("127.0.0.1:4000", "chrome-extension://abcdefgh"),
    ],
)
def test_without_keys_pages_and_programs_of_this_machine_get_in(
    running: Joulegate, host: str | None, origin: str | None
) -> None:
    sent = as_browsers_send(host, origin)
    assert running.post(ASK, headers=sent).status == 200
    assert running.get("/metrics", **sent).status == 200


def test_with_keys_any_name_will_do(joulegate: Start, upstream: Upstream) -> None:
    running = joulegate(config_of(upstream.base_url, teams=TEAMS))
    sent = as_browsers_send("gateway.example", "https://elsewhere.example")
    sent["authorization"] = f"Bearer {KEY}"
    assert running.post(ASK, headers=sent).status == 200


# -- large bodies --------------------------------------------------------------------------------


def test_a_prompt_that_no_tokenizer_stands_takes_nothing_from_others(running: Joulegate) -> None:
    blank = {"model": "tiny", "messages": [{"role": "user", "content": " " * 1_000_000}]}
    first = running.post(blank)
    assert first.status == 200
    packed = gzip.compress(json.dumps(ASK).encode())  # unpacked where long prompts are counted
    assert running.post(packed, headers={"content-encoding": "gzip"}).status == 200
    assert running.post(blank).status == 200


def test_an_image_of_20_mb_arrives_whole(joulegate: Start, upstream: Upstream) -> None:
    running = joulegate(config_of(upstream.base_url))
    image = base64.b64encode(os.urandom(15_000_000))
    body = b'{"model":"tiny","messages":[{"role":"user","content":[{"type":"image_url",'
    body += b'"image_url":{"url":"data:image/png;base64,' + image + b'"}}]}]}'
    assert len(body) > 20_000_000
    got = running.post(body)
    assert got.status == 200
    assert upstream.wait_for(1)[0].body == body
