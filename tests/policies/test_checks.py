"""Every policy keeps the contract, in every situation hypothesis can think of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.best_quality import BestQuality
from policies.canary import Canarying
from policies.cascade import Cascade
from policies.checks import (
    CHECKS,
    Check,
    check_a_dominated_candidate_is_never_chosen,
    check_a_tighter_limit_never_raises_what_it_limits,
    check_chooses_a_candidate_that_fits,
    check_no_candidates_is_a_clear_refusal,
    check_order_of_candidates_does_not_matter,
    check_says_why_not_each_other,
)
from policies.conditions import Condition
from policies.configured import Configured, Ruled
from policies.experiment import HeldOut, Split
from policies.exploration import Exploring, switched
from policies.fastest import FirstToken
from policies.guarantee import Guarantee
from policies.least_carbon import LeastCarbon
from policies.least_energy import LeastEnergy
from policies.presets import STRATEGIES, presets
from policies.session import HOLD
from policies.types import Candidate, Decision, Limits, Policy, Request
from policies.weighted import Weighted
from policies.wording import Range
from tests.policies.candidates import candidate, fleets, limits, request, requests

POLICIES: dict[str, Callable[[], Policy]] = {
    **{name: (lambda make=make: make(False)) for name, make in STRATEGIES.items()},
    **{f"preset {name}": (lambda name=name: presets()[name]) for name in presets()},
    "weighted": lambda: Weighted({"energy": 2, "latency": 1, "quality": 3}),
    "first token": FirstToken,
    "with rules": lambda: Ruled(
        "ruled",
        [
            (Condition(task=("code",)), BestQuality()),
            (Condition(intensity=Range(low=300.0)), LeastCarbon()),
        ],
        LeastEnergy(),
        "1",
    ),
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

    @settings(max_examples=25, suppress_health_check=list(HealthCheck), database=None)
    @given(requests, fleets(), st.one_of(st.just(Limits()), limits))
    def holds(request: Request, candidates: list[Candidate], within: Limits) -> None:
        check(policy, request, candidates, within)

    holds()


class Wrong(LeastEnergy):
    """Breaks one clause of the contract, by the name of the check that should see it."""

    def __init__(self, breaks: str) -> None:
        super().__init__()
        self.breaks = breaks

    def choose(self, request: Request, candidates: Sequence[Candidate], limits: Limits) -> Decision:
        if not candidates and self.breaks == "no candidates":
            return Decision(chosen="x", order=("x",), policy=self.name, reason="why not")
        within = Limits() if self.breaks == "fits" else limits
        decision = super().choose(request, candidates, within)
        if self.breaks == "why not":
            return msgspec.structs.replace(decision, rejections=())
        last = decision.order[-1]
        limited = limits.max_energy_j is not None or limits.min_quality is not None
        if self.breaks == "order" and candidates[0].backend.name in decision.order:
            return switched(decision, candidates[0].backend.name, "first", "later")
        if self.breaks == "dominated" or (self.breaks == "tighter" and limited):
            worse = switched(decision, last, "the worst", "better")
            return msgspec.structs.replace(worse, explored=False)
        return decision


@pytest.mark.parametrize(
    ("breaks", "check"),
    [
        ("fits", check_chooses_a_candidate_that_fits),
        ("why not", check_says_why_not_each_other),
        ("order", check_order_of_candidates_does_not_matter),
        ("tighter", check_a_tighter_limit_never_raises_what_it_limits),
        ("dominated", check_a_dominated_candidate_is_never_chosen),
        ("no candidates", check_no_candidates_is_a_clear_refusal),
    ],
)
def test_a_policy_that_breaks_a_clause_is_caught(breaks: str, check: Check) -> None:
    thrifty = candidate("a", energy_j=10.0, quality=0.6)
    greedy = candidate("b", energy_j=14.0, carbon_g=2.0, quality=0.6)
    limits = Limits(max_energy_j=12.0) if breaks == "fits" else Limits()
    check(LeastEnergy(), request(), [greedy, thrifty], limits)
    with pytest.raises(AssertionError):
        check(Wrong(breaks), request(), [greedy, thrifty], limits)


def test_a_policy_that_a_floor_under_quality_leads_to_worse_is_caught() -> None:
    class Floored(BestQuality):
        def choose(
            self, request: Request, candidates: Sequence[Candidate], limits: Limits
        ) -> Decision:
            decision = super().choose(request, candidates, limits)
            if limits.min_quality is None:
                return decision
            worse = switched(decision, decision.order[-1], "the worst", "better")
            return msgspec.structs.replace(worse, explored=False)

    fleet = [candidate("a", quality=0.6, energy_j=1.0), candidate("b", quality=0.61, energy_j=9.0)]
    with pytest.raises(AssertionError):
        check_a_tighter_limit_never_raises_what_it_limits(Floored(), request(), fleet, Limits())
