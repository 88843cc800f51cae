"""Our figures in the body, for clients that ask, and nothing of the kind for others."""

from __future__ import annotations

import json
import random
from typing import Any

import openai
import pytest

from proxy.usage_in_body import UsageInBody, figures_in, with_figures
from tests.fakes import answers
from tests.fakes.upstream import Upstream
from tests.joulegate_server import KEY, Joulegate, Reply, Start, config_of

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
WANTED = {"x-joulegate-usage": "true"}
MODEL = {"params_b": 8.0, "gpu": "H100-SXM", "intensity_g_per_kwh": 400.0}


@pytest.fixture
def running(joulegate: Start, upstream: Upstream) -> Joulegate:
    upstream.play(answers.like_an_engine())
    backend = {"model": "tiny", "url": f"{upstream.base_url}/v1", **MODEL}
    return joulegate({"backends": [backend], "cache": {"enabled": True}})


def said_in(reply: Reply) -> dict[str, Any]:
    """What the headers say, as the body should."""
    energy = reply.header("x-joulegate-energy-j")
    return {
        "request_id": reply.header("x-request-id"),
        "backend": reply.header("x-joulegate-backend"),
        "policy": reply.header("x-joulegate-policy"),
        "cache": reply.header("x-joulegate-cache"),
        "mid": None if energy is None else float(energy),
        "evidence": reply.header("x-joulegate-evidence"),
    }


def told_by(usage: dict[str, Any]) -> dict[str, Any]:
    figures = dict(usage["joulegate"])
    energy, carbon_g = figures.pop("energy_j"), figures.pop("carbon_g")
    assert energy is None or energy["low"] <= energy["mid"] <= energy["high"]
    assert carbon_g is None or carbon_g >= 0
    return {**figures, "mid": energy and energy["mid"]}


def test_only_who_asks_has_figures_in_the_body(running: Joulegate) -> None:
    plain = running.post(ASK)
    asked = running.post(ASK, headers=WANTED)
    body = asked.json()
    assert told_by(body["usage"]) == said_in(asked)
    assert body["usage"]["joulegate"]["energy_j"]["low"] > 0
    del body["usage"]["joulegate"]
    assert body == plain.json()
    assert list(body) == list(plain.json())
    assert int(asked.header("content-length") or 0) == len(asked.body)
    assert running.post(ASK, headers={"x-joulegate-usage": "false"}).body == plain.body
    wrong = running.post(ASK, headers={"x-joulegate-usage": "yes"})
    assert wrong.status == 400
    assert "true or false" in wrong.json()["error"]["message"]


def test_a_cached_answer_is_kept_without_and_told_with_its_own(running: Joulegate) -> None:
    once = {**ASK, "temperature": 0}
    assert running.post(once, headers=WANTED).header("x-joulegate-cache") == "miss"
    hit = running.post(once, headers=WANTED)
    assert hit.header("x-joulegate-cache") == "hit"
    assert told_by(hit.json()["usage"]) == {**said_in(hit), "mid": 0}
    assert "joulegate" not in running.post(once).json()["usage"]
    streamed = {**once, "stream": True, "stream_options": {"include_usage": True}}
    first, again = (running.post(streamed, headers=WANTED) for _ in range(2))
    assert again.header("x-joulegate-cache") == "hit"
    for reply in (first, again):
        last = json.loads(reply.body.split(b"data: ")[-2])
        assert told_by(last["usage"]) == said_in(reply)


def test_openais_client_finds_them(running: Joulegate) -> None:
    with openai.OpenAI(base_url=running.base_url, api_key=KEY, default_headers=WANTED) as client:
        whole = client.chat.completions.create(**ASK)
        assert whole.usage is not None
        assert whole.usage.joulegate["energy_j"]["mid"] > 0  # type: ignore[attr-defined]
        events = list(
            client.chat.completions.create(
                **ASK, stream=True, stream_options={"include_usage": True}
            )
        )
    assert events[-1].usage is not None
    assert events[-1].usage.joulegate["backend"] == "tiny@bf16"  # type: ignore[attr-defined]
    assert "".join(e.choices[0].delta.content or "" for e in events[:-1]) == "Grüß Gott 🦉"


def test_streams_without_usage_and_errors_are_as_they_were(
    running: Joulegate, upstream: Upstream
) -> None:
    stream = {**ASK, "stream": True}
    assert running.post(stream, headers=WANTED).body == running.post(stream).body
    upstream.play(answers.failure(422, "odd", "No."))
    assert running.post(ASK, headers=WANTED).body == running.post(ASK).body


def test_messages_have_them_and_say_what_is_not_known(joulegate: Start, upstream: Upstream) -> None:
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [{"type": "text", "text": "Hello."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 2},
    }
    upstream.play(answers.answer(message))
    running = joulegate(config_of(upstream.base_url))
    asked = {"model": "tiny", "max_tokens": 5, "messages": ASK["messages"]}
    body = running.post(asked, path="/v1/messages", headers=WANTED).json()
    assert body["usage"].pop("joulegate") == {
        **dict.fromkeys(("energy_j", "carbon_g")),
        "request_id": running.records()[0].request_id,
        "backend": "tiny-0",
        "policy": "least_energy",
        "cache": "off",
        "evidence": "unknown",
    }
    assert body == message


async def test_streams_are_the_same_however_they_are_cut() -> None:
    headers = [(b"content-type", b"text/event-stream"), (b"x-joulegate-energy-j", b"1")]
    events = [answers.event(one) for one in answers.chat_events(usage=True)]
    done = {"type": "response.completed", "response": {"usage": {"input_tokens": 1}}}
    for newline in ("\n", "\r\n"):
        whole = b"".join([*events, answers.event(done, newline=newline), b": ping\n\n"])
        seen = set()
        for seed in range(40):
            out: list[bytes] = []

            async def send(message: Any, out: list[bytes] = out) -> None:
                out.append(message.get("body", b""))

            to_client = UsageInBody(send)
            await to_client({"type": "http.response.start", "status": 200, "headers": headers})
            rng = random.Random(seed)
            pieces = answers.cut(whole, rng.sample(range(len(whole)), 30) if seed else [])
            for piece in pieces:
                await to_client({"type": "http.response.body", "body": piece, "more_body": True})
            await to_client({"type": "http.response.body", "body": b""})
            seen.add(b"".join(out))
        (only,) = seen
        assert only.count(b'"joulegate"') == 2
        assert only.count(b"\n") == whole.count(b"\n")
        assert only.count(b"\r") == whole.count(b"\r")


def test_what_is_not_ours_keeps_its_bytes() -> None:
    figures = figures_in(
        {b"x-joulegate-energy-j": b"2e-05", b"x-joulegate-energy-range-j": b"1e-05-3e-05"}
    )
    answer = b'{"b" : 1.50, "usage": {"x":1e3}, "a":"\\u00fc"}'
    told = with_figures(answer, figures)
    assert told.startswith(b'{"b":1.50,"usage":{"x":1e3,"joulegate":{')
    assert told.endswith(b'},"a":"\\u00fc"}')
    found = json.loads(told)["usage"]["joulegate"]["energy_j"]
    assert found == {"low": 1e-05, "mid": 2e-05, "high": 3e-05}
    for odd in (b"", b"[1]", b'{"usage":null}', b'{"usage":7}', b"\xff", b'{"a":1}'):
        assert with_figures(odd, figures) is odd
