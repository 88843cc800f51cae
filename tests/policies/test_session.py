"""Sessions stay where their prefix is cached, unless moving pays; what it costs is said."""

from __future__ import annotations

from estimators.types import GpuFacts, Load, ModelFacts
from policies.least_energy import LeastEnergy
from policies.session import FREE, HOLD, STAYING, WEIGH, moving, turns_to_come
from policies.types import Limits, Request
from tests.policies.candidates import candidate, request

# H100 SXM data sheet: 989 dense bf16 TFLOP/s, 3.35 TB/s, 700 W.
H100 = GpuFacts(name="H100-SXM", memory_gb=80, mem_bandwidth_gbs=3350, fp16_tflops=989, tdp_w=700)
FACTS = {"gpu": H100, "model": ModelFacts(params_b=8)}


def in_session(cached: int = 20_000, messages: int = 2, **fields: object) -> Request:
    fields.setdefault("session_backend", "here")
    return request(
        prompt_tokens=cached + 100,
        cached_prompt_tokens=cached,
        messages=messages,
        session="s",
        **fields,
    )


HERE = candidate("here", energy_j=60, marginal_j=30, **FACTS)
THERE = candidate("there", energy_j=50, marginal_j=20, **FACTS)


def test_moving_costs_the_prefill_of_what_is_cached() -> None:
    cost = moving(in_session(cached=10_000), THERE)
    assert cost is not None
    # 2 FLOPs x 8e9 x 10,000 tokens at 0.4 of 989e12 FLOP/s, at 700 W
    assert abs(cost.time_s - 0.4044) < 1e-3
    assert abs(cost.energy_j - 283.1) < 0.1


def test_staying_costs_nothing_and_unknown_hardware_is_unknown() -> None:
    assert moving(in_session(), HERE) == STAYING
    assert moving(request(cached_prompt_tokens=500), THERE) == STAYING
    assert moving(in_session(), candidate("api")) is None


def test_more_gpus_prefill_sooner_with_the_same_joules() -> None:
    one, four = (
        moving(in_session(), THERE),
        moving(in_session(), candidate("x", num_gpus=4, **FACTS)),
    )
    assert one is not None
    assert four is not None
    assert four.energy_j == one.energy_j
    assert four.time_s == one.time_s / 4


def test_a_long_session_stays_and_the_decision_says_what_moving_would_cost() -> None:
    decision = LeastEnergy().choose(in_session(), [HERE, THERE], Limits())
    assert decision.chosen == "here"
    assert decision.moving_energy_j is not None
    assert decision.moving_energy_j > 500
    away = LeastEnergy(session=FREE).choose(in_session(), [HERE, THERE], Limits())
    assert away.chosen == "there"


def test_a_session_moves_when_the_turns_to_come_repay_it() -> None:
    short = in_session(cached=100, messages=2)
    assert LeastEnergy().choose(short, [HERE, THERE], Limits()).chosen == "there"
    long = in_session(cached=2_000, messages=40)
    assert turns_to_come(long) == 20
    assert LeastEnergy().choose(long, [HERE, THERE], Limits()).chosen == "there"


def test_a_held_session_stays_even_where_moving_would_pay_but_only_within_the_limits() -> None:
    short = in_session(cached=10, messages=2)
    decision = LeastEnergy(session=HOLD).choose(short, [HERE, THERE], Limits())
    assert decision.chosen == "here"
    assert decision.kept == "session"
    assert "the session's prefix is cached there" in decision.reason
    assert decision.order == ("here", "there")
    moved = LeastEnergy(session=HOLD).choose(short, [HERE, THERE], Limits(max_energy_j=60))
    assert moved.chosen == "there"


def test_prefilling_again_is_held_against_the_limit_on_the_first_token() -> None:
    quick = Limits(max_ttft_s=0.5)
    decision = LeastEnergy(session=FREE).choose(in_session(20_000), [HERE, THERE], quick)
    assert decision.chosen == "here"
    assert [r.code for r in decision.rejections] == ["ttft_over_limit"]


def test_a_session_is_not_held_where_the_engine_sleeps() -> None:
    """Its cache went with it: staying would wake it, and prefill all the same."""
    asleep = candidate("here", marginal_j=30, load=Load(asleep=True), **FACTS)
    assert moving(in_session(), asleep) == moving(in_session(), THERE)
    for session in (HOLD, WEIGH):
        decision = LeastEnergy(session=session).choose(in_session(), [asleep, THERE], Limits())
        assert (decision.chosen, decision.kept) == ("there", None)
        assert decision.moving_energy_j is None
