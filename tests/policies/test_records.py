"""A recorded decision replays to the same answer, for every policy and situation."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from estimators.types import GpuFacts, ModelFacts
from policies.least_energy import LeastEnergy
from policies.records import (
    OtherVersion,
    Record,
    decision_from_json,
    decision_to_json,
    record,
    replay_decision,
)
from policies.types import (
    Candidate,
    Decision,
    Limits,
    NoBackendWithinLimits,
    Policy,
    Rejection,
    Request,
)
from tests.policies.candidates import candidate, fleets, limits, request, requests
from tests.policies.test_checks import POLICIES


def outcome(
    policy: Policy, asked: Request, fleet: list[Candidate], within: Limits
) -> Decision | NoBackendWithinLimits:
    try:
        return policy.choose(asked, fleet, within)
    except NoBackendWithinLimits as refusal:
        return refusal


def outcome_of(kept: Record, policy: Policy) -> Decision | tuple[Rejection, ...]:
    try:
        return replay_decision(kept, {policy.name: policy})
    except NoBackendWithinLimits as refusal:
        return refusal.rejections


@pytest.mark.parametrize("name", POLICIES)
def test_a_record_replays_to_the_same_answer(name: str) -> None:
    policy = POLICIES[name]()

    @settings(max_examples=12, suppress_health_check=list(HealthCheck), database=None)
    @given(requests, fleets(), limits)
    def holds(asked: Request, fleet: list[Candidate], within: Limits) -> None:
        decided = outcome(policy, asked, fleet, within)
        kept = decision_from_json(decision_to_json(record(policy, asked, fleet, within, decided)))
        again = outcome_of(kept, policy)
        if isinstance(decided, Decision):
            assert again == decided == kept.decision
        else:
            assert again == decided.rejections == kept.refused

    holds()


def test_what_moving_a_session_costs_replays_too() -> None:
    h100 = GpuFacts(
        name="H100-SXM", memory_gb=80, mem_bandwidth_gbs=3350, fp16_tflops=989, tdp_w=700
    )
    fleet = [candidate(n, gpu=h100, model=ModelFacts(params_b=8), num_gpus=2) for n in "ab"]
    asked = request(cached_prompt_tokens=9000, session_backend="b", messages=5)
    decided = LeastEnergy().choose(asked, fleet, Limits(max_ttft_s=0.45))
    assert decided.moving_energy_j
    kept = decision_from_json(
        decision_to_json(record(LeastEnergy(), asked, fleet, Limits(max_ttft_s=0.45), decided))
    )
    assert replay_decision(kept, {"least_energy": LeastEnergy()}) == decided


def test_no_prompt_is_kept() -> None:
    asked = request(text="my secret plan")
    decided = LeastEnergy().choose(asked, [candidate()], Limits())
    kept = decision_to_json(record(LeastEnergy(), asked, [candidate()], Limits(), decided))
    assert "secret" not in kept


def test_a_record_of_four_candidates_is_small() -> None:
    fleet = [candidate(f"llama-3.1-8b@{n}", energy_j=10 / 3 + n) for n in range(4)]
    decided = LeastEnergy().choose(request(), fleet, Limits())
    kept = decision_to_json(record(LeastEnergy(), request(), fleet, Limits(), decided))
    assert len(kept) < 4000


def test_another_version_of_the_policy_is_not_taken_for_the_one_that_decided() -> None:
    policy = LeastEnergy()
    policy.version = "abc"
    kept = record(
        policy,
        request(),
        [candidate()],
        Limits(),
        policy.choose(request(), [candidate()], Limits()),
    )
    with pytest.raises(OtherVersion, match="decided in version abc"):
        replay_decision(kept, {"least_energy": LeastEnergy()})
    with pytest.raises(OtherVersion, match="no policy of that name"):
        replay_decision(kept, {})
    again = replay_decision(kept, {"least_energy": LeastEnergy()}, any_version=True)
    assert again.chosen == "a"
