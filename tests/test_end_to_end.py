"""One request all the way round, on simulated engines over real sockets: answered, recorded,
metered, divided, and found again on its receipt, with books that balance."""

from __future__ import annotations

import concurrent.futures
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from meters import simulated_engine
from meters.ledger import Ledger
from meters.simulated_physics import LLAMA_8B_BF16, LLAMA_8B_INT4, EngineConfig
from policies.records import decision_from_json, replay_decision
from proxy.__main__ import main
from tests.joulegate_server import ADMIN, KEY, TEAMS, Start, in_process
from tests.waiting import until

HARDWARE = {"gpu": "H100-SXM", "params_b": 8.03, "model": "llama-3.1-8b"}


@pytest.fixture
def pair() -> Iterator[list[simulated_engine.Started]]:
    engines = [
        simulated_engine.start(EngineConfig(physics=physics, seed=number))
        for number, physics in enumerate((LLAMA_8B_BF16, LLAMA_8B_INT4))
    ]
    yield engines
    for engine in engines:
        engine.close()


def config_of(pair: list[simulated_engine.Started], **more: Any) -> dict[str, Any]:
    backends = [
        {
            **HARDWARE,
            "precision": precision,
            "quality": quality,
            "url": f"{engine.url}/v1",
            "simulated": True,
            "meter": {"kind": "simulated", "url": engine.url},
        }
        for engine, precision, quality in zip(pair, ("bf16", "int4"), (0.9, 0.5), strict=True)
    ]
    return {"backends": backends, "teams": TEAMS, "carbon": {"zone": "DE"}, **more}


def ask(client: openai.OpenAI, text: str, limit: int = 24, **more: Any) -> str:
    """The request id of one answered chat."""
    answer = client.chat.completions.with_raw_response.create(
        model="llama-3.1-8b",
        messages=[{"role": "user", "content": text}],
        max_tokens=limit,
        **more,
    )
    answer.parse()
    request_id = answer.headers["x-request-id"]
    assert isinstance(request_id, str)
    return request_id


def test_a_receipt_turns_from_estimated_to_metered(
    joulegate: Start, pair: list[simulated_engine.Started]
) -> None:
    running = joulegate(config_of(pair))
    client = running.client(KEY)
    running.wait_for_meters()
    request_id = ask(client, "hello")

    def receipt() -> dict[str, Any]:
        body = running.get(f"/v1/usage/{request_id}", x_api_key=KEY).json()
        assert isinstance(body, dict)
        return body

    first = receipt()
    assert first["status"] == "estimated"
    assert first["energy"]["attributed_j"] is None  # unknown, not 0
    last = until(lambda: (r := receipt())["status"] == "metered (simulated)" and r)
    energy = last["energy"]
    assert last["simulated"]
    assert energy["evidence"] == "simulated"
    assert energy["energy_j"] == energy["attributed_j"] > 0
    assert energy["attributed_j"] == pytest.approx(
        sum(window["energy_j"] for window in energy["windows"]), abs=1e-6
    )
    whole = running.get(f"/v1/usage/{request_id}", x_api_key=ADMIN).json()["energy"]["windows"]
    # each is written to the microjoule
    assert all(w["metered_j"] >= w["energy_j"] + w["idle_j"] - 2e-6 for w in whole)
    # a member does not see second by second what others did there
    assert not any({"metered_j", "idle_j", "external_j"} & set(w) for w in energy["windows"])
    assert last["backend"] == "llama-3.1-8b@int4"  # the thrifty one of the pair
    assert last["carbon"]["zone"] == "DE"
    assert last["carbon"]["carbon_g"] > 0
    assert last["tokens"] == {
        "prompt": last["tokens"]["prompt"],
        "cached_prompt": 0,
        "output": 24,
        "reasoning": None,
        "source": "upstream",
    }
    assert "simulation" in last["note"]


