"""Which answers are found again over HTTP, by whom, and what becomes of those who wait for one."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.fakes import answers
from tests.fakes.upstream import Gate, Upstream
from tests.joulegate_server import KEY, Config, Joulegate, Start, config_of, reply
from tests.waiting import until

OTHER = "sk-other-0123456789abcdef"
ASK = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
}


def cached(*upstreams: Any, **more: Any) -> Config:
    teams = {"physics": {"keys": [KEY]}, "chemistry": {"keys": [OTHER]}}
    return config_of(*upstreams, **{"cache": {"enabled": True}, "teams": teams, **more})


def saying(text: str, **more: object) -> dict[str, object]:
    return {**ASK, "messages": [{"role": "user", "content": text}], **more}


def found(running: Joulegate, body: object, key: str = KEY, **headers: str) -> str | None:
    fields = {"x-api-key": key, **{k.replace("_", "-"): v for k, v in headers.items()}}
    answered = running.post(body, headers=fields)  # type: ignore[arg-type]
    assert answered.status == 200, answered.body
    return answered.header("x-joulegate-cache")


def test_many_identical_requests_in_flight_are_one_upstream(
    joulegate: Start, upstream: Upstream
) -> None:
    gate = Gate()
    whole = answers.like_an_engine()
    upstream.play(lambda request: (gate, *whole(request)))
    running = joulegate(cached(upstream.base_url))
    with ThreadPoolExecutor(8) as pool:
        replies = [pool.submit(found, running, ASK) for _ in range(8)]
        upstream.wait_for(1)
        until(lambda: running.proxy is not None and running.proxy.steps.in_flight == 8)
        gate.open()
        assert sorted(str(r.result(10)) for r in replies) == ["hit"] * 7 + ["miss"]
    assert len(upstream.received) == 1


def test_identical_requests_in_flight_at_two_replicas_are_one_upstream(
    joulegate: Start, upstream: Upstream, redis_url: str
) -> None:
    gate = Gate()
    whole = answers.like_an_engine()
    upstream.play(lambda request: (gate, *whole(request)))
    config = cached(upstream.base_url, redis={"url": redis_url, "timeout_s": 5})
    replicas = [joulegate(config), joulegate(config)]
    body = saying(f"What is the capital of {time.time_ns()}?")  # other tests share this Redis
    with ThreadPoolExecutor(8) as pool:
        replies = [pool.submit(found, replicas[n % 2], body) for n in range(8)]
        upstream.wait_for(1)
        for running in replicas:
            until(lambda r=running: r.proxy is not None and r.proxy.steps.in_flight == 4)  # type: ignore[misc]
        gate.open()
        assert sorted(str(r.result(20)) for r in replies) == ["hit"] * 7 + ["miss"]
    assert len(upstream.received) == 1


def test_who_waits_for_another_s_answer_may_leave_at_any_time(
    joulegate: Start, upstream: Upstream
) -> None:
    gate = Gate()
    upstream.play((gate, *answers.answer({"usage": {}})))
    running = joulegate(cached(upstream.base_url))
    assert running.proxy is not None
    first = running.open(ASK, headers={"x-api-key": KEY})
    upstream.wait_for(1)
    second = running.open(ASK, headers={"x-api-key": KEY})
    until(lambda: running.proxy is not None and running.proxy.steps.in_flight == 2)
    second.close()
    left = running.records(lambda record: record.outcome == "cancelled")
    assert [(record.cache, record.sent_s) for record in left] == [("miss", None)]
    assert running.proxy.steps.in_flight == 1
    gate.open()
    assert reply(first.getresponse()).status == 200
    first.close()


def test_cache_control_is_honoured(joulegate: Start, upstream: Upstream) -> None:
    running = joulegate(cached(upstream.base_url))
    assert found(running, ASK, cache_control="no-store") == "miss"
    assert found(running, ASK) == "miss"  # it was not kept
    assert found(running, ASK) == "hit"
    assert found(running, ASK, cache_control="no-cache") == "miss"
    assert found(running, ASK, cache_control="max-age=60") == "hit"
    assert found(running, ASK, cache_control="max-age=0") == "miss"
    assert found(running, ASK, OTHER) == "miss"  # another team's


@pytest.mark.parametrize(
    "script",
    [
        answers.answer(
            json.dumps(
                {
                    "choices": [{"message": {"tool_calls": [{"id": "c1"}]}}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
                }
            ).encode()
        ),
        answers.answer({"usage": {"prompt_tokens": 1}}, headers={"cache-control": "no-store"}),
        answers.failure(400, "bad", "No."),
        answers.answer({"error": "no usage, so not an answer"}),
        answers.answer({"error": {"message": "No."}, "usage": {"prompt_tokens": 1}}),
    ],
    ids=["tool call", "no-store", "error", "no usage", "an error all the same"],
)
def test_what_is_no_complete_plain_answer_is_not_kept(
    joulegate: Start, upstream: Upstream, script: Any
) -> None:
    upstream.play(script)
    running = joulegate(cached(upstream.base_url))
    for _ in range(2):
        answered = running.post(ASK, headers={"x-api-key": KEY})
        assert answered.header("x-joulegate-cache") == "miss"


def test_a_stream_that_broke_off_is_not_kept(joulegate: Start, upstream: Upstream) -> None:
    whole = b"".join(answers.event(e) for e in answers.chat_events(usage=True))
    upstream.play(answers.stream(answers.cut(whole[: len(whole) // 2], [])))
    running = joulegate(cached(upstream.base_url))
    streamed = {**ASK, "stream": True}
    assert [found(running, streamed) for _ in range(2)] == ["miss", "miss"]


def test_auto_is_answered_only_by_the_group_that_would_serve_it(
    joulegate: Start, upstream: Upstream
) -> None:
    hardware = {"url": upstream.base_url, "gpu": "H100-SXM", "upstream_model": "tiny"}
    small = {**hardware, "model": "small", "params_b": 1.0, "quality": 0.3}
    large = {**hardware, "model": "large", "params_b": 70.0, "quality": 0.9}
    policies = {
        "lean": {"objective": "energy", "among": "any"},
        "good": {"objective": "quality", "among": "any"},
    }
    running = joulegate(cached(small, large, policies=policies))
    ask = {**ASK, "model": "auto"}

    def served(policy: str) -> tuple[str | None, str | None]:
        answered = running.post(ask, headers={"x-api-key": KEY, "x-joulegate-policy": policy})
        assert answered.status == 200, answered.body
        return answered.header("x-joulegate-backend"), answered.header("x-joulegate-cache")

    thrifty, best = served("lean"), served("good")
    assert thrifty[0] != best[0]
    assert (thrifty[1], best[1]) == ("miss", "miss")
    assert served("lean") == (thrifty[0], "hit")
    assert served("good") == (best[0], "hit")


def test_near_copies_are_answered_alike_only_for_a_team_that_wants_it(
    joulegate: Start, upstream: Upstream
) -> None:
    teams = {"physics": {"keys": [KEY], "similar_answers": 0.8}, "chemistry": {"keys": [OTHER]}}
    running = joulegate(cached(upstream.base_url, teams=teams))
    near = saying("Please, what is the capital of france")
    assert found(running, ASK) == "miss"
    assert found(running, near) == "similar"
    assert found(running, near, cache_control="no-cache") == "miss"
    assert found(running, saying("What is the capital of Italy?")) == "miss"
    assert found(running, saying("What was the capital of France?")) == "miss"
    assert found(running, {**near, "max_tokens": 7}) == "miss"  # another request in all but words
    assert found(running, ASK, OTHER) == "miss"
    assert found(running, near, OTHER) == "miss"  # off unless asked for
    record = running.records(lambda r: r.cache == "similar")[0]
    assert (record.energy_j, record.carbon_g, record.sent_s) == (0.0, 0.0, None)


def test_a_hit_is_counted_at_what_the_spared_request_would_have_used(
    joulegate: Start, upstream: Upstream
) -> None:
    hardware = {"gpu": "L40S", "params_b": 8.0, "precision": "int4"}
    running = joulegate(cached({"url": upstream.base_url, **hardware}))
    assert [found(running, ASK) for _ in range(2)] == ["miss", "hit"]
    missed = running.records(lambda r: r.cache == "miss")[0]
    hit = running.records(lambda r: r.cache == "hit")[0]
    assert missed.energy_j is not None
    assert hit.counterfactual_energy_j == pytest.approx(missed.energy_j, rel=0.5)
    assert hit.counterfactual_backend == missed.backend
    assert (hit.energy_j, hit.carbon_g) == (0.0, 0.0)


@pytest.mark.parametrize(("simulated", "evidence"), [(True, "simulated"), (False, "benchmark")])
def test_a_hit_is_in_the_book_of_its_answer_and_its_receipt_says_what_its_headers_said(
    joulegate: Start, upstream: Upstream, simulated: bool, evidence: str
) -> None:
    hardware = {"gpu": "L40S", "params_b": 8.0, "precision": "int4", "simulated": simulated}
    running = joulegate(cached({"url": upstream.base_url, **hardware}))
    assert found(running, ASK) == "miss"
    hit = running.post(ASK, headers={"x-api-key": KEY})
    assert hit.header("x-joulegate-cache") == "hit"
    said = hit.header("x-joulegate-evidence"), hit.header("x-joulegate-energy-range-j")
    assert said == (evidence, "0-0")
    running.records(lambda r: r.cache == "hit")
    receipt = running.get(f"/v1/usage/{hit.header('x-request-id')}", **{"x-api-key": KEY}).json()
    assert receipt["simulated"] is simulated  # what it avoided is no more real than its answer
    estimated = receipt["energy"]["estimated_j"]
    assert [estimated[name] for name in ("low", "mid", "high")] == [0.0, 0.0, 0.0]
    assert receipt["energy"]["evidence"] == estimated["evidence"] == evidence
