"""Cascades through the running proxy: checked, escalated, both answers on the books."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meters import simulated_engine
from meters.simulated_physics import EngineConfig
from policies.records import replay_decision
from proxy import accounts
from tests.fakes import answers
from tests.fakes.upstream import CUT, Upstream
from tests.joulegate_server import Reply, Start, config_of
from tests.proxy.two_backends import (
    ASK,
    LARGE,
    SMALL,
    both,
    decided,
    kept,
    large,
    saying,
    small,
)
from tests.waiting import until

__all__ = ["large", "small"]  # fixtures


BUDGET = "x-joulegate-answer-budget"


def cascade(**more: Any) -> dict[str, Any]:
    written = {"min_quality": 0.8, "judge": "expected"}
    policy = {"limits": written, "cascade": {"pass_rate": 0.9, **more}}
    return {"policies": {"drafts": policy}, "default_policy": "drafts"}


def text_of(reply: Reply) -> str:
    text = reply.json()["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


def test_a_good_first_answer_is_the_answer(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    running = joulegate(both(small, large, **cascade()))
    reply = running.post(ASK)
    assert reply.header("x-joulegate-backend") == "m@small"
    assert reply.header("x-joulegate-escalated-from") is None
    assert decided(running, reply).escalate_to == "m@large"
    record = running.record(reply.header("x-request-id"))
    assert (record.attempts, record.earlier) == (1, None)
    assert len(large.received) == 0


@pytest.mark.parametrize(
    ("first", "asked", "against"),
    [
        (saying("I'm sorry, but I can't help with that."), {}, "a refusal"),
        (saying("and so on and", finish="length"), {}, "cut off at the token limit"),
        (saying(""), {}, "shorter than 1 characters"),
        (saying("not json"), {"response_format": {"type": "json_object"}}, "not JSON"),
        (
            saying('{"answer": "six"}'),
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        "name": "x",
                        "schema": {"type": "object", "properties": {"answer": {"type": "integer"}}},
                    },
                }
            },
            "does not fit the schema: $.answer is not integer",
        ),
    ],
)
def test_a_faulty_first_answer_is_replaced_and_both_are_on_the_books(
    first: Any,
    asked: dict[str, Any],
    against: str,
    joulegate: Start,
    small: Upstream,
    large: Upstream,
) -> None:
    small.play(first)
    large.play(saying("Forty-two."))
    running = joulegate(both(small, large, **cascade()))
    reply = running.post({**ASK, **asked})
    assert (reply.status, text_of(reply)) == (200, "Forty-two.")
    assert reply.header("x-joulegate-backend") == "m@large"
    assert reply.header("x-joulegate-escalated-from") == "m@small"
    receipt = running.get(f"/v1/usage/{reply.header('x-request-id')}").json()
    assert (receipt["backend"], receipt["attempts"]) == ("m@large", 2)
    (earlier,) = receipt["earlier"]
    assert (earlier["backend"], earlier["against"]) == ("m@small", against)
    seen = {c.name: c.energy_j for c in kept(running, reply).candidates}
    alone = seen["m@large"]
    assert alone is not None
    assert earlier["energy_j"] > 0.0
    expected = alone.mid + earlier["energy_j"]
    assert receipt["energy"]["estimated_j"]["mid"] == pytest.approx(expected)


def test_an_apis_part_is_told_apart_which_no_window_replaces(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    small.play(saying(""))
    api = {"engine": "api", "gpu": None, "params_b": None}
    declared = {"declared_energy": {"j_per_output_token": 20.0}}
    config = config_of(
        {**SMALL, "url": small.base_url},
        {**LARGE, "url": large.base_url, **api, **declared},
        **cascade(),
    )
    running = joulegate(config)
    reply = running.post(ASK)
    assert reply.header("x-joulegate-escalated-from") == "m@small"
    record = running.record(reply.header("x-request-id"))
    (earlier,) = json.loads(record.earlier or "[]")
    assert record.output_tokens == 3
    assert record.hosted_j == pytest.approx(60.0)
    assert record.hosted_low_j is not None
    assert record.hosted_high_j is not None
    assert record.hosted_low_j < 60.0 < record.hosted_high_j
    assert record.energy_j == pytest.approx(60.0 + earlier["energy_j"])
    alone = running.record(running.post({**ASK, "model": "m@large"}).header("x-request-id"))
    assert alone.hosted_j is None


def test_a_first_answer_that_breaks_off_is_replaced(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    small.play([answers.head(content_length="500"), b'{"choices":', CUT])
    large.play(saying("Whole."))
    running = joulegate(both(small, large, **cascade()))
    reply = running.post(ASK)
    assert (reply.status, text_of(reply)) == (200, "Whole.")


def test_a_faulty_answer_is_given_where_nobody_else_answers(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    small.play(saying("I cannot help with that."))
    large.play(answers.failure(500, "broken", "no"))
    running = joulegate(both(small, large, **cascade()))
    reply = running.post(ASK)
    assert (reply.status, text_of(reply)) == (200, "I cannot help with that.")
    assert reply.header("x-joulegate-backend") == "m@small"


def test_an_unsure_answer_is_replaced_and_nobody_sees_that_it_was_asked(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    large.play(saying("Sure."))
    running = joulegate(both(small, large, **cascade(least_logprob=-0.5)))
    small.play(saying("Perhaps.", logprob=-2.0))
    assert text_of(running.post(ASK)) == "Sure."
    small.play(saying("Yes.", logprob=-0.1))
    reply = running.post(ASK)
    assert text_of(reply) == "Yes."
    assert reply.json()["choices"][0]["logprobs"] is None
    assert small.received[-1].json()["logprobs"] is True
    assert "logprobs" not in large.received[-1].json()
    asked = running.post({**ASK, "logprobs": True})  # a client that wants them gets them
    assert asked.json()["choices"][0]["logprobs"]["content"][0]["logprob"] == -0.1


def test_a_judge_may_be_asked_and_is_on_the_books(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    running = joulegate(both(small, large, **cascade(judge="m@large")))
    large.play(saying("No."))
    small.play(saying("Seven."))
    reply = running.post(ASK)
    assert text_of(reply) == "No."  # the judge and the second answer are the same engine here
    receipt = running.get(f"/v1/usage/{reply.header('x-request-id')}").json()
    assert [e["kind"] for e in receipt["earlier"]] == ["judge", "answer"]
    assert "judged" in receipt["earlier"][1]["against"]
    assert all(e["energy_j"] > 0.0 for e in receipt["earlier"])
    assert "Seven." in str(large.received[0].json()["messages"])
    large.play(saying("Yes."))
    assert text_of(running.post(ASK)) == "Seven."


def test_a_stream_goes_directly_unless_the_policy_lets_it_wait(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    small.play(saying("I'm not able to."))
    large.play(saying("Streamed."))
    stream = {**ASK, "stream": True}
    running = joulegate(both(small, large, **cascade()))
    reply = running.post(stream)
    assert reply.header("x-joulegate-backend") == "m@large"
    assert len(small.received) == 0
    waiting = joulegate(both(small, large, **cascade(streams_wait=True)))
    reply = waiting.post(stream)
    assert reply.header("x-joulegate-escalated-from") == "m@small"
    assert b"Streamed." in reply.body
    assert b"not able" not in reply.body
    small.play(saying("Good."))
    reply = waiting.post(stream)
    assert reply.header("x-joulegate-backend") == "m@small"
    direct = answers.chat_events(["Good."], model="m")
    assert reply.body == b"".join(answers.event(event) for event in direct)


def test_a_cascade_that_does_not_pay_is_not_used(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    """First answers that fail teach that; then the better backend is asked at once."""
    small.play(saying(""))
    large.play(saying("Good."))
    running = joulegate(both(small, large, **cascade(pass_rate=0.5)))
    replies = [running.post(ASK) for _ in range(130)]
    assert replies[0].header("x-joulegate-escalated-from") == "m@small"
    rates = [kept(running, reply).request.pass_rate for reply in replies]
    assert rates[0] == 0.5
    assert rates[1] == pytest.approx(0.5 * 20 / 21)
    # Lengths are learnt meanwhile, so that it may come to pay again, and not to.
    at_once = [one for one in replies if one.header("x-joulegate-escalated-from") is None]
    assert at_once
    record = kept(running, at_once[-1])
    assert record.decision is not None
    assert record.decision.escalate_to is None
    assert running.proxy is not None
    assert replay_decision(record, running.proxy.router.policies) == record.decision


def test_what_cannot_be_checked_goes_directly(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    running = joulegate(both(small, large, **cascade()))
    reply = running.post({"model": "m", "prompt": "hi"}, path="/v1/completions")
    assert reply.header("x-joulegate-backend") == "m@large"


def test_a_first_answer_keeps_to_the_policys_other_limits(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    config = both(small, large, **cascade())
    config["backends"][1]["region"] = "eu"
    config["policies"]["drafts"]["limits"]["regions"] = ["eu"]
    running = joulegate(config)
    assert running.post(ASK).header("x-joulegate-backend") == "m@large"
    assert len(small.received) == 0


def test_both_answers_are_metered(joulegate: Start) -> None:
    engines = [simulated_engine.start(EngineConfig(model="m", seed=seed)) for seed in (1, 2)]
    try:
        backends = [
            {
                **facts,
                "url": f"{engine.url}/v1",
                "simulated": True,
                "meter": {"kind": "simulated", "url": engine.url},
            }
            for engine, facts in zip(engines, (SMALL, LARGE), strict=True)
        ]
        running = joulegate({"backends": backends, "cache": {"enabled": False}, **cascade()})
        assert running.proxy is not None
        running.wait_for_meters()
        reply = running.post({**ASK, "max_tokens": 8})  # cut off at its limit
        assert reply.header("x-joulegate-escalated-from") == "m@small"
        nodes = {"m@small", "m@large"}

        def receipt_of_both() -> Any:
            receipt = running.get(f"/v1/usage/{reply.header('x-request-id')}").json()
            found = {share["node"] for share in receipt["energy"]["windows"]}
            return receipt if found == nodes else None

        receipt = until(receipt_of_both)
        by_node = {
            node: sum(s["energy_j"] for s in receipt["energy"]["windows"] if s["node"] == node)
            for node in nodes
        }
        assert min(by_node.values()) > 0.0
        assert receipt["energy"]["attributed_j"] == pytest.approx(sum(by_node.values()))
        assert abs(running.proxy.accounts.imbalance_j) < 1e-6
    finally:
        for engine in engines:
            engine.close()


def test_a_first_answer_under_a_budget_teaches_what_the_budget_does(
    joulegate: Start, small: Upstream, large: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not how long the backend's own answers are."""
    monkeypatch.setattr(accounts, "UNMETERED_S", 0.0)
    config = cascade()
    config["policies"]["drafts"]["answer_budgets"] = [
        {"name": "brief", "directive": "In a sentence.", "output_factor": 0.3}
    ]
    small.play(saying("I cannot help with that."))
    running = joulegate(both(small, large, **config))
    assert running.proxy is not None
    reply = running.post(ASK)
    assert reply.header("x-joulegate-escalated-from") == "m@small"
    assert decided(running, reply).chosen == "m@small+brief"
    effects = running.proxy.router.effects
    learnt = 1 + (reply.header(BUDGET) is not None)
    until(lambda: len({name for name, _ in list(effects.lengths)}) >= learnt)
    assert effects.lengths["m@small+brief", ""].answers == 1.0
    assert running.proxy.estimator.lengths._answers == int(reply.header(BUDGET) is None)