def test_what_was_metered_says_how_good_the_estimates_were(
    joulegate: Start,
    pair: list[simulated_engine.Started],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    running = joulegate(config_of(pair))
    client = running.client(KEY)
    config = str(tmp_path / "joulegate-0" / "config.yaml")

    def energy(request_id: str) -> Any:
        return running.get(f"/v1/usage/{request_id}", x_api_key=KEY).json()["energy"]

    first = ask(client, "hello")  # perhaps before the meter's first window
    until(lambda: energy(first)["settled"])
    asked = [ask(client, f"hello {n}") for n in range(5)]

    def judged() -> Any:
        capsys.readouterr()
        assert main(["estimators", "--config", config, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)["lately"]
        return told if sum(one["requests"] for one in told) >= len(asked) else None

    (found,) = until(judged)
    assert found["backend"] == "llama-3.1-8b@int4"
    assert found["simulated"]
    whole = [told for one in (first, *asked) if (told := energy(one))["covered"] > 0.98]
    assert found["requests"] == len(whole)
    said = sum(told["estimated_j"]["mid"] for told in whole)
    took = sum(told["attributed_j"] for told in whole)
    assert found["total"] == pytest.approx(said / took - 1.0, abs=1e-3)


def test_another_team_sees_no_receipt_and_an_administrator_does(
    joulegate: Start, pair: list[simulated_engine.Started]
) -> None:
    teams = {**TEAMS, "chemistry": {"keys": ["sk-chemistry"]}}
    running = joulegate(config_of(pair, teams=teams))
    request_id = ask(running.client(KEY), "hello")
    assert running.get(f"/v1/usage/{request_id}", x_api_key="sk-chemistry").status == 404
    assert running.get(f"/v1/usage/{request_id}", x_api_key=ADMIN).status == 200
    assert running.get(f"/v1/usage/{request_id}").status == 401


def test_the_books_balance_and_shares_add_up_to_what_the_engines_used(
    joulegate: Start, pair: list[simulated_engine.Started]
) -> None:
    running = joulegate(config_of(pair))
    client = running.client(KEY)
    proxy = running.proxy
    assert proxy is not None
    running.wait_for_meters()
    ledger = until(lambda: proxy.ledger)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(lambda n: ask(client, f"question {n}", 20 + n), range(48)))

    def all_metered() -> bool:
        receipts = [ledger.receipt(request_id) for request_id in ids]
        return all(r is not None and r.state == "metered" for r in receipts)

    until(all_metered)
    balance = ledger.check()
    assert balance.problems == ()
    parts = balance.attributed_uj + balance.idle_uj + balance.external_uj + balance.unattributed_uj
    assert balance.metered_uj == parts > 0
    assert balance.requests == len(ids)
    assert proxy.accounts.imbalance_j == 0
    assert running.get("/metrics", x_api_key=ADMIN).body.count(b"joulegate_requests_total") > 0


def test_a_recorded_decision_replays_to_the_same_answer(
    joulegate: Start, pair: list[simulated_engine.Started]
) -> None:
    running = joulegate(config_of(pair))
    request_id = ask(running.client(KEY), "a secret question")
    record = running.record(request_id)
    assert record.decision is not None
    assert len(record.decision) < 4096
    assert "secret" not in record.decision
    kept = decision_from_json(record.decision)
    assert running.proxy is not None
    assert replay_decision(kept, running.proxy.router.policies) == kept.decision
    assert kept.decision is not None
    assert kept.decision.chosen == record.backend


def test_workers_share_one_set_of_books(
    pair: list[simulated_engine.Started], tmp_path: Path
) -> None:
    config = config_of(pair, cache={"enabled": False}, log={"level": "error"})
    running = in_process(config, tmp_path, "--workers", "2")
    ledger = Ledger(f"sqlite:///{tmp_path / 'state' / 'ledger.db'}")
    ids: list[str] = []

    def both_answered() -> bool:
        # The kernel deals connections out as it likes: ask until it has met both.
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            ids.extend(pool.map(lambda n: ask(running.client(KEY), f"q {n}", 12), range(24)))
        until(metered)
        return len({ledger.receipt(i).record.replica for i in ids}) == 2  # type: ignore[union-attr]

    def metered() -> bool:
        paths = [f"/v1/usage/{request_id}" for request_id in ids]
        replies = [running.get(path, x_api_key=KEY) for path in paths]
        return all(r.status == 200 and b'"metered (simulated)"' in r.body for r in replies)

    names = [f"{HARDWARE['model']}@{precision}" for precision in ("bf16", "int4")]
    try:
        # What ends before an engine's first window begins is never metered.
        until(lambda: all(ledger.windows(name, 0.0, time.time()) for name in names))
        until(both_answered)
        running.process.terminate()  # type: ignore[union-attr]
        running.process.wait(20)  # type: ignore[union-attr]
        balance = ledger.check()
        assert balance.problems == ()
        assert balance.requests == len(ids)
    finally:
        if running.process is not None:
            running.process.kill()
            running.process.wait()
        ledger.close()


def test_the_policy_in_the_header_and_pinned_names_are_obeyed(
    joulegate: Start, pair: list[simulated_engine.Started]
) -> None:
    running = joulegate(config_of(pair, default_policy="quality-first"))

    def backend(model: str, **headers: str) -> str | None:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "x"}],
            "max_tokens": 2,
        }
        given = {"x-api-key": KEY, **{k.replace("_", "-"): v for k, v in headers.items()}}
        return running.post(body, headers=given).header("x-joulegate-backend")

    assert backend("llama-3.1-8b") == "llama-3.1-8b@bf16"
    assert backend("llama-3.1-8b", x_joulegate_policy="least_energy") == "llama-3.1-8b@int4"
    assert backend("llama-3.1-8b@bf16", x_joulegate_policy="least_energy") == "llama-3.1-8b@bf16"
    assert backend("auto:least_energy") == "llama-3.1-8b@int4"
    assert (
        backend("llama-3.1-8b", x_joulegate_policy="least_energy", x_joulegate_min_quality="0.7")
        == "llama-3.1-8b@bf16"
    )


