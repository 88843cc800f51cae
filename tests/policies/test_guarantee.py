"""The guarantee keeps its promise on average and saves what it can."""

from __future__ import annotations

import random
from math import sqrt

import pytest

from policies.guarantee import FIRST_DEBT, MOST_FIRST_DEBT, Guarantee, first_debt
from policies.types import Limits
from tests.policies.candidates import candidate, request

# (mean quality, joules): a small, a middle and a large model; tasks shift quality.
MODELS = {"s": (0.55, 5.0), "m": (0.7, 15.0), "l": (0.85, 60.0)}


def served(promised: float, seed: int, requests: int = 3000) -> tuple[float, float, float]:
    """Mean quality, its standard error and mean joules of requests served under the promise."""
    rng, policy = random.Random(seed), Guarantee(promised)
    debt = policy.first_debt
    outcomes, joules = [], 0.0
    for _ in range(requests):
        shift = rng.uniform(-0.12, 0.12)
        fleet = [
            candidate(name, energy_j=j, marginal_j=j, quality=q + shift)
            for name, (q, j) in MODELS.items()
        ]
        chosen = policy.choose(request(quality_debt=debt), fleet, Limits()).chosen
        quality, energy_j = MODELS[chosen]
        outcome = float(rng.random() < quality + shift)
        debt = policy.owe(debt, outcome)
        outcomes.append(outcome)
        joules += energy_j
    mean = sum(outcomes) / requests
    return mean, sqrt(mean * (1 - mean) / requests), joules / requests


@pytest.mark.parametrize("promised", [0.6, 0.7, 0.8])
def test_the_promise_is_kept_within_one_standard_error(promised: float) -> None:
    for requests in (200, 2000):
        mean, error, _ = served(promised, requests, requests)
        assert mean >= promised - error


@pytest.mark.parametrize(("better", "dear"), [(0.82, 3.0), (0.9, 40.0), (0.8, 2.0)])
def test_it_does_not_begin_below_its_promise(better: float, dear: float) -> None:
    """However little better the one that keeps it is, and however costly."""
    policy = Guarantee(0.8)
    fleet = [
        candidate("a", marginal_j=10.0, quality=0.78),
        candidate("b", marginal_j=10.0 * dear, quality=better),
        candidate("c", marginal_j=None, energy_j=None, quality=0.99),
    ]
    debt, given = first_debt(0.8, fleet), 0.0
    for number in range(1, 300):
        chosen = policy.choose(request(quality_debt=debt), fleet, Limits()).chosen
        quality = {"a": 0.78, "b": better}[chosen]
        debt, given = policy.owe(debt, quality), given + quality
        assert given / number >= 0.8 - 1e-9


def test_what_no_candidate_can_keep_begins_with_the_usual_debt() -> None:
    assert first_debt(0.8, [candidate("a", quality=0.7)]) == FIRST_DEBT
    assert first_debt(0.8, [candidate("a", quality=None), candidate("b")]) == FIRST_DEBT
    close = [candidate("a", quality=0.7999, marginal_j=1), candidate("b", marginal_j=99)]
    assert first_debt(0.8, close) == MOST_FIRST_DEBT


def test_it_uses_less_than_the_cheapest_single_model_that_keeps_the_promise() -> None:
    _, _, joules = served(0.78, 4)
    assert joules < 0.9 * MODELS["l"][1]
    assert served(0.4, 4)[2] < 1.1 * MODELS["s"][1]


def test_a_promise_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Guarantee(1.2)


def test_an_unknown_quality_is_no_way_to_keep_a_promise() -> None:
    fleet = [candidate("a", quality=None, energy_j=1), candidate("b", quality=0.5, energy_j=9)]
    assert Guarantee(0.9).choose(request(quality_debt=1), fleet, Limits()).chosen == "b"
