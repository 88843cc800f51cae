"""Two fake engines behind a Joulegate that knows what they cost: a small one and a large one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from policies.records import Record, decision_from_json
from policies.types import Decision
from tests.fakes import answers
from tests.fakes.upstream import Answer, Received, Script, Upstream
from tests.joulegate_server import Joulegate, Reply, config_of

SMALL = {"name": "m@small", "model": "m", "gpu": "H100-SXM", "params_b": 8.0, "quality": 0.6}
LARGE = {"name": "m@large", "model": "m", "gpu": "H100-SXM", "params_b": 70.0, "quality": 0.9}
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def small() -> Iterator[Upstream]:
    with Upstream(answers.like_an_engine(), pages=answers.engine_pages()) as running:
        yield running


@pytest.fixture
def large() -> Iterator[Upstream]:
    with Upstream(answers.like_an_engine(), pages=answers.engine_pages()) as running:
        yield running


def both(small: Upstream, large: Upstream, **more: Any) -> dict[str, Any]:
    """A config of the two."""
    return config_of({**SMALL, "url": small.base_url}, {**LARGE, "url": large.base_url}, **more)


def kept(running: Joulegate, reply: Reply) -> Record:
    """The decision of a request as its record keeps it."""
    decision = running.record(reply.header("x-request-id")).decision
    assert decision is not None
    return decision_from_json(decision)


def decided(running: Joulegate, reply: Reply) -> Decision:
    decision = kept(running, reply).decision
    assert decision is not None
    return decision


def saying(text: str, finish: str = "stop", logprob: float | None = None) -> Answer:
    """An engine that answers every chat with that text, streamed or not; with log-probabilities
    of its tokens where the request asks for them."""

    def play(request: Received) -> Script:
        asked = orjson.loads(request.body)
        logprobs = None
        if logprob is not None and asked.get("logprobs"):
            logprobs = {"content": [{"token": text, "logprob": logprob, "top_logprobs": []}]}
        usage = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
        if asked.get("stream"):
            wanted = (asked.get("stream_options") or {}).get("include_usage")
            events = answers.chat_events([text], usage=bool(wanted), model=asked["model"])
            return answers.stream([answers.event(event) for event in events])
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "logprobs": logprobs,
            "finish_reason": finish,
        }
        body = {**answers.CHAT, "model": asked["model"], "choices": [choice], "usage": usage}
        return answers.answer(body)

    return play