def test_a_limit_nobody_can_keep_lists_each_reason_and_is_recorded(
    joulegate: Start, pair: list[simulated_engine.Started]
) -> None:
    running = joulegate(config_of(pair))
    body = {"model": "llama-3.1-8b", "messages": [{"role": "user", "content": "x"}]}
    reply = running.post(body, headers={"x-api-key": KEY, "x-joulegate-max-energy-j": "0.001"})
    assert (reply.status, reply.code) == (422, "no_backend_within_limits")
    assert reply.header("x-should-retry") == "false"
    rejections = reply.json()["error"]["joulegate"]["rejections"]
    assert {r["backend"] for r in rejections} == {"llama-3.1-8b@bf16", "llama-3.1-8b@int4"}
    assert all(r["code"] == "energy_over_limit" for r in rejections)
    record = running.record(reply.header("x-request-id"))
    assert (record.outcome, record.error_code) == ("refused", "no_backend_within_limits")
    assert record.energy_j is None


def test_route_explains_and_sends_nothing(
    joulegate: Start, pair: list[simulated_engine.Started]
) -> None:
    running = joulegate(config_of(pair))
    before = [engine.engine.totals.generated_tokens for engine in pair]
    body = {"model": "auto", "messages": [{"role": "user", "content": "x"}], "max_tokens": 50}
    decision = running.post(body, path="/v1/route", headers={"x-api-key": KEY}).json()
    assert decision["chosen"] == "llama-3.1-8b@int4"
    by_name = {entry["backend"]: entry for entry in decision["candidates"]}
    assert by_name["llama-3.1-8b@bf16"]["rejected"]["message"]
    assert "rejected" not in by_name["llama-3.1-8b@int4"]
    for entry in by_name.values():
        assert entry["energy_j"]["low"] <= entry["energy_j"]["mid"] <= entry["energy_j"]["high"]
        assert entry["evidence"] == "simulated"
    assert [engine.engine.totals.generated_tokens for engine in pair] == before


