"""Every replica learns what came of requests, once, whoever served them or got the windows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from estimators.energy import EnergyEstimator
from estimators.hardware import GPUS
from estimators.types import Backend, Features, ModelFacts
from meters import simulated_engine
from meters.ledger import Ledger
from meters.simulated_physics import EngineConfig
from proxy import outcomes
from proxy.flight import new_request_id
from proxy.outcomes import Outcomes
from proxy.predicting import Predictors
from tests.fakes.upstream import Upstream
from tests.joulegate_server import ADMIN, KEY, TEAMS, Joulegate, Start
from tests.meters.books import NOON_S, attribution, record
from tests.proxy.two_backends import ASK, both, large, small
from tests.servers import new_database
from tests.waiting import until

__all__ = ["large", "small"]  # fixtures

FACTS = Backend(
    name="llama@bf16",
    group="llama",
    node="gpu-1",
    gpu=GPUS["H100-SXM"],
    model=ModelFacts(params_b=8.03, layers=32, kv_heads=8, head_dim=128),
)


class Replica:
    """What learns of one replica, with a clock of its own."""

    def __init__(self, ledger: Ledger, folder: Path, *, alone: bool = True) -> None:
        folder.mkdir(exist_ok=True)
        self.estimator = Predictors(folder=folder)
        self.estimator.know([FACTS])
        self.now_s = NOON_S + 600.0
        self.outcomes = Outcomes(
            self.estimator, lambda: ledger, lambda: ["gpu-1"], alone=alone, clock=lambda: self.now_s
        )

    @property
    def learnt(self) -> list[float]:
        """All that requests taught of the backend, to the last bit."""
        assert isinstance(self.estimator.energy, EnergyEstimator)
        return self.estimator.energy._known[FACTS.name].correction.as_list()

    @property
    def answers(self) -> int:
        """How many it learnt from."""
        assert isinstance(self.estimator.energy, EnergyEstimator)
        return self.estimator.energy._known[FACTS.name].correction.outcomes

    def quality(self) -> float | None:
        (band,) = self.estimator.quality.predict(Features(prompt_tokens=9, task="code"), [FACTS])
        return None if band is None else band.mid


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield made
    made.close()


def serve(ledger: Ledger, *seconds: int, **fields: Any) -> None:
    """Metered requests of a second each, and windows until the end of the last one's slot."""
    ledger.write(
        [
            record(
                n,
                start_s=NOON_S + n,
                sent_s=NOON_S + n,
                end_s=NOON_S + n + 1.0,
                running=n % 7 / 2,
                output_tokens=100 + n % 50,
                task="code",
                **fields,
            )
            for n in seconds
        ],
        [
            attribution(n, {f"req-{n}": 100.0 + n % 5}, start_s=NOON_S + n, end_s=NOON_S + n + 1.0)
            for n in range(min(seconds), max(seconds) + 6)
        ],
    )


async def test_replicas_learn_the_same_whenever_they_look(ledger: Ledger, tmp_path: Path) -> None:
    often, seldom = Replica(ledger, tmp_path / "a"), Replica(ledger, tmp_path / "b")
    for first in range(0, 60, 10):
        serve(ledger, *range(first, first + 5), replica="a" if first % 20 else "b")
        await often.outcomes.look()
        await often.outcomes.look()
    await seldom.outcomes.look()
    assert often.answers == 30
    assert often.learnt == seldom.learnt


async def test_a_restart_goes_on_where_it_was_kept(ledger: Ledger, tmp_path: Path) -> None:
    one, other = Replica(ledger, tmp_path / "a"), Replica(ledger, tmp_path / "b")
    serve(ledger, *range(10))
    ledger.add_feedback("req-1", "caller", 1.0, "search", NOON_S + 20)
    await one.outcomes.look()
    one.estimator.save()
    serve(ledger, *range(15, 25))
    ledger.add_feedback("req-2", "caller", 0.0, "search", NOON_S + 21)
    await one.outcomes.look()  # and then it was killed
    again = Replica(ledger, tmp_path / "a")
    assert again.answers == 10
    await again.outcomes.look()
    await other.outcomes.look()
    assert again.answers == 20
    assert again.learnt == one.learnt == other.learnt
    assert again.quality() == one.quality() == other.quality() is not None


