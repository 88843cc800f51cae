"""What Joulegate does not need to touch arrives as it was sent, byte for byte, both ways."""

from __future__ import annotations

import gzip
import json
import zlib
from contextlib import closing
from typing import Any

import pytest

from proxy import relaying
from proxy import upstream as upstream_module
from tests.fakes import answers
from tests.fakes.upstream import Gate, Upstream
from tests.joulegate_server import KEY, TEAMS, Joulegate, Start, config_of

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}

ODD = (
    b'\n{ "zeta": 1.0, "temperature": 1e0 ,"max_tokens":10, "big": 12345678901234567890123,\n'
    b'"small": 1E-400, "messages" : [ {"content": "a \\u00fc \\ud83e\\udd89 \xc3\xbc", "role":'
    b'"user", "name": null, "unheard_of": {"model": "other", "b": [1,2.50]}} ],'
    b'"nothing": null, "model":"tiny","metadata":{"a":""} ,"user":"u-1", "seed": -0 } \r\n'
)


def test_a_request_reaches_the_backend_byte_for_byte(
    running: Joulegate, upstream: Upstream
) -> None:
    assert running.post(ODD).status == 200
    assert upstream.wait_for(1)[0].body == ODD


def test_numbers_written_as_engines_take_them_are_theirs_to_judge(
    running: Joulegate, upstream: Upstream
) -> None:
    body = (
        b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],"max_tokens":100.0,'
        b'"temperature":"0.7","n":"1","stream":"false"}'
    )
    assert running.post(body).status == 200
    assert upstream.wait_for(1)[0].body == body


def test_only_the_model_is_rewritten_and_only_where_the_name_differs(
    joulegate: Start, upstream: Upstream
) -> None:
    backend = {"url": upstream.base_url, "upstream_model": 'org/tiny "q"'}
    running = joulegate(config_of(backend))
    assert running.post(ODD).status == 200
    expected = ODD.replace(b'"model":"tiny"', b'"model":"org/tiny \\"q\\""')
    assert upstream.wait_for(1)[0].body == expected


