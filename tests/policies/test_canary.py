"""Canaries roll out in steps, and roll back by themselves when the new backend is worse."""

from __future__ import annotations

import random

import pytest

from policies.canary import Canary, Canarying, Duels
from policies.least_energy import LeastEnergy
from policies.types import Limits
from tests.policies.candidates import candidate, request

FLEET = [candidate("old", energy_j=10), candidate("new", energy_j=5)]


def test_a_new_backend_gets_its_share_and_no_more_however_good_it_looks() -> None:
    policy, rng = Canarying(LeastEnergy(), "new", 0.1), random.Random(1)
    seen = [policy.choose(request(draw=rng.random()), FLEET, Limits()) for _ in range(4000)]
    given = [d for d in seen if d.chosen == "new"]
    assert abs(len(given) / 4000 - 0.1) < 0.02
    assert {d.arm for d in seen} == {"canary", "control"}
    waits = next(d for d in seen if d.chosen == "old")
    assert [(r.backend, r.code) for r in waits.rejections] == [("new", "canary")]


def test_a_new_backend_serves_when_nothing_else_fits() -> None:
    decision = Canarying(LeastEnergy(), "new", 0.0).choose(request(), FLEET, Limits(max_energy_j=8))
    assert decision.chosen == "new"


def test_a_share_of_quality_is_of_the_new_backend_too_where_it_is_the_best() -> None:
    fleet = [
        candidate("old", energy_j=5, quality=0.615, spread=0.001),
        candidate("solid", energy_j=10, quality=0.68, spread=0.001),
        candidate("new", energy_j=20, quality=0.7, spread=0.001),
    ]
    policy, limits = Canarying(LeastEnergy(), "new", 0.0), Limits(min_relative_quality=0.9)
    decision = policy.choose(request(), fleet, limits)
    assert decision.chosen == "solid"  # 0.615 is 90 % of 0.68, not of 0.7, whoever may serve


def rolled(seed: int, errors: float = 0.01, slower: float = 1.0, quality: float = 0.8) -> Canary:
    """A roll-out to its end, or to 20,000 requests, with a canary of the given behaviour."""
    rng, now = random.Random(seed), Canary(backend="new")
    for _ in range(20_000):
        if now.state != "rolling":
            break
        if rng.random() < now.share:
            now = now.after(
                "canary",
                rng.random() >= errors,
                rng.lognormvariate(0.5, 0.4) * slower,
                rng.gauss(quality, 0.2),
            )
        else:
            now = now.after(
                "control",
                rng.random() >= 0.01,
                rng.lognormvariate(0.5, 0.4),
                rng.gauss(0.8, 0.2),
            )
    return now


def test_a_canary_as_good_as_the_others_is_promoted_in_steps() -> None:
    outcomes = [rolled(seed) for seed in range(12)]
    assert sum(o.state == "promoted" for o in outcomes) >= 11
    assert outcomes[0].share == 1.0


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [({"errors": 0.4}, "errors"), ({"slower": 2.5}, "latency"), ({"quality": 0.5}, "quality")],
)
def test_a_worse_canary_is_rolled_back_early_and_says_why(
    behaviour: dict[str, float], why: str
) -> None:
    for seed in range(5):
        now = rolled(seed, **behaviour)
        assert now.state == "rolled_back"
        assert now.why.startswith(why)
        assert now.share == 0.0
        assert now.canary.requests < 200


def test_a_verdict_is_final_and_other_arms_do_not_count() -> None:
    over = rolled(0, errors=0.5)
    assert over.after("canary", True, 1.0) is over
    fresh = Canary(backend="new")
    assert fresh.after("treated", False) is fresh


@pytest.mark.parametrize(
    ("win_rate", "ends"), [(0.5, "rolling"), (0.6, "rolling"), (0.2, "rolled_back")]
)
def test_comparisons_that_it_loses_beyond_chance_roll_it_back(win_rate: float, ends: str) -> None:
    for seed in range(20):
        rng, duels = random.Random(seed), Duels()
        for _ in range(120):
            duels = duels.with_points(rng.choices([0, 0.5, 1], [1 - win_rate, 0.2, win_rate])[0])
        now = Canary(backend="new", duels=duels).judged()
        assert now.state == ends
        assert ends == "rolling" or "judged comparisons" in now.why


def test_a_few_comparisons_are_no_verdict() -> None:
    lost = Duels()
    for _ in range(9):
        lost = lost.with_points(0.0)
    assert Canary(backend="new", duels=lost).judged().state == "rolling"
    for _ in range(20):
        lost = lost.with_points(0.0)
    assert Canary(backend="new", duels=lost).judged().state == "rolled_back"
