"""Exploration is rare, cheap, within the limits, and replays."""

from __future__ import annotations

import random

import pytest

from policies.exploration import Exploring
from policies.least_energy import LeastEnergy
from policies.session import HOLD, WEIGH
from policies.types import Limits
from tests.policies.candidates import candidate, request

N = 20_000


def explored(policy: Exploring, fleet: list, within: Limits | None = None) -> list[str]:
    rng = random.Random(5)
    chosen = []
    for _ in range(N):
        decision = policy.choose(request(draw=rng.random()), fleet, within or Limits())
        if decision.explored:
            chosen.append(decision.chosen)
    return chosen


def test_the_share_of_explored_requests_is_what_was_asked_for_and_evenly_spread() -> None:
    fleet = [candidate(n, marginal_j=10) for n in "abc"]
    tried = explored(Exploring(LeastEnergy(), share=0.05, extra_energy=1.0), fleet)
    assert abs(len(tried) / N - 0.05) < 0.006
    assert set(tried) == {"b", "c"}
    assert abs(tried.count("b") / len(tried) - 0.5) < 0.06


def test_what_it_adds_stays_within_its_budget_of_energy() -> None:
    joules = {"a": 10.0, "b": 30.0, "c": 60.0}
    fleet = [candidate(n, marginal_j=j) for n, j in joules.items()]
    tried = explored(Exploring(LeastEnergy(), share=0.2, extra_energy=0.05), fleet)
    extra = sum(joules[n] - 10.0 for n in tried)
    assert "c" in tried
    assert 0.045 * N * 10 < extra <= 0.057 * N * 10


def test_it_never_leaves_the_limits() -> None:
    fleet = [candidate("a", energy_j=10), candidate("b", energy_j=11), candidate("c", energy_j=99)]
    tried = explored(Exploring(LeastEnergy(), 0.5, 1.0), fleet, Limits(max_energy_j=20))
    assert set(tried) == {"b"}


def test_an_explored_decision_says_so_and_is_the_same_again() -> None:
    fleet = [candidate("a", energy_j=10), candidate("b", energy_j=11)]
    policy = Exploring(LeastEnergy(), 1.0, 1.0)
    decision = policy.choose(request(draw=0.3), fleet, Limits())
    assert decision.explored
    assert decision.order == ("b", "a")
    assert decision.reason == "b was tried to keep its estimates fresh; a ranks first"
    assert [r.code for r in decision.rejections] == ["explored_another"]
    assert policy.choose(request(draw=0.3), fleet, Limits()) == decision


def test_nothing_unknown_is_explored_and_nothing_when_there_is_no_other() -> None:
    unknown = candidate("b", energy_j=None, marginal_j=None)
    assert explored(Exploring(LeastEnergy(), 1.0, 1.0), [candidate("a"), unknown]) == []
    assert explored(Exploring(LeastEnergy(), 1.0, 1.0), [candidate("a")]) == []


def test_shares_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Exploring(LeastEnergy(), 1.5)


def test_a_conversation_that_is_under_way_is_not_moved_to_try_another() -> None:
    """With ``hold`` it would stay where it was tried, for all the turns to come."""
    fleet = [candidate("a", energy_j=10), candidate("b", energy_j=11)]
    for session in (HOLD, WEIGH):
        policy = Exploring(LeastEnergy(session=session), 1.0, 1.0)
        asked = request(session_backend="a", cached_prompt_tokens=150, draw=0.3)
        assert policy.choose(asked, fleet, Limits()).chosen == "a"
