"""Budgets past a threshold: the header, the metric, the signed webhook; past the limit a refusal,
or a thriftier policy."""

from __future__ import annotations

import hmac
import time
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from proxy import budgets
from proxy.alerts import SIGNATURE, Alerts, Crossing, message, signature
from proxy.budgets import Rule, Spent
from proxy.config_file import ConfigError
from proxy.settings import BudgetAlerts
from proxy.store_local import LocalStore
from proxy.store_redis import RedisStore
from tests.fakes.collector import Collector
from tests.fakes.upstream import Upstream
from tests.joulegate_server import ADMIN, KEY, Joulegate, Reply, Start
from tests.proxy import two_backends
from tests.proxy.two_backends import ASK, both
from tests.waiting import until, until_in_loop

AUTH = {"x-api-key": KEY}
SECRET = "whsec-of-the-test"

small = two_backends.small
large = two_backends.large


@pytest.fixture
def receiver() -> Collector:
    return Collector(statuses=(500, 503))  # before it takes anything


def team(name: str, *budgets: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        name: {"keys": [{"key": KEY, "role": "lead"}], "budgets": list(budgets), **more},
        "operators": {"keys": [{"key": ADMIN, "role": "admin"}]},
    }


def metric_lines(running: Joulegate, name: str) -> list[str]:
    page = running.get("/metrics", x_api_key=ADMIN).body.decode()
    return [line for line in page.splitlines() if line.startswith(name)]


def test_each_threshold_is_told_once_whichever_replica_and_however_often(
    joulegate: Start, small: Upstream, large: Upstream, receiver: Collector, redis_url: str
) -> None:
    name = f"team-{uuid4().hex[:8]}"
    config = both(
        small,
        large,
        teams=team(name, {"per": "day", "requests": 4, "soft": 0.5}, timezone="Asia/Kolkata"),
        redis={"url": redis_url, "timeout_s": 5},
        budget_alerts={
            "url": f"{receiver.url}/hook",
            "secret": SECRET,
            "attempts": 3,
            "wait_s": 0.05,
            "timeout_s": 0.5,
        },
    )
    replicas = [joulegate(config), joulegate(config)]
    replies: list[Reply] = [replicas[n % 2].post(ASK, headers=AUTH) for n in range(8)]
    assert [r.status for r in replies] == [200] * 4 + [429] * 4
    warned = [r.header("x-joulegate-warning") for r in replies[:4]]
    assert warned[0] is None
    assert warned[1] == f"team:{name} requests per day 50% of 4"
    assert {r.code for r in replies[4:]} == {"budget_exceeded"}
    assert {r.header("x-should-retry") for r in replies[4:]} == {"false"}
    assert all(int(r.header("retry-after") or 0) > 0 for r in replies[4:])
    until(lambda: len(receiver.bodies) >= 2)
    messages = sorted(body["type"] for _, body in receiver.bodies)
    assert messages == ["budget.hard", "budget.soft"]
    for (path, body), headers in zip(receiver.bodies, receiver.headers, strict=True):
        assert path == "/hook"
        assert (body["scope"], body["metric"], body["limit"]) == (f"team:{name}", "requests", 4.0)
        assert body["time_zone"] == "Asia/Kolkata"
        assert body["resets_at"].endswith("18:30:00+00:00")  # midnight in India
        at_s = int(headers[SIGNATURE].split(",")[0].removeprefix("t="))
        assert abs(at_s - time.time()) < 60
        expected = signature(SECRET, msgspec.json.encode(body), at_s)
        assert hmac.compare_digest(headers[SIGNATURE], expected)
        assert KEY not in str(body)
    for running in replicas:
        lines = metric_lines(running, "joulegate_budget_thresholds_total")
        assert len(lines) == 2
        assert all(f'holder="team:{name}"' in line and line.endswith(" 1.0") for line in lines)
    # until the replica that did not send has seen that the other did
    until(lambda: all(r.proxy is not None and not r.proxy.alerts._sending for r in replicas))
    assert len(receiver.bodies) == 2