async def test_a_new_replica_begins_with_the_last_hour_or_what_there_was_before(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(ledger, *range(20))
    for folder, least, later_s, learnt in (
        ("a", 20, 7200.0, 20),
        ("b", 5, 7200.0, 5),
        ("c", 5, 0.0, 20),
    ):
        monkeypatch.setattr(outcomes, "LEAST", least)
        one = Replica(ledger, tmp_path / folder)
        one.now_s += later_s
        await one.outcomes.look()
        assert one.answers == learnt


async def test_others_windows_and_requests_are_waited_for(ledger: Ledger, tmp_path: Path) -> None:
    one = Replica(ledger, tmp_path / "a", alone=False)
    serve(ledger, 0)
    await one.outcomes.look()
    assert one.answers == 0
    serve(ledger, int(outcomes.OTHERS_S))
    await one.outcomes.look()
    assert one.answers == 1


async def test_a_score_is_learnt_once_and_a_changed_mind_again(
    ledger: Ledger, tmp_path: Path
) -> None:
    one = Replica(ledger, tmp_path / "a")
    serve(ledger, 1)
    assert one.quality() is None
    ledger.add_feedback("req-1", "caller", 1.0, "search", NOON_S)
    ledger.add_feedback("req-2", "caller", 1.0, "search", NOON_S)  # its request is not there yet
    await one.outcomes.look()
    first = one.quality()
    await one.outcomes.look()
    assert one.quality() == first is not None
    serve(ledger, 2)
    await one.outcomes.look()
    second = one.quality()
    assert second is not None
    assert second > first
    ledger.add_feedback("req-1", "caller", 0.0, "search", NOON_S + 1)
    await one.outcomes.look()
    assert one.quality() < second


def test_the_other_replica_knows_what_requests_took_and_what_they_were_worth(
    joulegate: Start, tmp_path: Path
) -> None:
    """Two proxies with one ledger, of which only the first gets windows and scores."""
    with simulated_engine.start(EngineConfig()) as engine:
        backend = {
            "model": "llama-3.1-8b",
            "gpu": "A100-SXM-80GB",
            "params_b": 70,
            "url": f"{engine.url}/v1",
            "node": "gpu-7",
            "simulated": True,
        }
        shared = {"teams": TEAMS, "ledger": {"url": f"sqlite:///{tmp_path / 'shared.db'}"}}
        meter = {"kind": "simulated", "url": engine.url, "window_s": 0.5}
        one = joulegate({"backends": [{**backend, "meter": meter}], **shared})
        other = joulegate({"backends": [backend], **shared})
        assert one.proxy is not None
        assert other.proxy is not None
        one.wait_for_meters()
        ask = {
            "model": "llama-3.1-8b",
            "max_tokens": 20,
            "messages": [{"role": "user", "content": "Tell me something."}],
        }

        def estimated(running: Joulegate) -> Any:
            reply = running.post(ask, path="/v1/route", headers={"x-api-key": KEY}).json()
            return reply["candidates"][0]

        before = estimated(other)
        reply = other.post(ask, headers={"x-api-key": KEY})
        score = {"request_id": reply.header("x-request-id"), "score": 0.0}
        until(lambda: one.get(f"/v1/usage/{score['request_id']}", x_api_key=KEY).status == 200)
        for running, key in ((one, KEY), (other, ADMIN)):
            given = running.post(score, path="/v1/feedback", headers={"x-api-key": key})
            assert given.status == 200
        deadline_s = time.monotonic() + 60.0
        while (after := estimated(other))["energy_j"]["mid"] > before["energy_j"]["mid"] / 3:
            assert time.monotonic() < deadline_s, "nothing was learnt"
            assert one.post(ask, headers={"x-api-key": KEY}).status == 200
        assert after["quality"]["mid"] < before["quality"]["mid"]
        until_s = [r.estimator.quality.scored_until_s for r in (one.proxy, other.proxy)]
        assert until_s[0] == until_s[1]  # the second time it was known


def test_another_replicas_answer_is_known_as_soon_as_it_is_given(
    joulegate: Start, small: Upstream, large: Upstream, postgres_url: str
) -> None:
    ledger = {"url": new_database(postgres_url, f"soon_{time.time_ns()}")}
    config = both(small, large, ledger=ledger)
    one, other = joulegate(config), joulegate(config)
    for _ in range(5):
        request_id = one.post(ASK).header("x-request-id")
        assert other.get(f"/v1/usage/{request_id}").status == 200
        request_id = one.post(ASK).header("x-request-id")
        score = {"request_id": request_id, "score": 1.0}
        assert other.post(score, path="/v1/feedback").status == 200
    for unknown in ("req_1", new_request_id(time.time() - 7200.0), new_request_id(time.time())):
        assert other.get(f"/v1/usage/{unknown}").status == 404
