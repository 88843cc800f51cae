"""Hysteresis: like requests do not flap between backends that are nearly as good."""

from __future__ import annotations

import itertools

from policies.best_quality import BestQuality
from policies.least_energy import LeastEnergy
from policies.types import Limits
from policies.weighted import Weighted
from tests.policies.candidates import candidate, request


def test_the_last_backend_is_kept_until_another_is_better_by_the_margin() -> None:
    policy = LeastEnergy(hysteresis=0.2)
    last = request(previous_backend="last")
    nearly = [candidate("last", marginal_j=10), candidate("new", marginal_j=9)]
    decision = policy.choose(last, nearly, Limits())
    assert decision.chosen == "last"
    assert decision.kept == "hysteresis"
    assert decision.reason.endswith("but the last request went there and that is not 20% better")
    clearly = [candidate("last", marginal_j=10), candidate("new", marginal_j=7)]
    assert policy.choose(last, clearly, Limits()).chosen == "new"
    assert policy.choose(request(), nearly, Limits()).chosen == "new"


def test_two_equal_engines_whose_figures_wobble_do_not_flap() -> None:
    for margin, changes in ((0.0, 19), (0.1, 0)):
        policy, last, seen = LeastEnergy(hysteresis=margin), "a", []
        for turn in range(20):
            wobble = 0.3 if turn % 2 else -0.3
            fleet = [candidate("a", marginal_j=10 + wobble), candidate("b", marginal_j=10 - wobble)]
            last = policy.choose(request(previous_backend=last), fleet, Limits()).chosen
            seen.append(last)
        assert sum(x != y for x, y in itertools.pairwise(seen)) == changes


def test_it_works_on_quality_and_on_weights_as_on_joules() -> None:
    fleet = [
        candidate("last", quality=0.70, energy_j=10),
        candidate("new", quality=0.72, energy_j=9.8),
    ]
    last = request(previous_backend="last")
    for steady, quick in (
        (BestQuality(hysteresis=0.05), BestQuality(hysteresis=0.01)),
        (
            Weighted({"quality": 1, "energy": 1}, hysteresis=0.05),
            Weighted({"quality": 1, "energy": 1}, hysteresis=0.01),
        ),
    ):
        assert steady.choose(last, fleet, Limits()).chosen == "last"
        assert quick.choose(last, fleet, Limits()).chosen == "new"


def test_a_kept_backend_must_still_fit() -> None:
    fleet = [candidate("last", energy_j=10), candidate("new", energy_j=9)]
    last = request(previous_backend="last")
    policy = LeastEnergy(hysteresis=0.5)
    assert policy.choose(last, fleet, Limits(max_energy_j=10.5)).chosen == "new"
