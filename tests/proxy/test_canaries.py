"""Roll-outs of new backends in running proxies: their share, their end, what outlives a start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from policies.canary import Arm
from proxy.canaries import together
from tests.fakes import answers
from tests.fakes.upstream import Pace, Upstream
from tests.joulegate_server import Joulegate, Start, in_thread
from tests.proxy.two_backends import ASK, LARGE, both, decided, large, saying, small
from tests.waiting import until

__all__ = ["large", "small"]  # fixtures


def rolling_out(share: float = 0.5, **more: Any) -> dict[str, Any]:
    policies = {"new": {"objective": "quality", "canary": {"backend": "m@small", "share": share}}}
    return {"policies": policies, "default_policy": "new", **more}


def states(running: Joulegate) -> dict[str, str]:
    assert running.proxy is not None
    return {policy: c.state for policy, c in running.proxy.canaries.roll_outs.items()}


def test_a_canary_that_fails_is_rolled_back_and_stays_so_after_a_restart(
    small: Upstream, large: Upstream, tmp_path: Path
) -> None:
    small.play(answers.failure(500, "broken", "no"))
    rules = {"failures": 1000, "health_check_s": 0, "wait_s": 0, "attempts": 2}
    config = both(small, large, **rolling_out(retries=rules))
    running, stop = in_thread(config, tmp_path)
    try:
        for _ in range(300):
            assert running.post(ASK).status == 200  # the next one answers: no client notices
            if states(running)["new"] == "rolled_back":
                break
        assert running.proxy is not None
        roll_out = running.proxy.canaries.roll_outs["new"]
        assert roll_out.state == "rolled_back"
        assert "errors" in roll_out.why
        before = len(small.received)
        reply = running.post(ASK)
        assert len(small.received) == before  # it gets no traffic any more
        told = {r.backend: r.message for r in decided(running, reply).rejections}
        assert told["m@small"] == "new: it gets 0% of requests"
    finally:
        stop()
    running, stop = in_thread(config, tmp_path)
    try:
        assert states(running) == {"new": "rolled_back"}
        for _ in range(30):
            running.post(ASK)
        assert len(small.received) == before
    finally:
        stop()


def test_a_canary_that_is_slow_is_rolled_back(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    small.play([Pace(0.05), *answers.answer(answers.CHAT)])
    running = joulegate(both(small, large, **rolling_out()))
    for _ in range(300):
        running.post(ASK)
        if states(running)["new"] != "rolling":
            break
    assert running.proxy is not None
    roll_out = running.proxy.canaries.roll_outs["new"]
    assert (roll_out.state, roll_out.why[:7]) == ("rolled_back", "latency")


def test_a_canary_whose_answers_are_worse_is_rolled_back(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    running = joulegate(both(small, large, **rolling_out()))
    for _ in range(300):
        reply = running.post(ASK)
        thumb = "down" if reply.header("x-joulegate-backend") == "m@small" else "up"
        given = {"request_id": reply.header("x-request-id"), "thumb": thumb}
        assert running.post(given, path="/v1/feedback").status == 200
        if states(running)["new"] != "rolling":
            break
    assert running.proxy is not None
    roll_out = running.proxy.canaries.roll_outs["new"]
    assert (roll_out.state, roll_out.why[:7]) == ("rolled_back", "quality")


def test_a_canary_gets_its_share_and_is_marked(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    running = joulegate(both(small, large, **rolling_out(share=0.2)))
    replies = [running.post(ASK) for _ in range(100)]
    arms: dict[str | None, set[str | None]] = {}
    for reply in replies:
        arm = running.record(reply.header("x-request-id")).arm
        arms.setdefault(arm, set()).add(reply.header("x-joulegate-backend"))
    assert arms == {"canary": {"m@small"}, "control": {"m@large"}}
    assert 5 <= len(small.received) <= 40


def test_the_second_answer_of_a_cascade_is_no_error_of_the_first(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    small.play(saying("I cannot help with that."))
    policies = {
        "new": {
            "limits": {"min_quality": 0.8, "judge": "expected"},
            "cascade": {"pass_rate": 0.9},
            "canary": {"backend": "m@new", "share": 0},
        }
    }
    config = both(small, large, policies=policies, default_policy="new")
    config["backends"].append({**LARGE, "name": "m@new", "url": large.base_url})
    running = joulegate(config)
    reply = running.post(ASK)
    assert reply.header("x-joulegate-escalated-from") == "m@small"
    assert running.record(reply.header("x-request-id")).arm == "control"
    assert running.proxy is not None
    control = running.proxy.canaries.roll_outs["new"].control
    assert (control.requests, control.errors) == (1, 0)


@pytest.fixture
def redis(redis_url: str) -> str:
    """A database of its own on the shared Redis."""
    return redis_url.rsplit("/", 1)[0] + "/9"


def test_replicas_that_share_a_store_roll_back_together(
    joulegate: Start, small: Upstream, large: Upstream, redis: str
) -> None:
    small.play(answers.failure(500, "broken", "no"))
    rules = {"failures": 1000, "health_check_s": 0, "wait_s": 0, "attempts": 2}
    config = both(small, large, **rolling_out(retries=rules, redis={"url": redis}))
    one, other = joulegate(config), joulegate(config)
    for _ in range(300):
        one.post(ASK)
        if states(one)["new"] == "rolled_back":
            break
    assert states(one) == {"new": "rolled_back"}
    until(lambda: states(other) == {"new": "rolled_back"})
    before = len(small.received)
    for _ in range(20):
        assert other.post(ASK).header("x-joulegate-backend") == "m@large"
    assert len(small.received) == before


def test_what_a_canary_showed_outlives_a_redis_that_forgot_it(
    small: Upstream, large: Upstream, redis: str, tmp_path: Path
) -> None:
    config = both(small, large, **rolling_out(redis={"url": redis}))

    def seen(running: Joulegate) -> int:
        assert running.proxy is not None
        roll_out = running.proxy.canaries.roll_outs["new"]
        return roll_out.canary.requests + roll_out.control.requests

    def forget() -> None:
        with Redis.from_url(redis) as client:
            client.flushdb()

    forget()
    one, stop_one = in_thread(config, tmp_path / "one")
    other, stop_other = in_thread(config, tmp_path / "other")
    try:
        for running in (one, other, one):
            running.post(ASK)
        until(lambda: (seen(one), seen(other)) == (3, 3))
        forget()
        other.post(ASK)
        until(lambda: (seen(one), seen(other)) == (4, 4))  # also what nothing was added to
    finally:
        stop_one()
        stop_other()
    forget()
    other, stop_other = in_thread(config, tmp_path / "other")
    one, stop_one = in_thread(config, tmp_path / "one")
    try:
        until(lambda: (seen(one), seen(other)) == (4, 4))
        one.post(ASK)
        until(lambda: (seen(one), seen(other)) == (5, 5))  # nothing counts twice
    finally:
        stop_one()
        stop_other()


def test_sums_of_replicas_are_those_of_all_their_requests() -> None:
    one = Arm().with_request(True, 2.0).with_score(0.5)
    other = Arm().with_request(False).with_request(True, 1.0)
    assert Arm(*together([one, other])) == Arm(3, 1, 3.0, 5.0, 1, 0.5, 0.25)
