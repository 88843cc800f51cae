"""Every policy keeps the contract, in every situation hypothesis can think of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.checks import CHECKS, Check
from policies.presets import STRATEGIES, presets
from policies.types import Candidate, Limits, Policy, Request
from policies.weighted import Weighted
from tests.policies.candidates import fleets, limits, requests

POLICIES: dict[str, Callable[[], Policy]] = {
    **{name: (lambda make=make: make(False)) for name, make in STRATEGIES.items()},
    **{f"preset {name}": (lambda name=name: presets()[name]) for name in presets()},
    "weighted": lambda: Weighted({"energy": 2, "latency": 1, "quality": 3}),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", POLICIES)
def test_policy(name: str, check: Check) -> None:
    policy = POLICIES[name]()

    @settings(
        max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(requests, fleets(), st.one_of(st.just(Limits()), limits))
    def holds(request: Request, candidates: list[Candidate], within: Limits) -> None:
        check(policy, request, candidates, within)

    holds()