def test_equal_requests_are_answered_from_the_cache_once_and_never_across_teams(
    joulegate: Start, pair: list[simulated_engine.Started]
) -> None:
    teams = {**TEAMS, "chemistry": {"keys": ["sk-chemistry"]}}
    running = joulegate(config_of(pair, teams=teams))
    body = {
        "model": "llama-3.1-8b",
        "messages": [{"role": "user", "content": "the same"}],
        "temperature": 0,
        "max_tokens": 8,
    }
    mine = {"x-api-key": KEY}
    first = running.post(body, headers=mine)
    second = running.post(body, headers=mine)
    assert first.header("x-joulegate-cache") == "miss"
    assert second.header("x-joulegate-cache") == "hit"
    assert second.body == first.body
    other = running.post(body, headers={"x-api-key": "sk-chemistry"})
    assert other.header("x-joulegate-cache") == "miss"
    fresh = running.post(body, headers={**mine, "cache-control": "no-cache"})
    assert fresh.header("x-joulegate-cache") == "miss"
    record = running.record(second.header("x-request-id"))
    assert (record.cache, record.energy_j, record.sent_s) == ("hit", 0.0, None)


def test_replicas_share_cached_answers_through_redis(
    joulegate: Start, pair: list[simulated_engine.Started], redis_url: str
) -> None:
    replicas = [joulegate(config_of(pair, redis={"url": redis_url})) for _ in range(2)]
    body = {
        "model": "llama-3.1-8b",
        "messages": [{"role": "user", "content": f"shared {time.time_ns()}"}],
        "temperature": 0,
        "max_tokens": 8,
    }
    replies = [running.post(body, headers={"x-api-key": KEY}) for running in replicas]
    assert [r.header("x-joulegate-cache") for r in replies] == ["miss", "hit"]
    assert replies[0].body == replies[1].body


def test_a_stream_is_cached_as_a_stream(
    joulegate: Start, pair: list[simulated_engine.Started]
) -> None:
    running = joulegate(config_of(pair))
    client = running.client(KEY)
    texts = [
        "".join(
            chunk.choices[0].delta.content or ""
            for chunk in client.chat.completions.create(
                model="llama-3.1-8b",
                messages=[{"role": "user", "content": "stream"}],
                temperature=0,
                max_tokens=8,
                stream=True,
            )
        )
        for _ in range(2)
    ]
    assert texts[0] == texts[1] != ""
    hits = running.records(lambda record: record.cache == "hit")
    assert len(hits) == 1


def test_a_budget_refuses_with_what_was_exceeded_and_when_it_resets(
    joulegate: Start, pair: list[simulated_engine.Started]
) -> None:
    teams = {"physics": {"keys": [KEY], "budgets": [{"per": "day", "requests": 2}]}}
    running = joulegate(config_of(pair, teams=teams))
    body = {
        "model": "llama-3.1-8b",
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 2,
    }
    replies = [running.post(body, headers={"x-api-key": KEY}) for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 429]
    assert replies[2].code == "budget_exceeded"
    assert replies[2].header("x-should-retry") == "false"
    assert int(replies[2].header("retry-after") or 0) > 0
    assert replies[1].header("x-joulegate-warning") is not None


def test_models_and_answers_say_that_they_are_simulated(
    joulegate: Start, pair: list[simulated_engine.Started]
) -> None:
    running = joulegate(config_of(pair))
    models = {m.id: m for m in running.client(KEY).models.list()}
    assert set(models) == {"llama-3.1-8b", "llama-3.1-8b@bf16", "llama-3.1-8b@int4", "auto"}
    assert all(m.owned_by == "joulegate-simulated" for m in models.values())
    body = {"model": "auto", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    reply = running.post(body, headers={"x-api-key": KEY})
    assert reply.header("x-joulegate-evidence") == "simulated"
    assert reply.header("x-joulegate-simulated") == "true"