def test_a_receiver_that_takes_nothing_slows_and_fails_no_request(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    gone = Collector(statuses=(500,) * 100)
    running = joulegate(
        both(
            small,
            large,
            teams=team("physics", {"per": "day", "requests": 100, "soft": 0.0}),
            budget_alerts={"url": gone.url, "attempts": 3, "wait_s": 0.01},
        )
    )
    assert running.post(ASK, headers=AUTH).status == 200
    assert running.proxy is not None
    alerts = running.proxy.alerts
    until(lambda: alerts.failed == 1)
    assert running.post(ASK, headers=AUTH).status == 200
    assert gone.bodies == []


async def test_a_replica_that_dies_before_its_message_is_taken_leaves_it_to_another(
    redis_url: str,
) -> None:
    taking = Collector()
    rule = Rule(scope=f"team:t{uuid4().hex}", metric="requests", per="day", limit=4.0, soft=0.5)
    (charge,) = budgets.charges([rule], budgets.Amounts(requests=1), time.time())
    settings = BudgetAlerts(url=f"{taking.url}/hook", secret=SECRET, timeout_s=0.1)
    both_stores = [RedisStore(redis_url, timeout_s=5.0) for _ in range(2)]
    name = f"alert:{charge.counter}:soft"
    # What the first replica has done when it is killed: claimed it, for as long as one try takes.
    assert await both_stores[0].first("team", name, time.time() + 1.0)
    alerts = Alerts(settings, both_stores[1])
    alerts.start()
    alerts.look("team", [Spent(charge, 3)])
    await until_in_loop(lambda: taking.bodies)
    assert not await both_stores[0].first("team", name, time.time() + 1.0)
    ((_, body),) = taking.bodies
    again = msgspec.json.decode(message(Crossing("team", Spent(charge, 4), "soft", 1.0)))
    assert body["id"] == again["id"]
    await alerts.stop()
    for store in both_stores:
        await store.close()


async def test_what_was_told_is_not_told_again_as_its_period_ends(redis_url: str) -> None:
    taking = Collector()
    rule = Rule(scope=f"team:t{uuid4().hex}", metric="requests", per="day", limit=4.0, soft=0.5)
    (charge,) = budgets.charges([rule], budgets.Amounts(requests=1), time.time())
    charge = charge._replace(period=charge.period._replace(end_s=time.time() + 0.65))
    store = RedisStore(redis_url, timeout_s=5.0)
    # another replica told it, which is known until the period ends
    assert await store.first("team", f"alert:{charge.counter}:soft", charge.period.end_s)
    settings = BudgetAlerts(url=f"{taking.url}/hook", secret=SECRET, timeout_s=0.1)
    alerts = Alerts(settings, store)
    await alerts._tell(Crossing("team", budgets.Spent(charge, 3), "soft", time.time()))
    assert taking.bodies == []
    await store.close()


async def test_who_is_told_can_be_changed_while_it_runs() -> None:
    taking, store = Collector(), LocalStore()
    rule = Rule(scope=f"team:t{uuid4().hex}", metric="requests", per="day", limit=4.0, soft=0.5)
    (charge,) = budgets.charges([rule], budgets.Amounts(requests=1), time.time())
    alerts = Alerts(BudgetAlerts(), store)
    alerts.start()
    alerts.take(BudgetAlerts(url=f"{taking.url}/hook"))
    alerts.look("team", [Spent(charge, 3)])
    await until_in_loop(lambda: taking.bodies)
    await alerts.stop()
    await store.close()


def test_a_key_is_no_label(joulegate: Start, small: Upstream, large: Upstream) -> None:
    keys = [{"key": KEY, "budgets": [{"per": "month", "tokens": 10**9, "soft": 0.0}]}]
    running = joulegate(both(small, large, teams={**team("operators"), "physics": {"keys": keys}}))
    assert running.post(ASK, headers=AUTH).status == 200
    (line,) = metric_lines(running, "joulegate_budget_thresholds_total")
    assert 'holder="key"' in line


@pytest.mark.parametrize("metric", ["requests", "carbon_g", "energy_j"])
def test_a_full_budget_degrades_gracefully_where_it_says_so(
    joulegate: Start, small: Upstream, large: Upstream, metric: str
) -> None:
    limit = 2 if metric == "requests" else 1e-9
    budget = {"per": "month", metric: limit, "fallback_policy": "least_energy"}
    running = joulegate(
        both(
            small,
            large,
            carbon={"zone": "DE"},
            # what a budget falls back to needs nobody's leave
            teams=team("physics", budget, policy="best_quality", policies=["best_quality"]),
        )
    )
    served = [running.post(ASK, headers=AUTH) for _ in range(4)]
    assert [r.status for r in served] == [200] * 4
    by = [(r.header("x-joulegate-backend"), r.header("x-joulegate-policy")) for r in served]
    generous, thrifty = ("m@large", "best_quality"), ("m@small", "least_energy")
    assert by == ([generous] * 2 + [thrifty] * 2 if metric == "requests" else [thrifty] * 4)
    assert served[-1].header("x-joulegate-warning") is not None


def test_a_team_chooses_among_the_policies_it_may(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    running = joulegate(
        both(small, large, teams=team("physics", policy="thrifty", policies=["fastest"]))
    )
    assert running.post(ASK, headers=AUTH).header("x-joulegate-policy") == "thrifty"
    chosen = running.post(ASK, headers={**AUTH, "x-joulegate-policy": "fastest"})
    assert (chosen.status, chosen.header("x-joulegate-policy")) == (200, "fastest")
    for refused in (
        running.post(ASK, headers={**AUTH, "x-joulegate-policy": "best_quality"}),
        running.post({**ASK, "model": "auto:best_quality"}, headers=AUTH),
        running.post(ASK, path="/v1/route", headers={**AUTH, "x-joulegate-policy": "cheapest"}),
    ):
        assert (refused.status, refused.code) == (403, "forbidden")


@pytest.mark.parametrize(
    "wrong",
    [
        {"policies": ["no-such"]},
        {"budgets": [{"per": "day", "requests": 1, "fallback_policy": "no-such"}]},
        {
            "keys": [
                {
                    "key": "k",
                    "budgets": [{"per": "day", "requests": 1, "fallback_policy": "no-such"}],
                }
            ]
        },
    ],
)
def test_a_policy_that_does_not_exist_stops_the_start(
    joulegate: Start, small: Upstream, large: Upstream, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="no policy 'no-such'"):
        joulegate(both(small, large, teams={"physics": {"keys": [KEY], **wrong}}))


def test_a_session_is_called_by_a_name_of_reasonable_length(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    running = joulegate(both(small, large))
    assert running.post(ASK, headers={"x-session-id": "s" * 256}).status == 200
    refused = running.post(ASK, headers={"x-session-id": "s" * 257})
    assert (refused.status, refused.code) == (400, "invalid_header")
