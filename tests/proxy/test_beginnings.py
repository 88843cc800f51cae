"""Prompts that begin alike, where the engine tells no request what it found in its cache."""

from __future__ import annotations

import time
from typing import Any

import pytest

from meters.types import Activity, Window
from tests.fakes import answers
from tests.fakes.upstream import Upstream
from tests.joulegate_server import Joulegate, Start, config_of

RULES = "You are a helper of many rules. " + " ".join(
    f"Rule {i} holds." for i in range(150)
)  # short enough to be waited for


def window(cached: float | None) -> Window:
    now_s = time.time()
    return Window(
        window_id=f"w{now_s}",
        node="tiny-0",
        start_s=now_s - 1,
        end_s=now_s,
        energy_j=100.0,
        prompt_tokens=0.0,
        cached_prompt_tokens=cached,
    )


def asked(running: Joulegate, question: str, **more: Any) -> Activity:
    """What the books know of a request that was just answered."""
    messages = [{"role": "system", "content": RULES}, {"role": "user", "content": question}]
    reply = running.post({"model": "tiny", "messages": messages, **more})
    assert reply.status == 200
    request_id = reply.header("x-request-id")
    running.record(request_id)
    assert running.proxy is not None
    now_s = time.time()
    found = running.proxy.accounts.activities("tiny-0", now_s - 60, now_s + 1)
    return next(activity for activity in found if activity.request_id == request_id)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_begins_as_another_did_most_likely_was_cached(
    joulegate: Start, stream: bool
) -> None:
    with Upstream(answers.like_an_engine()) as upstream:
        running = joulegate(config_of({"url": upstream.base_url, "node": "tiny-0"}))
        assert running.proxy is not None
        before = asked(running, "What is a joule?", stream=stream)
        assert before.likely_cached_tokens is None  # no meter yet, so nobody looked
        running.proxy.take_window(window(cached=0.0))
        first = asked(running, "What is a joule?", stream=stream)
        assert first.likely_cached_tokens == 0
        again = asked(running, "And what is a watt?", stream=stream)
        assert again.likely_cached_tokens is not None
        assert 0.8 * again.prompt_tokens < again.likely_cached_tokens <= again.prompt_tokens
        other = asked(running, "And what is a watt?", tools=[TOOL], stream=stream)
        assert other.likely_cached_tokens == 0  # tools stand before all messages


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def test_an_engine_without_a_prefix_cache_is_not_followed(joulegate: Start) -> None:
    with Upstream(answers.like_an_engine()) as upstream:
        running = joulegate(config_of({"url": upstream.base_url, "node": "tiny-0"}))
        assert running.proxy is not None
        running.proxy.take_window(window(cached=None))
        for question in ("What is a joule?", "And what is a watt?"):
            assert asked(running, question).likely_cached_tokens is None
