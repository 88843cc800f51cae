"""Budgets from end to end: reserved with the estimate, settled with what came of it, corrected by
the meter, shared by replicas."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
import redis

from estimators.types import Features, Load
from meters.types import Evidence, Window
from proxy import budgets
from proxy.budgets import Amounts, Period, Rule
from proxy.store import AdmitRequest, Settlement, Store
from proxy.store_local import LocalStore
from proxy.store_redis import RedisStore
from tests.fakes import answers
from tests.fakes.upstream import HANG, Gate, Received, Script, Upstream
from tests.joulegate_server import KEY, Joulegate, Reply, Start, config_of
from tests.waiting import until

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
AUTH = {"x-api-key": KEY}
PRICED = {
    "gpu": "H100-SXM",
    "params_b": 8.0,
    "input_usd_per_mtok": 1000.0,
    "output_usd_per_mtok": 2000.0,
    "intensity_g_per_kwh": 500.0,
}
PLENTY = {"per": "day", "tokens": 10**9, "energy_j": 1e9, "carbon_g": 1e9, "money_usd": 1e6}


def with_budgets(*given: dict[str, Any], **team: Any) -> dict[str, Any]:
    return {"physics": {"keys": [{"key": KEY, "role": "lead"}], "budgets": list(given), **team}}


def used(running: Joulegate, metric: str, scope: str = "team:physics") -> float:
    """What a counter of today stands at, in its unit."""
    assert running.proxy is not None
    store = running.proxy.store
    assert isinstance(store, LocalStore)
    (counter,) = [
        c
        for c in list(store.counters.values())
        if c.charge.rule.metric == metric and c.charge.rule.scope == scope
    ]
    assert counter.reserved == 0 or running.proxy.steps.in_flight
    return counter.used / budgets.whole(metric, 1.0)  # type: ignore[arg-type]


def at_counted_tokens(running: Joulegate, prompt: int, output: int) -> float:
    """What the estimator says, in J, of a request that took so many tokens on an idle engine."""
    assert running.proxy is not None
    (engine,) = running.proxy.pool.engines
    told = Features(prompt_tokens=prompt)
    estimate = running.proxy.estimator.at_lengths(told, engine.facts, Load(known=True), output)
    assert estimate.energy_j is not None
    return estimate.energy_j.mid


def test_every_metric_is_settled_with_the_tokens_that_were_counted(
    joulegate: Start, upstream: Upstream
) -> None:
    running = joulegate(
        config_of(
            {"url": upstream.base_url, **PRICED},
            teams=with_budgets(PLENTY, organisation="acme"),
            organisations={"acme": {"budgets": [PLENTY]}},
        )
    )
    reply = running.post(ASK, headers=AUTH)
    assert reply.status == 200
    until(lambda: used(running, "tokens") == 15)
    record = running.record(reply.header("x-request-id"))
    assert record.money_usd == pytest.approx(12e-3 + 3 * 2e-3)  # as the budgets have it
    for scope in ("team:physics", "organisation:acme"):
        assert used(running, "tokens", scope) == 15
        assert used(running, "money_usd", scope) == pytest.approx(12e-3 + 3 * 2e-3)
        energy_j = at_counted_tokens(running, 12, 3)
        assert used(running, "energy_j", scope) == pytest.approx(energy_j, rel=1e-4)
        grams = energy_j / 3.6e6 * 1.2 * 500.0
        assert used(running, "carbon_g", scope) == pytest.approx(grams, rel=1e-2)
    estimated = float(reply.header("x-joulegate-energy-j") or "nan")
    assert used(running, "energy_j") < 0.5 * estimated  # three tokens, where hundreds were expected


def test_a_stream_without_usage_is_settled_with_its_events(
    joulegate: Start, upstream: Upstream
) -> None:
    events = [answers.event(e) for e in answers.chat_events(["a", "b", "c", "d"])]
    upstream.play(answers.stream(events))
    running = joulegate(config_of({"url": upstream.base_url, **PRICED}, teams=with_budgets(PLENTY)))
    assert running.post({**ASK, "stream": True}, headers=AUTH).status == 200
    record = running.records()[0]
    assert record.usage_source == "counted"
    until(
        lambda: used(running, "tokens") == (record.prompt_tokens or 0) + (record.output_tokens or 0)
    )


@pytest.mark.parametrize("status", [400, 404, 429, 500])
def test_what_a_backend_refuses_takes_nothing(
    joulegate: Start, upstream: Upstream, status: int
) -> None:
    upstream.play(answers.answer({"error": {"message": "No."}}, status))
    asked_of = {"per": "day", "requests": 100}
    running = joulegate(
        config_of({"url": upstream.base_url, **PRICED}, teams=with_budgets(PLENTY, asked_of))
    )
    reply = running.post(ASK, headers=AUTH)
    assert reply.status == status
    record = running.record(reply.header("x-request-id"))
    until(lambda: used(running, "requests") == 1)
    if status == 500:  # it may have failed half-way, and nobody says
        assert used(running, "tokens") > 100
        assert record.energy_j
        return
    assert (used(running, "tokens"), used(running, "energy_j")) == (0, 0)
    assert (record.energy_j, record.money_usd, record.sent_s) == (0.0, 0.0, None)
    assert record.counterfactual_energy_j is None, "what fails avoids nothing"
    assert record.backend == "tiny-0"


def test_an_attempt_that_was_given_up_is_charged_too(joulegate: Start, upstream: Upstream) -> None:
    with Upstream([HANG]) as slow:
        running = joulegate(
            config_of(
                {"url": slow.base_url, **PRICED},
                {"url": upstream.base_url, **PRICED},
                time={"first_byte_s": 0.7},
                teams=with_budgets(PLENTY),
            )
        )
        reply = running.post(ASK, headers=AUTH)
        assert reply.header("x-joulegate-backend") == "tiny-1"
    until(lambda: used(running, "tokens") > 0)
    assert used(running, "money_usd") > 10 * (12e-3 + 3 * 2e-3)  # hundreds of tokens were expected
    assert used(running, "tokens") > 15
    record = running.record(reply.header("x-request-id"))
    assert record.money_usd == pytest.approx(used(running, "money_usd"))
    (given_up,) = json.loads(record.earlier or "[]")
    assert (given_up["backend"], given_up["output_tokens"]) == ("tiny-0", None)
    assert given_up["prompt_tokens"] > 0
    # the attempts of the record come to what the budget was charged
    tokens = given_up["prompt_tokens"] + given_up["expected_output_tokens"]
    assert used(running, "tokens") == 15 + tokens


def test_what_meters_tell_replaces_what_was_settled(joulegate: Start, upstream: Upstream) -> None:
    running = joulegate(config_of({"url": upstream.base_url, **PRICED}, teams=with_budgets(PLENTY)))
    assert running.proxy is not None
    begun_s = time.time()
    reply = running.post(ASK, headers=AUTH)
    until(lambda: used(running, "tokens") == 15)
    carbon_g, settled_j = used(running, "carbon_g"), used(running, "energy_j")
    running.proxy.take_window(
        Window(
            window_id="w1",
            node="tiny-0",
            start_s=begun_s - 0.01,
            end_s=time.time() + 0.01,
            energy_j=30.0,
            idle_power_w=0.0,
            prompt_tokens=12.0,
            generated_tokens=3.0,
            evidence=Evidence.METERED,
            meter="test",
        )
    )
    until(lambda: used(running, "energy_j") != settled_j)
    path = f"/v1/usage/{reply.header('x-request-id')}"
    until(lambda: running.get(path, **{"x-api-key": KEY}).json()["status"] == "metered")
    metered_j = running.get(path, **{"x-api-key": KEY}).json()["energy"]["energy_j"]
    assert used(running, "energy_j") == pytest.approx(metered_j, abs=1e-3)
    more_g = (metered_j - settled_j) / 3.6e6 * 1.2 * 500.0
    assert used(running, "carbon_g") == pytest.approx(carbon_g + more_g, rel=1e-3)


def test_an_attempt_that_was_given_up_is_in_the_record_and_outlives_a_restart(
    joulegate: Start, upstream: Upstream
) -> None:
    with Upstream([HANG]) as slow:
        config = config_of(
            {"url": slow.base_url, **PRICED},
            {"url": upstream.base_url, **PRICED},
            time={"first_byte_s": 0.7},
            teams=with_budgets(PLENTY),
        )
        running = joulegate(config)
        reply = running.post(ASK, headers=AUTH)
    (record,) = running.records()
    told = json.loads(record.earlier or "[]")
    assert [(one["kind"], one["backend"]) for one in told] == [("given up", "tiny-0")]
    assert record.backend == "tiny-1"
    assert record.energy_j is not None
    assert record.energy_j == pytest.approx(2 * told[0]["energy_j"], rel=0.1)
    assert float(reply.header("x-joulegate-energy-j") or 0) == pytest.approx(record.energy_j, 1e-3)
    settled_j = used(running, "energy_j")
    assert settled_j > told[0]["energy_j"]

    assert running.proxy is not None
    books = running.proxy.ledger  # where a counter that is new begins
    assert books is not None
    until(lambda: books.spent(0.0, time.time() + 1, teams=["physics"]).energy_uj > 0)
    assert books.spent(0.0, time.time() + 1, teams=["physics"]).energy_uj / 1e6 == pytest.approx(
        record.energy_j, rel=1e-4
    )


def test_a_window_that_another_replica_got_corrects_the_budget_too(
    joulegate: Start, upstream: Upstream, redis_url: str, new_ledger_url: Callable[[], str]
) -> None:
    team = f"team-{uuid4().hex[:8]}"
    config = config_of(
        {"url": upstream.base_url, **PRICED, "node": "shared"},
        teams={team: {"keys": [{"key": KEY, "role": "lead"}], "budgets": [PLENTY]}},
        redis={"url": redis_url, "timeout_s": 5},
        ledger={"url": new_ledger_url()},
    )
    serving, other = joulegate(config), joulegate(config)
    assert other.proxy is not None
    begun_s = time.time()
    reply = serving.post(ASK, headers=AUTH)
    assert reply.status == 200
    path = f"/v1/usage/{reply.header('x-request-id')}"
    other_proxy = other.proxy
    until(lambda: any(a.node == "shared" for a in other_proxy.siblings.known))
    other_proxy.take_window(
        Window(
            window_id="w1",
            node="shared",
            start_s=begun_s - 0.01,
            end_s=time.time() + 0.01,
            energy_j=30.0,
            idle_power_w=0.0,
            prompt_tokens=12.0,
            generated_tokens=3.0,
            evidence=Evidence.METERED,
            meter="test",
        )
    )
    until(lambda: serving.get(path, **{"x-api-key": KEY}).json()["status"] == "metered")
    metered_j = serving.get(path, **{"x-api-key": KEY}).json()["energy"]["energy_j"]
    assert metered_j > 1.0
    with redis.Redis.from_url(redis_url) as client:

        def counted(metric: str) -> float:
            (key,) = client.keys(f"*team:{team}:{metric}:day:*")
            return int(client.get(key) or 0) / 1e6

        until(lambda: counted("energy_j") == pytest.approx(metered_j, abs=1e-3), 10.0)
        grams = metered_j / 3.6e6 * 1.2 * 500.0
        until(lambda: counted("carbon_g") == pytest.approx(grams, rel=1e-2))


@pytest.fixture(params=["in process", "two replicas on redis"])
async def replicas(request: pytest.FixtureRequest) -> AsyncIterator[list[Store]]:
    if request.param == "in process":
        yield [LocalStore()]
        return
    url = request.getfixturevalue("redis_url")
    prefix = f"t{uuid4().hex}"
    both: list[Store] = [RedisStore(url, timeout_s=30.0, prefix=prefix) for _ in range(2)]
    yield both
    for store in both:
        await store.close()


@pytest.mark.parametrize("metric", ["requests", "tokens", "energy_j", "carbon_g", "money_usd"])
@pytest.mark.parametrize("scope", ["key:abc", "team:physics", "organisation:acme"])
async def test_requests_at_once_go_over_by_no_more_than_what_one_estimate_was_wrong(
    replicas: list[Store], metric: budgets.Metric, scope: str
) -> None:
    limit = 40
    rules = [
        Rule(scope=scope, metric=metric, per=per, limit=limit, timezone="Asia/Kolkata")
        for per in ("minute", "day", "month")
    ]
    one = Amounts(requests=1, tokens=1, energy_j=1.0, carbon_g=1.0, money_usd=1.0)
    wrong = Amounts(requests=1, tokens=6, energy_j=6.0, carbon_g=6.0, money_usd=6.0)
    now_s = time.time() // 60 * 60 + 1  # all in the same minute
    admitted = 0

    async def client(number: int) -> None:
        nonlocal admitted
        store = replicas[number % len(replicas)]
        request = AdmitRequest(
            request_id=f"r{number}",
            holder="acme",
            charges=budgets.charges(rules, one, now_s),
        )
        answer = await store.admit(request)
        if not answer.allowed:
            assert answer.denied is not None
            assert answer.denied.charge.rule.metric == metric
            return
        admitted += 1
        took = wrong if admitted == limit // 2 else one
        await asyncio.sleep(0)  # others come meanwhile
        await store.settle(
            Settlement(
                request_id=request.request_id, holder="acme", charges=request.charges, took=took
            )
        )

    await asyncio.gather(*(client(number) for number in range(200)))
    nothing = budgets.charges(rules, budgets.NOTHING, now_s)
    probe = AdmitRequest(request_id="end", holder="acme", charges=nothing)
    spent = (await replicas[0].admit(probe)).spent
    error = 0 if metric == "requests" else 5
    for counter in spent:
        total = counter.used / budgets.whole(metric, 1.0)
        assert limit <= total <= limit + error
        assert limit - error <= admitted <= limit


@pytest.mark.parametrize("seed", range(8))
async def test_however_wrong_estimates_are_no_more_than_one_of_them_is_overspent(
    replicas: list[Store], seed: int
) -> None:
    draw = random.Random(seed)
    limit, scope, now_s = 300, f"team:{seed}", time.time() // 60 * 60 + 1
    rule = Rule(scope=scope, metric="tokens", per="day", limit=limit, reserve_most=True)
    worst, admitted = 0, 0

    async def client(number: int) -> None:
        nonlocal worst, admitted
        store = replicas[number % len(replicas)]
        expected = draw.randrange(1, 20)
        most = expected + draw.randrange(0, 80)
        charged = budgets.charges([rule], Amounts(tokens=expected), now_s, Amounts(tokens=most))
        request = AdmitRequest(request_id=f"{seed}-{number}", holder="acme", charges=charged)
        for _ in range(draw.randrange(20)):
            await asyncio.sleep(0)
        while (denied := (await store.admit(request)).denied) is not None:
            if not denied.passing:
                return
            await asyncio.sleep(0.001)
        admitted += 1
        took = draw.choice([expected, most, most])  # nearly all of them far beyond the estimate
        worst = max(worst, took - expected)
        for _ in range(draw.randrange(40)):
            await asyncio.sleep(0)
        used = Amounts(tokens=took)
        await store.settle(
            Settlement(request_id=request.request_id, holder="acme", charges=charged, took=used)
        )

    await asyncio.gather(*(client(number) for number in range(150)))
    nothing = budgets.charges([rule], budgets.NOTHING, now_s)
    probe = AdmitRequest(request_id=f"{seed}-end", holder="acme", charges=nothing)
    (counter,) = (await replicas[0].admit(probe)).spent
    assert counter.margins == 0
    assert limit - 20 < counter.used <= limit + worst
    assert admitted > 3


@pytest.mark.parametrize("reserve", [None, "expected"])
def test_answers_longer_than_expected_overspend_only_where_that_is_asked_for(
    joulegate: Start, reserve: str | None
) -> None:
    together, limit, longest = Gate(), 5_000, 600
    answering = answers.like_an_engine(["w "] * longest)

    def when_all_are_in(request: Received) -> Script:
        return [together, *answering(request)]

    with Upstream(when_all_are_in, pages=answers.engine_pages()) as upstream:
        budget: dict[str, object] = {"per": "day", "tokens": limit}
        if reserve is not None:
            budget["reserve"] = reserve
        running = joulegate(
            config_of({"url": upstream.base_url, **PRICED}, teams=with_budgets(budget))
        )
        words = "How many words are there in the longest answer that was ever written?"
        body = {**ASK, "messages": [{"role": "user", "content": words}], "max_tokens": longest}
        with ThreadPoolExecutor(24) as pool:
            asked = [
                pool.submit(lambda: running.post(body, headers=AUTH).status) for _ in range(24)
            ]
            until(lambda: sum(one.done() for one in asked) + len(upstream.received) >= 24)
            together.open()
            statuses = [one.result() for one in asked]
    served = statuses.count(200)
    assert set(statuses) == {200, 429}
    until(lambda: used(running, "tokens") == served * (12 + longest))
    if reserve is None:
        most = 12 + longest
        assert limit // most <= served <= limit // most + 1  # by the error of one, if at all
    else:
        assert used(running, "tokens") > 2 * limit


def test_what_only_waits_for_others_to_end_is_served_when_they_have(
    joulegate: Start, upstream: Upstream
) -> None:
    budget = {"per": "day", "tokens": 5_000}
    running = joulegate(config_of({"url": upstream.base_url, **PRICED}, teams=with_budgets(budget)))
    body = {**ASK, "max_tokens": 4_900}  # one at a time, as far as anybody can promise
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(lambda: running.post(body, headers=AUTH).status) for _ in range(8)]
        assert [one.result() for one in asked] == [200] * 8
    until(lambda: used(running, "tokens") == 8 * 15)


async def test_nobody_is_admitted_before_the_ledger_has_said_what_was_used() -> None:
    asked = 0

    async def slow(rule: Rule, period: Period) -> int:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.05)
        return 9_000_000

    store = LocalStore(seed=slow)
    rule = Rule(scope="team:a", metric="energy_j", per="day", limit=10.0)

    async def admit(number: int) -> bool:
        charges = budgets.charges([rule], Amounts(energy_j=1.0), time.time())
        request = AdmitRequest(request_id=f"r{number}", holder="a", charges=charges)
        return (await store.admit(request)).allowed

    allowed = await asyncio.gather(*(admit(number) for number in range(20)))
    assert (sum(allowed), asked) == (1, 1)


def test_two_replicas_at_once_keep_one_budget(
    joulegate: Start, upstream: Upstream, redis_url: str
) -> None:
    team = f"team-{uuid4().hex[:8]}"
    limit_usd = 20 * 0.006
    config = config_of(
        {"url": upstream.base_url, **PRICED, "input_usd_per_mtok": 0.0},
        teams={
            team: {
                "keys": [KEY],
                "organisation": f"org-{team}",
                "budgets": [{"per": "day", "money_usd": 1e6}],
            }
        },
        organisations={f"org-{team}": {"budgets": [{"per": "day", "money_usd": limit_usd}]}},
        redis={"url": redis_url, "timeout_s": 5},
    )
    both = [joulegate(config), joulegate(config)]
    body = {**ASK, "max_tokens": 3}  # as many as are answered

    def ask(number: int) -> Reply:
        return both[number % 2].post(body, headers=AUTH)

    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(ask, range(60)))
    served = [r for r in replies if r.status == 200]
    refused = [r for r in replies if r.status != 200]
    assert {(r.status, r.code) for r in refused} == {(429, "budget_exceeded")}
    assert {r.header("x-should-retry") for r in refused} == {"false"}
    told = refused[0].json()["error"]["joulegate"]
    assert (told["scope"], told["metric"]) == (f"organisation:org-{team}", "money_usd")
    assert "resets_at" in told
    with redis.Redis.from_url(redis_url) as client:
        (key,) = client.keys(f"*organisation:org-{team}:money_usd:day:*")

        def total_usd() -> float:
            return int(client.get(key) or 0) / 1e9

        until(lambda: total_usd() == pytest.approx(len(served) * 0.006))
        assert len(served) == 20
        assert total_usd() <= limit_usd + 0.006
