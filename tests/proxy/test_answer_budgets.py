"""Shorter answers as candidates of their own in the running proxy, where a team allows them."""

from __future__ import annotations

from typing import Any

import pytest

from meters import simulated_engine
from meters.simulated_physics import EngineConfig
from policies.records import replay_decision
from tests.fakes.upstream import Upstream
from tests.joulegate_server import ADMIN, KEY, Start
from tests.proxy.two_backends import ASK, SMALL, both, decided, kept, large, small
from tests.waiting import until

__all__ = ["large", "small"]  # fixtures


BUDGETS = [
    {
        "name": "brief",
        "directive": "Answer in one sentence.",
        "output_factor": 0.3,
        "quality_factor": 0.98,
    },
    {"name": "capped", "max_tokens": 4000, "reasoning_effort": "low", "output_factor": 0.9},
]


def brief(*budgets: Any, **limits: Any) -> dict[str, Any]:
    policy = {"answer_budgets": list(budgets or BUDGETS), "limits": limits}
    return {"policies": {"short": policy}, "default_policy": "short"}


def test_the_shortest_answer_that_is_good_enough_is_asked_for(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    running = joulegate(both(small, large, **brief()))
    reply = running.post({**ASK, "temperature": 0.5})
    assert reply.header("x-joulegate-backend") == "m@small"
    assert reply.header("x-joulegate-answer-budget") == "brief"
    sent = small.received[-1].json()
    directive = {"role": "system", "content": "Answer in one sentence."}
    assert sent["messages"] == [directive, *ASK["messages"]]
    assert sent["temperature"] == 0.5
    record = running.record(reply.header("x-request-id"))
    assert (record.backend, record.answer_budget) == ("m@small", "brief")
    decision = decided(running, reply)
    assert decision.chosen == "m@small+brief"
    assert decision.counterfactual == "m@large"  # never a shorter answer: nobody asked for one
    assert {r.backend for r in decision.rejections} == {
        "m@small",
        "m@small+capped",
        "m@large",
        "m@large+brief",
        "m@large+capped",
    }
    assert (
        replay_decision(
            kept(running, reply), running.proxy.router.policies if running.proxy else {}
        )
        == decision
    )
    receipt = running.get(f"/v1/usage/{record.request_id}").json()
    assert receipt["answer_budget"] == "brief"


def test_effort_and_cap_are_asked_for_and_a_tighter_wish_stays(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    running = joulegate(both(small, large, **brief(BUDGETS[1])))
    reply = running.post(ASK)
    assert reply.header("x-joulegate-answer-budget") == "capped"
    sent = small.received[-1].json()
    assert (sent["max_completion_tokens"], sent["reasoning_effort"]) == (4000, "low")
    running.post({**ASK, "max_tokens": 7, "reasoning_effort": "high"})
    sent = small.received[-1].json()
    assert (sent["max_tokens"], sent["reasoning_effort"]) == (7, "high")


def test_a_request_is_left_alone_where_the_plain_backend_is_chosen(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    """A budget that costs too much quality is no candidate, and the bytes go on as they came."""
    running = joulegate(both(small, large, **brief(BUDGETS[0], min_quality=0.89, judge="expected")))
    raw = b'{"model": "m@large",  "messages":[{"role":"user","content":"hi"}]}'
    reply = running.post(raw)
    assert reply.header("x-joulegate-answer-budget") is None
    assert large.received[-1].body == raw.replace(b'"m@large"', b'"m"')
    assert "quality" in {
        r.code.split("_")[0]
        for r in decided(running, running.post(ASK)).rejections
        if r.backend == "m@large+brief"
    }


def test_only_teams_that_allow_it_get_shorter_answers(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    teams = {
        "physics": {"keys": [KEY]},
        "poets": {"keys": [{"key": ADMIN, "role": "admin"}], "answer_budgets": True},
    }
    running = joulegate(both(small, large, teams=teams, **brief()))
    bearer = {key: {"authorization": f"Bearer {key}"} for key in (KEY, ADMIN)}
    assert running.post(ASK, headers=bearer[KEY]).header("x-joulegate-answer-budget") is None
    named = {**bearer[KEY], "x-joulegate-policy": "short"}
    assert running.post(ASK, headers=named).header("x-joulegate-answer-budget") is None
    assert running.post(ASK, headers=bearer[ADMIN]).header("x-joulegate-answer-budget") == "brief"


def test_what_is_no_chat_is_left_alone(joulegate: Start, small: Upstream, large: Upstream) -> None:
    running = joulegate(both(small, large, **brief()))
    reply = running.post({"model": "m", "prompt": "hi"}, path="/v1/completions")
    assert reply.header("x-joulegate-answer-budget") is None


def test_scores_of_short_answers_teach_what_the_budget_costs(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    running = joulegate(both(small, large, **brief(BUDGETS[0], min_quality=0.5, judge="expected")))
    asked = [running.post(ASK) for _ in range(25)]
    assert asked[0].header("x-joulegate-answer-budget") == "brief"
    quality = {c.name: c.quality for c in kept(running, asked[0]).candidates}
    for reply in asked:
        given = {"request_id": reply.header("x-request-id"), "score": 0.0}
        assert running.post(given, path="/v1/feedback").status == 200
    reply = running.post(ASK)
    after = {c.name: c.quality for c in kept(running, reply).candidates}
    short, before = after["m@small+brief"], quality["m@small+brief"]
    assert short is not None
    assert before is not None
    assert short.mid < before.mid / 2
    assert after["m@small"] == quality["m@small"]  # nothing was said of its whole answers
    assert reply.header("x-joulegate-answer-budget") is None


def test_answers_teach_how_much_shorter_they_get(joulegate: Start) -> None:
    with simulated_engine.start(EngineConfig(model="m", seed=3)) as engine:
        backend = {
            **SMALL,
            "url": f"{engine.url}/v1",
            "simulated": True,
            "meter": {"kind": "simulated", "url": engine.url},
        }
        capped = {"name": "capped", "max_tokens": 6, "quality_factor": 1.0, "output_factor": 0.9}
        running = joulegate({"backends": [backend], "cache": {"enabled": False}, **brief(capped)})
        assert running.proxy is not None
        effects, estimator = running.proxy.router.effects, running.proxy.estimator
        for _ in range(5):
            assert running.post(ASK).header("x-joulegate-answer-budget") == "capped"
        until(lambda: effects.lengths)
        answers = effects.lengths["m@small+capped", ""]
        assert answers.total / answers.answers < 0.1  # six tokens of hundreds
        assert estimator.lengths._answers == 0  # the backend's own answers are not so short


@pytest.mark.parametrize("policy", ["least_energy", "thrifty"])
def test_policies_without_budgets_never_change_a_request(
    policy: str, joulegate: Start, small: Upstream, large: Upstream
) -> None:
    running = joulegate(both(small, large, **{**brief(), "default_policy": policy}))
    raw = b'{"model": "m",  "messages":[{"role":"user","content":"hi"}]}'
    assert running.post(raw).header("x-joulegate-answer-budget") is None
    assert (small.received + large.received)[-1].body == raw
