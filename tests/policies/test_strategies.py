"""What each strategy is for: the smallest fleet in which it differs from the others."""

from __future__ import annotations

import pytest

from policies.best_quality import BestQuality
from policies.cheapest import Cheapest
from policies.fastest import Fastest
from policies.least_carbon import LeastCarbon
from policies.least_energy import LeastEnergy
from policies.pinned import Pinned
from policies.presets import presets
from policies.types import Limits, NoBackendWithinLimits, Policy
from policies.weighted import Weighted
from tests.policies.candidates import candidate, request

FLEET = [
    candidate(
        "frugal", marginal_j=1, energy_j=20, carbon_g=9, money_usd=4, latency_s=4, quality=0.5
    ),
    candidate(
        "green", marginal_j=2, energy_j=20, carbon_g=1, money_usd=5, latency_s=5, quality=0.6
    ),
    candidate(
        "cheap", marginal_j=3, energy_j=20, carbon_g=8, money_usd=1, latency_s=6, quality=0.7
    ),
    candidate(
        "quick", marginal_j=4, energy_j=20, carbon_g=7, money_usd=6, latency_s=1, quality=0.8
    ),
    candidate("wise", marginal_j=5, energy_j=20, carbon_g=6, money_usd=7, latency_s=7, quality=0.9),
]


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        (LeastEnergy(), "frugal"),
        (LeastCarbon(), "green"),
        (Cheapest(), "cheap"),
        (Fastest(), "quick"),
        (BestQuality(), "wise"),
        (Pinned(), "wise"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_strategy_chooses_by_its_own_figure(policy: Policy, chosen: str) -> None:
    decision = policy.choose(request(), FLEET, Limits())
    assert decision.chosen == chosen
    assert decision.policy == policy.name


def test_carbon_is_that_of_the_marginal_joules() -> None:
    dirty_but_packed = candidate("packed", energy_j=10, marginal_j=1, carbon_g=5)
    clean_but_idle = candidate("idle", energy_j=10, marginal_j=10, carbon_g=2)
    decision = LeastCarbon().choose(request(), [dirty_but_packed, clean_but_idle], Limits())
    assert decision.chosen == "packed"


def test_pinned_serves_what_was_asked_for_and_nothing_else() -> None:
    fleet = [candidate("asked@int4", quality=0.6), candidate("asked@bf16", quality=0.7), FLEET[4]]
    assert Pinned().choose(request("asked"), fleet, Limits()).order == ("asked@bf16", "asked@int4")
    assert Pinned().choose(request("asked@int4"), fleet, Limits()).order == ("asked@int4",)
    with pytest.raises(NoBackendWithinLimits):
        Pinned().choose(request("gone"), fleet, Limits())


def test_weights_trade_percent_against_percent() -> None:
    # Half the energy against 1.6 times the latency: worth it unless latency weighs 1.5 times.
    slow = candidate("slow", energy_j=10, latency_s=4)
    hungry = candidate("hungry", energy_j=20, latency_s=2.5)
    for weight, chosen in ((1.0, "slow"), (1.4, "slow"), (1.6, "hungry")):
        policy = Weighted({"energy": 1, "latency": weight})
        assert policy.choose(request(), [slow, hungry], Limits()).chosen == chosen


def test_pays_for_quality_when_quality_is_asked_for() -> None:
    good, bad = candidate("good", energy_j=12, quality=0.8), candidate("bad", quality=0.6)
    assert Weighted({"energy": 1}).choose(request(), [good, bad], Limits()).chosen == "bad"
    both = Weighted({"energy": 1, "quality": 1})
    assert both.choose(request(), [good, bad], Limits()).chosen == "good"


def test_weights_that_mean_nothing_are_refused() -> None:
    for weights in ({}, {"energy": 0}, {"energy": -1, "money": 2}, {"speed": 1}):
        with pytest.raises(ValueError, match=r"weights|objective"):
            Weighted(weights)


def test_thrifty_takes_a_precision_that_keeps_quality_and_leaves_one_that_does_not() -> None:
    fleet = [
        candidate("llama@bf16", marginal_j=6, quality=0.80, spread=0.02),
        candidate("llama@fp8", marginal_j=3, quality=0.79, spread=0.02),
        candidate("llama@int4", marginal_j=2, quality=0.60, spread=0.02),
        candidate("tiny", marginal_j=1, quality=0.80, spread=0.02),
    ]
    decision = presets()["thrifty"].choose(request("llama"), fleet, Limits())
    assert decision.chosen == "llama@fp8"
    assert decision.policy == "thrifty"
    assert {r.backend: r.code for r in decision.rejections} == {
        "llama@bf16": "not_chosen",
        "llama@int4": "quality_below_limit",
        "tiny": "not_asked_for",
    }


def test_a_preset_whose_quality_limit_cannot_be_kept_serves_what_was_asked_for() -> None:
    fleet = [candidate("llama@bf16", quality=None), candidate("llama@int4", quality=None)]
    decision = presets()["thrifty"].choose(request("llama@bf16"), fleet, Limits())
    assert decision.chosen == "llama@bf16"
    assert decision.reason.startswith("nothing fits the limits of thrifty, so pinned")
    with pytest.raises(NoBackendWithinLimits):
        presets()["thrifty"].choose(request("llama"), fleet, Limits(max_energy_j=1e-9))
