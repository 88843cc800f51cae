"""What answers cost, by the tokens that their backends counted."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.fakes import answers
from tests.fakes.upstream import CUT, Upstream
from tests.joulegate_server import Joulegate, Start, config_of

MESSAGES = {"model": "tiny", "max_tokens": 900, "messages": [{"role": "user", "content": "hello"}]}
USAGE = {
    "input_tokens": 11,
    "output_tokens": 4,
    "cache_read_input_tokens": 100,
    "cache_creation_input_tokens": 50,
    "cache_creation": {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 20},
}
# Dollars of these at Anthropic's list prices for Sonnet 4.5
SPENT_USD = (11 * 3 + 100 * 0.3 + 30 * 3.75 + 20 * 6 + 4 * 15) / 1e6
MESSAGE: dict[str, object] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [],
    "stop_reason": None,
    "usage": USAGE,
}
HEAD = answers.head(content_type="text/event-stream", content_length="99999")
DELTA: dict[str, object] = {
    "type": "content_block_delta",
    "index": 0,
    "delta": {"type": "text_delta", "text": "Guten "},
}


def events(*sent: dict[str, object]) -> bytes:
    return b"".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in sent)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


def started(joulegate: Start, upstream: Upstream, **more: object) -> Joulegate:
    backend = {"url": upstream.base_url, "engine": "api", "upstream_model": "claude-sonnet-4-5"}
    return joulegate(config_of({**backend, **more}))


def test_what_a_message_wrote_into_a_cache_costs_what_it_costs(
    joulegate: Start, upstream: Upstream
) -> None:
    upstream.play(answers.answer(MESSAGE))
    running = started(joulegate, upstream)
    running.post(MESSAGES, path="/v1/messages")
    (record,) = running.records()
    assert record.money_usd == pytest.approx(SPENT_USD)


def test_a_stream_of_messages_costs_what_its_first_and_last_events_say(
    joulegate: Start, upstream: Upstream
) -> None:
    start: dict[str, object] = {
        "type": "message_start",
        "message": {**MESSAGE, "usage": {**USAGE, "output_tokens": 1}},
    }
    last: dict[str, object] = {"type": "message_delta", "usage": {"output_tokens": 4}}
    upstream.play(answers.stream([events(start, DELTA, last, {"type": "message_stop"})]))
    running = started(joulegate, upstream)
    running.post({**MESSAGES, "stream": True}, path="/v1/messages")
    (record,) = running.records()
    assert record.money_usd == pytest.approx(SPENT_USD)


def test_a_broken_message_costs_what_came_of_it(joulegate: Start, upstream: Upstream) -> None:
    start: dict[str, object] = {
        "type": "message_start",
        "message": {**MESSAGE, "usage": {**USAGE, "output_tokens": 1}},
    }
    upstream.play([HEAD, events(start, DELTA, DELTA), CUT])
    running = started(joulegate, upstream, declared_energy={"j_per_output_token": 3.0})
    running.post({**MESSAGES, "stream": True}, path="/v1/messages")
    (record,) = running.records()
    assert (record.outcome, record.output_tokens) == ("failed", 2)
    assert record.money_usd == pytest.approx(SPENT_USD - 2 * 15e-6)
    assert record.energy_j == pytest.approx(6.0)


def test_a_broken_chat_costs_the_tokens_that_came_and_not_those_expected(
    joulegate: Start, upstream: Upstream
) -> None:
    chat = [answers.event(e) for e in answers.chat_events(["Grüß", " ", "Gott"], usage=False)]
    upstream.play([HEAD, *chat[:4], CUT])
    running = started(joulegate, upstream)
    running.post({**MESSAGES, "stream": True})
    (record,) = running.records()
    assert record.outcome == "failed"
    assert record.output_tokens is not None
    assert record.prompt_tokens is not None
    spent = record.prompt_tokens * 3e-6 + record.output_tokens * 15e-6
    assert record.money_usd == pytest.approx(spent)


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
COUNTED = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
# Dollars a million tokens of o3, read and written, as OpenAI's price list has them
TIERS = {None: (2, 8), "default": (2, 8), "flex": (1, 4), "priority": (3.5, 14), 7: (2, 8)}


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_costs_what_its_service_tier_costs(
    tier: str | int | None, stream: bool, joulegate: Start, upstream: Upstream
) -> None:
    said = {"id": "1", "object": "chat.completion", "usage": COUNTED, "service_tier": tier}
    if stream:
        last = json.dumps({**said, "choices": []})
        upstream.play(answers.stream([f"data: {last}\n\n".encode(), b"data: [DONE]\n\n"]))
    else:
        choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}}
        upstream.play(answers.answer({**said, "choices": [choice]}))
    running = started(joulegate, upstream, upstream_model="o3")
    running.post({**CHAT, "service_tier": "auto", "stream": stream})
    (record,) = running.records()
    read, written = TIERS[tier]
    assert record.money_usd == pytest.approx((1000 * read + 100 * written) / 1e6)


def test_a_response_costs_what_its_service_tier_costs(joulegate: Start, upstream: Upstream) -> None:
    usage = {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100}
    response = {"id": "r", "object": "response", "service_tier": "flex", "usage": usage}
    done = json.dumps({"type": "response.completed", "response": response})
    upstream.play(answers.stream([f"event: response.completed\ndata: {done}\n\n".encode()]))
    running = started(joulegate, upstream, upstream_model="o3")
    running.post({"model": "tiny", "input": "hello", "stream": True}, path="/v1/responses")
    (record,) = running.records()
    assert record.money_usd == pytest.approx((1000 * 1 + 100 * 4) / 1e6)
