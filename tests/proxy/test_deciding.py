"""What the running proxy tells its policies: sessions, budgets, promises, sleep, conditions."""

from __future__ import annotations

import time
from typing import Any

import pytest

from meters import simulated_engine
from meters.simulated_physics import EngineConfig
from policies.guarantee import FIRST_DEBT
from policies.records import replay_decision
from tests.fakes import answers
from tests.fakes.upstream import Upstream
from tests.joulegate_server import KEY, Start, config_of
from tests.proxy.two_backends import ASK, LARGE, SMALL, both, decided, kept, large, small
from tests.waiting import until

__all__ = ["large", "small"]  # fixtures


LONG = "Tell me all about the joule, and then about the kilowatt hour. " * 40
FIRST = {"model": "m", "messages": [{"role": "user", "content": LONG}]}
SECOND = {
    "model": "m",
    "messages": [
        *FIRST["messages"],
        {"role": "assistant", "content": "Grüß Gott"},
        {"role": "user", "content": "And the calorie?"},
    ],
}
HOLD = {"hold": {"session": "hold"}}


def test_a_conversation_stays_where_its_prefix_is_without_being_named(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    running = joulegate(both(small, large, policies=HOLD, default_policy="hold"))
    first = running.post({**FIRST, "model": "m@large"})
    assert first.header("x-joulegate-backend") == "m@large"
    second = running.post(SECOND)
    assert second.header("x-joulegate-backend") == "m@large"
    decision = decided(running, second)
    assert decision.kept == "session"
    assert decision.moving_energy_j is not None
    assert decision.moving_energy_j > 0.0
    request = kept(running, second).request
    assert request.session_backend == "m@large"
    assert request.features.cached_prompt_tokens > 400  # all of the turn before
    session = running.record(second.header("x-request-id")).session
    assert session == first.header("x-request-id")
    # Another conversation is free, and one that was told another answer is the same one.
    assert running.post(FIRST).header("x-joulegate-backend") == "m@small"
    other = {"role": "user", "content": "Something else"}
    assert running.post({**SECOND, "messages": [other, *SECOND["messages"][1:]]}).header(
        "x-joulegate-backend"
    ) == ("m@small")


def test_a_named_session_stays_and_its_name_is_not_kept(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    running = joulegate(both(small, large, policies=HOLD, default_policy="hold"))
    named = {"x-session-id": "anna-7"}
    running.post({**ASK, "model": "m@large"}, headers=named)
    again = running.post(ASK, headers=named)
    assert again.header("x-joulegate-backend") == "m@large"
    assert running.post(ASK).header("x-joulegate-backend") == "m@small"
    record = running.record(again.header("x-request-id"))
    assert record.session is not None
    assert "anna" not in record.session
    assert "anna" not in (record.decision or "")
    assert kept(running, again).request.features.cached_prompt_tokens == 0  # it does not go on


def test_a_turn_that_weighs_says_what_moving_would_cost(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    running = joulegate(both(small, large, default_policy="least_energy"))
    running.post({**FIRST, "model": "m@large"})
    told = running.post(SECOND, path="/v1/route").json()
    assert told["moving_energy_j"] > 0.0
    assert any("cached prefix" in sentence for sentence in told["explained"])


def test_streams_are_known_as_streams(joulegate: Start, small: Upstream, large: Upstream) -> None:
    running = joulegate(both(small, large))
    assert kept(running, running.post({**ASK, "stream": True})).request.stream
    assert not kept(running, running.post(ASK)).request.stream


def test_a_promise_on_average_is_paid_off_and_then_energy_decides(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    policies = {"bulk": {"average_quality": 0.7}}
    running = joulegate(both(small, large, policies=policies, default_policy="bulk"))
    replies = [running.post(ASK) for _ in range(80)]
    served = [reply.header("x-joulegate-backend") for reply in replies]
    assert served[0] == "m@large"  # it starts in debt
    assert "m@small" in served[40:]
    debts = [kept(running, reply).request.quality_debt for reply in replies]
    assert debts[0] == FIRST_DEBT
    assert debts[1] == pytest.approx(FIRST_DEBT + 0.7 - 0.9, abs=0.05)
    given = [running.record(reply.header("x-request-id")).quality or 0.0 for reply in replies]
    assert sum(given) / len(given) >= 0.7
    # A score that is worse than was expected raises what is owed, by the difference.
    assert running.proxy is not None
    promises = running.proxy.router.promises
    last = replies[-1].header("x-request-id")
    before = promises.debt("default", "bulk")
    assert running.post({"request_id": last, "score": 0.0}, path="/v1/feedback").status == 200
    assert promises.debt("default", "bulk") == pytest.approx(before + given[-1])
    running.post({"request_id": last, "thumb": "down"}, path="/v1/feedback")  # sent again
    assert promises.debt("default", "bulk") == pytest.approx(before + given[-1])
    running.post({"request_id": last, "score": 0.5}, path="/v1/feedback")  # they changed their mind
    assert promises.debt("default", "bulk") == pytest.approx(before + given[-1] - 0.5)


def test_only_answers_that_were_made_for_it_are_scored_against_a_promise(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    policies = {"bulk": {"average_quality": 0.7}}
    running = joulegate(
        both(small, large, policies=policies, default_policy="bulk", cache={"enabled": True})
    )
    assert running.proxy is not None
    promises, asked = running.proxy.router.promises, {**ASK, "temperature": 0}
    running.post(asked)
    again = running.post(asked)
    assert again.header("x-joulegate-cache") == "hit"
    large.play(answers.answer({"error": {"message": "no"}}, status=400))
    failed = running.post(ASK)
    assert failed.status == 400
    before = promises.debt("default", "bulk")
    statuses = [
        running.post(
            {"request_id": reply.header("x-request-id"), "score": 0.0}, path="/v1/feedback"
        ).status
        for reply in (again, failed)
    ]
    assert statuses == [200, 400]  # it had no answer
    assert promises.debt("default", "bulk") == before


def test_a_promise_begins_with_answers_that_keep_it(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    """Also where they are only a little better, and cost ten times as much."""
    config = config_of(
        {**SMALL, "quality": 0.85, "url": small.base_url},
        {**LARGE, "url": large.base_url},
        policies={"bulk": {"average_quality": 0.89}},
        default_policy="bulk",
    )
    running = joulegate(config)
    told = running.post(ASK, path="/v1/route").json()
    assert told["chosen"] == "m@large"
    first = [running.post(ASK).header("x-joulegate-backend") for _ in range(2)]
    assert first == ["m@large"] * 2


def test_rules_on_a_budget_see_what_is_left_of_it(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    policies = {
        "careful": {
            "objective": "quality",
            "rules": [{"when": {"budget_left": "< 50 %"}, "objective": "energy"}],
        }
    }
    teams = {
        "physics": {"keys": [KEY], "policy": "careful", "budgets": [{"per": "day", "requests": 4}]}
    }
    running = joulegate(both(small, large, policies=policies, teams=teams))
    running.headers["authorization"] = f"Bearer {KEY}"
    replies = [running.post(ASK) for _ in range(4)]
    assert [reply.status for reply in replies] == [200] * 4
    served = [reply.header("x-joulegate-backend") for reply in replies]
    assert served == ["m@large", "m@large", "m@small", "m@small"]
    left = [kept(running, reply).request.budget_left for reply in replies]
    assert left == [0.75, 0.5, 0.25, 0.0]


def test_a_budget_that_stopped_everything_lets_requests_through_in_its_next_period(
    joulegate: Start, small: Upstream, large: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = {"when": {"budget_left": "< 50 %"}, "limits": {"max_energy_j": 1e-9}}
    teams = {
        "physics": {"keys": [KEY], "policy": "stop", "budgets": [{"per": "day", "requests": 4}]}
    }
    running = joulegate(both(small, large, policies={"stop": {"rules": [nothing]}}, teams=teams))
    running.headers["authorization"] = f"Bearer {KEY}"
    assert [running.post(ASK).status for _ in range(4)] == [200, 200, 422, 422]
    assert running.post(ASK, path="/v1/route").status == 422
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 86_400.0)
    assert running.post(ASK, path="/v1/route").status == 200
    assert running.post(ASK).status == 200


def test_every_condition_sees_the_request_as_it_is(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    running = joulegate(both(small, large, carbon={"zone": "DE"}, default_policy="least_energy"))
    asked = {
        "model": "m",
        "messages": [{"role": "user", "content": "Write a Python function that sorts a list."}],
    }
    before = time.gmtime().tm_hour
    request = kept(
        running, running.post(asked, headers={"x-joulegate-tags": "night,batch"})
    ).request
    assert request.hour in (before, time.gmtime().tm_hour)
    assert (request.team, request.tags, request.asked) == ("default", ("night", "batch"), "m")
    assert request.features.task == "code"
    assert 10 < request.features.prompt_tokens < 40
    assert running.proxy is not None
    assert request.intensity_g_per_kwh == running.proxy.grid.common_g_per_kwh
    assert request.intensity_g_per_kwh is not None


@pytest.mark.parametrize(
    ("when", "matching"),
    [
        ({"tag": "night"}, {"headers": {"x-joulegate-tags": "night"}}),
        ({"team": "default"}, {}),
        ({"task": "code"}, {"text": "Write a Python function that sorts a list."}),
        ({"prompt_tokens": "> 500"}, {"text": LONG}),
        ({"hour": "0-24"}, {}),
        ({"intensity": "> 300"}, {}),
        ({"model": "m"}, {}),
    ],
)
def test_a_rule_applies_in_the_running_proxy(
    when: dict[str, str],
    matching: dict[str, Any],
    joulegate: Start,
    small: Upstream,
    large: Upstream,
) -> None:
    policies = {"ruled": {"rules": [{"when": when, "objective": "quality"}]}}
    carbon = {"intensity_g_per_kwh": 321.0}
    running = joulegate(
        both(small, large, policies=policies, default_policy="ruled", carbon=carbon)
    )
    text = matching.get("text", "Good morning to you")
    asked = {"model": "m", "messages": [{"role": "user", "content": text}]}
    reply = running.post(asked, headers=matching.get("headers", {}))
    assert reply.header("x-joulegate-backend") == "m@large"
    if matching:  # without what it asks for the rule does not apply
        assert running.post(ASK).header("x-joulegate-backend") == "m@small"


def test_an_engine_that_sleeps_is_left_asleep(joulegate: Start) -> None:
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
        running = joulegate({"backends": backends, "cache": {"enabled": False}})
        asked = {**ASK, "max_tokens": 3}
        assert running.post(asked).header("x-joulegate-backend") == "m@small"
        engines[0].server.asleep = True
        assert running.proxy is not None
        small_engine = running.proxy.pool.by_name["m@small"]
        until(lambda: small_engine.asleep)
        reply = running.post(asked)
        assert reply.header("x-joulegate-backend") == "m@large"
        assert running.record(reply.header("x-request-id")).attempts == 1
        slept = {seen.name: seen.asleep for seen in kept(running, reply).candidates}
        assert slept == {"m@small": True, "m@large": False}
    finally:
        for engine in engines:
            engine.close()


def test_what_was_decided_replays_to_the_same_answer(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    policies = {
        "all": {
            "average_quality": 0.7,
            "exploration": {"share": 0.3, "extra_energy": 1.0},
            "hold_out": 0.2,
            "hysteresis": 0.1,
            "rules": [{"when": {"tag": "b"}, "average_quality": 0.85}],
        }
    }
    running = joulegate(both(small, large, policies=policies, default_policy="all"))
    assert running.proxy is not None
    seen = set()
    for number in range(60):
        tags = {"x-joulegate-tags": "b"} if number % 3 == 0 else {}
        record = kept(running, running.post(ASK, headers=tags))
        assert replay_decision(record, running.proxy.router.policies) == record.decision
        assert record.decision is not None
        seen.add((record.decision.chosen, record.decision.arm))
    assert len(seen) > 2  # not all the same


def test_a_split_divides_requests_and_marks_them(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    policies = {
        "thrift": {"objective": "energy"},
        "best": {"objective": "quality"},
        "trial": {"split": {"thrift": "70 %", "best": "30 %"}},
    }
    running = joulegate(both(small, large, policies=policies, default_policy="trial"))
    served = {"thrift": "m@small", "best": "m@large"}
    arms = []
    for _ in range(100):
        reply = running.post(ASK)
        arms.append(running.record(reply.header("x-request-id")).arm)
        assert reply.header("x-joulegate-backend") == served[str(arms[-1])]
    assert 10 <= arms.count("best") <= 50
    # A conversation stays in the arm that its first request was in.
    named = {"x-session-id": "one"}
    assert (
        len({running.post(ASK, headers=named).header("x-joulegate-backend") for _ in range(20)})
        == 1
    )


@pytest.mark.parametrize(
    "more",
    [{}, {"hold_out": 1e-6, "rules": [{"when": {"task": "code"}, "use": "trial"}]}],
    ids=["alone", "beside a split"],
)
def test_hysteresis_holds_requests_of_a_kind_where_the_last_went(
    joulegate: Start, small: Upstream, large: Upstream, more: dict[str, object]
) -> None:
    policies: dict[str, dict[str, object]] = {
        "calm": {"hysteresis": 0.95, **more},
        "trial": {"split": {"calmer": 1.0}},
        "calmer": {"hysteresis": 0.9},
    }
    running = joulegate(both(small, large, policies=policies, default_policy="calm"))
    assert running.proxy is not None
    assert running.post(ASK).header("x-joulegate-backend") == "m@small"
    flow = next(iter(running.proxy.router.previous))
    running.proxy.router.previous[flow] = "m@large"  # as if it had been the better one
    reply = running.post(ASK)
    assert reply.header("x-joulegate-backend") == "m@large"
    assert decided(running, reply).kept == "hysteresis"


def test_the_arms_of_a_split_do_not_hold_each_other(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    policies = {
        "thrifty": {"objective": "energy", "hysteresis": 0.95},
        "good": {"objective": "quality", "hysteresis": 0.95},
        "trial": {"split": {"thrifty": 0.5, "good": 0.5}},
    }
    running = joulegate(both(small, large, policies=policies, default_policy="trial"))
    served: dict[str | None, set[str | None]] = {}
    for _ in range(20):
        reply = running.post(ASK)
        arm = running.record(reply.header("x-request-id")).arm
        served.setdefault(arm, set()).add(reply.header("x-joulegate-backend"))
    assert served == {"thrifty": {"m@small"}, "good": {"m@large"}}


def test_what_a_draw_chose_holds_nobody_else(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    """The treated would follow the hold-out, and no saving would be left to see."""
    policies = {"calm": {"hysteresis": 0.95, "hold_out": 0.5}}
    running = joulegate(both(small, large, policies=policies, default_policy="calm"))
    served: dict[str | None, set[str | None]] = {}
    for _ in range(20):
        reply = running.post(ASK)
        arm = running.record(reply.header("x-request-id")).arm
        served.setdefault(arm, set()).add(reply.header("x-joulegate-backend"))
    assert served == {"hold_out": {"m@large"}, "treated": {"m@small"}}


def test_an_open_request_that_is_held_out_goes_where_the_books_say(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    config = both(
        small,
        large,
        policies={"best": {"objective": "quality", "among": "any", "hold_out": 0.5}},
        default_policy="best",
        carbon={"default_counterfactual": "m@small"},
    )
    running = joulegate(config)
    assert running.proxy is not None
    for _ in range(12):
        reply = running.post({**ASK, "model": "auto"})
        record = running.record(reply.header("x-request-id"))
        assert record.counterfactual_backend == "m@small"
        assert record.backend == ("m@small" if record.arm == "hold_out" else "m@large")
        entry = kept(running, reply)
        assert replay_decision(entry, running.proxy.router.policies) == entry.decision


def test_a_share_of_quality_is_of_a_backend_that_is_away_too(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    """A limit is no lower while what it is measured by is away, and nothing is refused for it."""
    strict = {"min_quality": "97 % of asked", "judge": "expected"}
    policies = {
        "strict": {"limits": strict},
        "lenient": {"limits": strict, "otherwise": "pinned"},
        "most": {"limits": {"min_quality": "60 % of m@large", "judge": "expected"}},
    }
    running = joulegate(both(small, large, policies=policies))
    assert running.proxy is not None
    running.proxy.pool.by_name["m@large"].cooldown_until_s = time.monotonic() + 600.0
    served = {}
    for policy in ("most", "lenient", "strict"):
        reply = running.post(ASK, headers={"x-joulegate-policy": policy})
        served[policy] = reply.header("x-joulegate-backend")
        entry = kept(running, reply) if policy == "strict" else None
        assert entry is None or replay_decision(entry, running.proxy.router.policies) == (
            entry.decision
        )
    assert served == {"most": "m@small", "lenient": "m@small", "strict": "m@large"}
