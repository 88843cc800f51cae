"""Hold-outs and A/B tests: who is in which arm, and what the arms prove."""

from __future__ import annotations

import random

import pytest

from policies.best_quality import BestQuality
from policies.cascade import Cascade
from policies.configured import Configured
from policies.experiment import HeldOut, Split, saving
from policies.least_energy import LeastEnergy
from policies.types import Limits
from tests.policies.candidates import candidate, request

FLEET = [
    candidate("m@int4", energy_j=10, quality=0.7),
    candidate("m@bf16", energy_j=30, quality=0.8),
]


def test_a_hold_out_is_served_as_if_we_were_not_there() -> None:
    policy, rng = HeldOut(LeastEnergy(), 0.1), random.Random(3)
    decisions = [
        policy.choose(request("m", draw=rng.random()), FLEET, Limits()) for _ in range(5000)
    ]
    held = [d for d in decisions if d.arm == "hold_out"]
    assert {d.chosen for d in held} == {"m@bf16"}
    assert {(d.chosen, d.arm) for d in decisions if d not in held} == {("m@int4", "treated")}
    assert abs(len(held) / 5000 - 0.1) < 0.015
    assert held[0].explored


def test_the_arms_of_a_split_hold_only_their_own_requests_where_the_last_went() -> None:
    thrifty, good = (kind(hysteresis=0.95) for kind in (LeastEnergy, BestQuality))
    policy = Split("trial", {"thrifty": (thrifty, 0.5), "good": (good, 0.5)})
    last = {"thrifty": "m@int4", "good": "m@bf16"}
    for n in range(100):
        asked = request("m", draw=n / 100, previous_backend="m@bf16", previous_by_arm=last)
        decision = policy.choose(asked, FLEET, Limits())
        assert decision.chosen == last[str(decision.arm)]


@pytest.mark.parametrize("declared", ["m@int8", "m@bf16", "n"])
def test_a_hold_out_of_open_requests_is_served_by_what_was_declared(declared: str) -> None:
    """What the books count savings against and what the hold-out gets are the same."""
    fleet = [
        *FLEET,
        candidate("m@int8", energy_j=20, quality=0.75),
        candidate("n@bf16", energy_j=25, quality=0.6),
    ]
    policy = HeldOut(LeastEnergy(), 0.5)
    decisions = [
        policy.choose(request("auto", without_us=declared, draw=n / 100), fleet, Limits())
        for n in range(100)
    ]
    served = "n@bf16" if declared == "n" else declared
    assert {d.counterfactual for d in decisions} == {served}
    assert {d.chosen for d in decisions if d.arm == "hold_out"} == {served}


@pytest.mark.parametrize("without_us", ["m@bf16", "m@int4"])
def test_a_hold_out_of_a_cascade_is_one_answer(without_us: str) -> None:
    """What is held out is not checked, and asks nobody a second time."""
    good = Configured("c", LeastEnergy(), Limits(min_quality=0.7, cautious=False))
    fleet = [
        *FLEET,
        candidate("m@int8", energy_j=20, quality=0.75),
        candidate("s", energy_j=1, quality=0.3),
    ]
    cascade = Cascade(good, 0.9)
    asked = request("auto", without_us=without_us, draw=0.5)
    decision = cascade.choose(asked, fleet, Limits())
    assert (decision.chosen, decision.escalate_to) == ("s", "m@int4")
    held = HeldOut(cascade, 0.5)
    arms = [
        held.choose(request("auto", without_us=without_us, draw=n / 50), fleet, Limits())
        for n in range(50)
    ]
    out = [d for d in arms if d.arm == "hold_out"]
    assert {(d.chosen, d.escalate_to) for d in out} == {(without_us, None)}
    assert all("s" not in d.order for d in out)  # it was to be checked, and breaks the limit
    assert {d.escalate_to for d in arms if d.arm == "treated"} == {"m@int4"}
    alone = HeldOut(Cascade(good, 0.9), 0.5)
    first = [
        alone.choose(request("auto", without_us="s", draw=n / 50), fleet, Limits())
        for n in range(50)
    ]
    assert {(d.chosen, d.arm) for d in first} == {("s", None)}  # unchecked it breaks the limit


def test_a_counterfactual_that_breaks_a_limit_puts_the_request_in_no_arm() -> None:
    policy = HeldOut(LeastEnergy(), 0.5)
    arms = {
        policy.choose(request("m", draw=n / 100), FLEET, Limits(max_energy_j=20)).arm
        for n in range(100)
    }
    assert arms == {None}


def test_the_saving_is_found_with_an_interval_that_holds_the_truth() -> None:
    rng = random.Random(11)
    inside = 0
    for _ in range(200):
        treated = [rng.gauss(60, 20) for _ in range(400)]
        held = [rng.gauss(100, 30) for _ in range(60)]
        found = saving(treated, held)
        assert found is not None
        inside += found.low <= 0.4 <= found.high
    assert 0.72 <= inside / 200 <= 0.88  # an 80 % interval


def test_a_saving_that_cannot_be_told_is_none() -> None:
    assert saving([1.0, 2.0], [3.0]) is None
    assert saving([], []) is None
    assert saving([1.0, 2.0], [0.0, 0.0]) is None


def test_a_split_gives_each_arm_its_share_and_keeps_a_session_in_one() -> None:
    policy = Split("ab", {"old": (BestQuality(), 0.7), "new": (LeastEnergy(), 0.3)})
    rng = random.Random(7)
    arms = [policy.choose(request(draw=rng.random()), FLEET, Limits()).arm for _ in range(3000)]
    assert abs(arms.count("new") / 3000 - 0.3) < 0.03
    in_session = {
        policy.choose(request(draw=rng.random(), session="s7"), FLEET, Limits()).arm
        for _ in range(50)
    }
    assert len(in_session) == 1
    decision = policy.choose(request(draw=0.1), FLEET, Limits())
    assert decision.policy == "ab"
    with pytest.raises(ValueError, match="add up to 1"):
        Split("ab", {"a": (LeastEnergy(), 0.5)})