@pytest.mark.parametrize(
    "body",
    [
        b'{"model" : "tiny","messages":[]}',
        b'{"messages":[{"role":"user","content":"\\"model\\": \\"tiny\\""}],"model":"tiny"}',
        b'{"messages":[{"role":"user","content":"x","model":"tiny"}],"model":"tiny"}',
        b'{"metadata":{"model":"tiny"},"messages":[],"model":"tiny"}',
        b'{"\\u006dodel":"tiny","messages":[]}',
        b'{"model":"t\\u0069ny","messages":[]}',
        b'{"user":"model","messages":[],"model":"tiny","tools":[]}',
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_right_model_is_rewritten_wherever_it_stands(
    joulegate: Start, upstream: Upstream, body: bytes, stream: bool
) -> None:
    running = joulegate(config_of({"url": upstream.base_url, "upstream_model": "big"}))
    if stream:
        body = body[:-1] + b',"stream":true}'
    assert running.post(body).status == 200
    sent = upstream.wait_for(1)[0].json()
    expected = {**json.loads(body), "model": "big"}
    if stream:
        expected["stream_options"] = {"include_usage": True}
    assert sent == expected


def test_an_answer_reaches_the_client_byte_for_byte(running: Joulegate, upstream: Upstream) -> None:
    body = (
        b'{ "id":"x","created":1.79e9,"object":"chat.completion", "model":"tiny-2024", '
        b'"choices":[ ],"system_fingerprint":null,"unheard_of":[1.0,{"\\u00fc":-0}],'
        b'"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7,"energy":{"j":1}}}\n'
    )
    headers = {**answers.PROVIDER_HEADERS, "x-unheard-of": "yes", "endpoint-load-metrics": "a=1"}
    upstream.play(answers.answer(body, headers=headers))
    got = running.post(ODD)
    assert got.body == body
    for name, value in headers.items():
        assert got.header(name) == value


def test_the_backend_s_own_model_name_is_left_in_the_answer(
    joulegate: Start, upstream: Upstream
) -> None:
    running = joulegate(config_of({"url": upstream.base_url, "upstream_model": "big"}))
    assert running.post({"model": "tiny", "messages": []}).json()["model"] == "big"


def test_the_query_and_body_cannot_choose_where_a_request_goes(
    joulegate: Start, upstream: Upstream
) -> None:
    with Upstream(answers.like_an_engine()) as other:
        running = joulegate(config_of(upstream.base_url, teams=TEAMS))
        body: dict[str, Any] = {
            "model": "tiny",
            "messages": [],
            "api_base": other.base_url,
            "base_url": other.base_url,
            "api_key": "sk-other",
            "custom_llm_provider": "other",
        }
        headers = {
            "authorization": f"Bearer {KEY}",
            "host": other.address.removeprefix("http://"),
            "x-forwarded-host": other.address,
            "x-joulegate-backend": other.base_url,
            "x-joulegate-base-url": other.base_url,
            "x-litellm-api-base": other.base_url,
            "helicone-target-url": other.base_url,
            "x-portkey-custom-host": other.base_url,
            "location": other.base_url,
            "proxy-authorization": "Basic abc",
        }
        path = f"/v1/chat/completions?api_base={other.base_url}"
        assert running.post(body, path=path, headers=headers).status == 200
        assert other.received == []
    (sent,) = upstream.received
    assert sent.header("host") == upstream.address.removeprefix("http://")
    assert sent.header("authorization") is None
    assert sent.header("proxy-authorization") is None
    assert sent.target == "/v1/chat/completions"
    assert KEY not in repr(sent.headers)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_leads_no_client_away(
    running: Joulegate, upstream: Upstream, status: int
) -> None:
    with Upstream(answers.like_an_engine()) as other:
        upstream.play(answers.answer(b"{}", status, {"location": f"{other.base_url}/x"}))
        got = running.post(ODD)
        assert (got.status, got.code) == (502, "upstream_failed")
        assert got.header("location") is None
        record = running.record(got.header("x-request-id"))
        assert (record.outcome, record.energy_j) == ("failed", 0.0)
        assert other.received == []


def test_what_is_about_an_upstreams_own_site_stays_behind(
    running: Joulegate, upstream: Upstream
) -> None:
    theirs = ("clear-site-data", "set-cookie", "alt-svc", "access-control-allow-credentials")
    upstream.play(answers.answer(answers.CHAT, headers=dict.fromkeys(theirs, "x")))
    got = running.post(ODD)
    assert got.status == 200
    assert [got.header(name) for name in theirs] == [None] * len(theirs)


def test_a_backend_gets_its_own_key_and_headers(joulegate: Start, upstream: Upstream) -> None:
    backend = {
        "url": upstream.base_url,
        "api_key": "sk-theirs",
        "extra_headers": {"X-Tenant": "blue"},
    }
    running = joulegate(config_of(backend, teams=TEAMS))
    headers = {"api-key": KEY, "openai-organization": "org-1", "user-agent": "tests/1"}
    assert running.post(ODD, headers=headers).status == 200
    (sent,) = upstream.received
    assert sent.header("authorization") == "Bearer sk-theirs"
    assert sent.header("x-tenant") == "blue"
    assert sent.header("openai-organization") == "org-1"
    assert sent.header("user-agent") == "tests/1"
    assert sent.header("api-key") is None


def test_cookies_of_an_upstream_reach_nobody(running: Joulegate, upstream: Upstream) -> None:
    cookie = {"set-cookie": "session=secret; Path=/"}
    upstream.play(answers.answer(answers.CHAT, headers=cookie))
    assert running.post(ODD).header("set-cookie") is None
    running.post(ODD)
    assert upstream.wait_for(2)[1].header("cookie") is None


PACKED = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("coding", PACKED)
@pytest.mark.parametrize("status", [200, 400])
def test_an_answer_that_was_compressed_unasked_is_unpacked(
    running: Joulegate, upstream: Upstream, coding: str, status: int
) -> None:
    body = json.dumps(answers.CHAT).encode()
    headers = {"content-encoding": coding}
    upstream.play(answers.answer(PACKED[coding](body), status, headers))
    got = running.post(ODD)
    assert (got.status, got.body) == (status, body)
    assert got.header("content-encoding") is None
    assert got.header("content-length") == str(len(body))
    if status == 200:
        assert running.record(got.header("x-request-id")).output_tokens == 3
    assert upstream.received[0].header("accept-encoding") == "identity"


def test_a_stream_that_was_compressed_unasked_arrives_as_it_is_written(
    running: Joulegate, upstream: Upstream
) -> None:
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    events = [answers.event(one) for one in answers.chat_events(usage=True)]
    first, *rest = [packer.compress(one) + packer.flush(zlib.Z_SYNC_FLUSH) for one in events]
    gate = Gate()
    pieces = [first, gate, b"".join(rest) + packer.flush()]
    upstream.play(answers.stream(pieces, headers={"content-encoding": "gzip"}))
    options = {"include_usage": True}
    with closing(running.open({**ASK, "stream": True, "stream_options": options})) as connection:
        response = connection.getresponse()
        assert response.getheader("content-encoding") is None
        assert response.read1() == events[0]
        gate.open()
        assert response.read() == b"".join(events[1:])
        record = running.record(response.getheader("x-request-id"))
    assert (record.outcome, record.output_tokens) == ("ok", 3)


def test_an_answer_too_large_to_be_held_is_unpacked_too(
    running: Joulegate, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "MAX_HELD_BYTES", 100)
    body = json.dumps(answers.CHAT).encode()
    upstream.play(answers.answer(gzip.compress(body), headers={"content-encoding": "gzip"}))
    assert running.post(ODD).body == body


@pytest.mark.parametrize("coding", ["identity", "gzip"])
@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad Request"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_of_unknown_length_is_not_held_to_its_end(
    running: Joulegate,
    upstream: Upstream,
    monkeypatch: pytest.MonkeyPatch,
    coding: str,
    status: bytes,
    stream: bool,
) -> None:
    for module in (relaying, upstream_module):
        monkeypatch.setattr(module, "MAX_HELD_BYTES", 10_000)
    gate = Gate()
    packer = zlib.compressobj(wbits=31)
    flush = zlib.Z_FULL_FLUSH
    parts = [json.dumps(answers.CHAT).encode() + b" " * 200_000, b" " * 1_000]
    sent = [packer.compress(p) + packer.flush(flush) if coding == "gzip" else p for p in parts]
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-encoding: %b\r\n"
    chunked = head % (status, coding.encode()) + b"transfer-encoding: chunked\r\n\r\n"
    end = packer.flush() if coding == "gzip" else b" "
    frames = [answers.framed(piece) for piece in (*sent, end)]
    upstream.play([chunked, frames[0], gate, *frames[1:], b"0\r\n\r\n"])
    got = running.open({**ASK, "stream": stream}).getresponse()  # while the rest is still to come
    assert got.status == int(status[:3])
    assert got.read(200_000).startswith(parts[0][:100])
    gate.open()
    got.read()


@pytest.mark.parametrize("more", [answers.answer(answers.CHAT)[0], b"HTTP/1.1 408 Late\r\n\r\n"])
def test_what_a_backend_says_unasked_is_nobodys_answer(
    running: Joulegate, upstream: Upstream, more: Any
) -> None:
    def numbered(number: int) -> Any:
        return answers.answer({**answers.CHAT, "id": f"chatcmpl-{number}"})

    gate = Gate()
    upstream.play([*numbered(1), gate, more], numbered(2), numbered(3))
    ids = [running.post(ODD).json()["id"]]
    gate.open()
    assert upstream.received[0].answered.wait(5)
    ids += [running.post(ODD).json()["id"] for _ in range(2)]
    assert ids == ["chatcmpl-1", "chatcmpl-2", "chatcmpl-3"]
    assert len(upstream.received) == 3


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/v1/responses"])
def test_other_routes_pass_through_too(running: Joulegate, upstream: Upstream, path: str) -> None:
    body = b'{"model":"tiny", "input":"x","prompt":"x" , "odd":1.0}'
    answered = b'{"object":"odd", "usage":{"prompt_tokens":1,"total_tokens":1}}'
    upstream.play(answers.answer(answered))
    got = running.post(body, path=path)
    assert (got.status, got.body) == (200, answered)
    assert upstream.wait_for(1)[0].body == body
    assert upstream.received[0].path == path
