"""Every policy keeps the contract, in every situation hypothesis can think of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.canary import Canarying
from policies.cascade import Cascade
from policies.checks import CHECKS, Check
from policies.configured import Configured
from policies.experiment import HeldOut, Split
from policies.exploration import Exploring
from policies.guarantee import Guarantee
from policies.least_carbon import LeastCarbon
from policies.least_energy import LeastEnergy
from policies.presets import STRATEGIES, presets
from policies.session import HOLD
from policies.types import Candidate, Limits, Policy, Request
from policies.weighted import Weighted
from tests.policies.candidates import fleets, limits, requests

POLICIES: dict[str, Callable[[], Policy]] = {
    **{name: (lambda make=make: make(False)) for name, make in STRATEGIES.items()},
    **{f"preset {name}": (lambda name=name: presets()[name]) for name in presets()},
    "weighted": lambda: Weighted({"energy": 2, "latency": 1, "quality": 3}),
    "guarantee": lambda: Guarantee(0.7),
    "holding sessions": lambda: LeastEnergy(session=HOLD),
    "with hysteresis": lambda: LeastCarbon(hysteresis=0.2),
    "weighted with hysteresis": lambda: Weighted({"energy": 1, "quality": 1}, hysteresis=0.2),
    "exploring": lambda: Exploring(LeastEnergy(), 0.5, 0.1),
    "held out": lambda: HeldOut(LeastEnergy(), 0.3),
    "split": lambda: Split("ab", {"a": (LeastEnergy(), 0.5), "b": (LeastCarbon(), 0.5)}),
    "canarying": lambda: Canarying(LeastEnergy(), "m1@1", 0.3),
    "cascade": lambda: Cascade(Configured("good", LeastEnergy(), Limits(min_quality=0.6)), 0.8),
    "all at once": lambda: HeldOut(
        Exploring(Configured("c", LeastEnergy(True, HOLD, 0.1), Limits(), LeastCarbon())), 0.1
    ),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", POLICIES)
def test_policy(name: str, check: Check) -> None:
    policy = POLICIES[name]()

    @settings(
        max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(requests, fleets(), st.one_of(st.just(Limits()), limits))
    def holds(request: Request, candidates: list[Candidate], within: Limits) -> None:
        check(policy, request, candidates, within)

    holds()
