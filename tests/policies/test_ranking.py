"""Ranking: order, fallbacks, what is said of each other candidate, and how long it takes."""

from __future__ import annotations

import statistics
import time

import pytest

from estimators.types import Load
from policies.least_energy import LeastEnergy
from policies.ranking import dominates, figures
from policies.types import Decision, Limits, NoBackendWithinLimits
from tests.policies.candidates import candidate, request


def codes(decision: Decision) -> dict[str, str]:
    return {r.backend: r.code for r in decision.rejections}


def test_fallbacks_are_those_that_fit_in_order() -> None:
    fleet = [candidate("a", energy_j=30), candidate("b", energy_j=10), candidate("c", energy_j=99)]
    decision = LeastEnergy().choose(request(), fleet, Limits(max_energy_j=50))
    assert decision.order == ("b", "a")
    assert decision.chosen == "b"


def test_every_other_candidate_has_a_code_and_a_sentence_with_the_figures() -> None:
    fleet = [
        candidate("best", marginal_j=2, quality=0.6),
        candidate("worse", marginal_j=3, quality=0.6),
        candidate("dearer", marginal_j=4, quality=0.9),
        candidate("hungry", energy_j=999, quality=0.9),
    ]
    decision = LeastEnergy().choose(request(), fleet, Limits(max_energy_j=50))
    assert codes(decision) == {
        "worse": "dominated",
        "dearer": "not_chosen",
        "hungry": "energy_over_limit",
    }
    messages = {r.backend: r.message for r in decision.rejections}
    assert messages["worse"] == (
        "better in nothing than best and worse in marginal energy: 3 against 2 J"
    )
    assert messages["dearer"] == "would add 4 J; best would add 2 J"
    assert decision.reason == "best would add 2 J, the least marginal energy of the 3 that fit"


def test_a_candidate_dominated_by_another_that_was_not_chosen_is_named_too() -> None:
    fleet = [
        candidate("best", marginal_j=1, quality=0.5),
        candidate("good", marginal_j=3, quality=0.9),
        candidate("bad", marginal_j=4, quality=0.8),
    ]
    decision = LeastEnergy().choose(request(), fleet, Limits())
    assert codes(decision) == {"good": "not_chosen", "bad": "dominated"}


def test_an_unknown_figure_ranks_last_and_dominates_nobody() -> None:
    unknown = candidate("unknown", energy_j=None, marginal_j=None, carbon_g=None, quality=0.9)
    decision = LeastEnergy().choose(request(), [unknown, candidate("known")], Limits())
    assert decision.order == ("known", "unknown")
    assert codes(decision) == {"unknown": "figure_unknown"}
    free = candidate("free", money_usd=None)
    assert not dominates(figures(free), figures(candidate(energy_j=20)))
    assert not dominates(figures(candidate()), figures(candidate("x", energy_j=20, money_usd=None)))


def test_a_figure_nobody_has_does_not_stand_in_the_way_of_domination() -> None:
    better, worse = candidate(money_usd=None), candidate("b", energy_j=20, money_usd=None)
    assert dominates(figures(better), figures(worse))


def test_a_sleeping_engine_is_left_asleep_until_the_awake_ones_do_not_fit() -> None:
    asleep = candidate("asleep", marginal_j=1, ttft_s=0.1, load=Load(asleep=True, known=True))
    awake = candidate("awake", marginal_j=5, ttft_s=0.5)
    assert LeastEnergy().choose(request(), [asleep, awake], Limits()).chosen == "awake"
    quick = Limits(max_ttft_s=0.2)
    assert LeastEnergy().choose(request(), [asleep, awake], quick).chosen == "asleep"


def test_waking_an_engine_costs_for_each_of_its_cards() -> None:
    one, four = (
        figures(candidate(num_gpus=cards, load=Load(asleep=True, known=True))).energy_j
        for cards in (1, 4)
    )
    awake = figures(candidate(num_gpus=4)).energy_j
    assert four - awake == pytest.approx(4 * (one - awake))
    assert one > awake


def test_attributed_energy_stands_in_for_an_unknown_marginal_one() -> None:
    fleet = [candidate("a", energy_j=5), candidate("b", energy_j=3)]
    fleet = [
        type(c)(c.backend, type(c.estimate)(**_without_marginal(c.estimate)), c.load) for c in fleet
    ]
    assert LeastEnergy().choose(request(), fleet, Limits()).chosen == "b"


def _without_marginal(estimate: object) -> dict[str, object]:
    fields = {f: getattr(estimate, f) for f in estimate.__struct_fields__}  # type: ignore[attr-defined]
    return {**fields, "marginal_energy_j": None}


def test_the_counterfactual_is_the_best_variant_of_what_was_asked_for() -> None:
    fleet = [
        candidate("llama@int4", energy_j=1, quality=0.6),
        candidate("llama@bf16", energy_j=9, quality=0.7),
        candidate("other", energy_j=0.5, quality=0.9),
    ]
    decide = LeastEnergy().choose
    assert decide(request("llama"), fleet, Limits()).counterfactual == "llama@bf16"
    assert decide(request("auto"), fleet, Limits()).counterfactual == "other"
    assert decide(request("llama@int4"), fleet, Limits()).counterfactual == "llama@int4"
    assert decide(request("gone"), fleet, Limits()).counterfactual is None


def test_a_variant_that_the_client_named_is_kept_to() -> None:
    fleet = [candidate("llama@int4", energy_j=1), candidate("llama@bf16", energy_j=9)]
    decision = LeastEnergy().choose(request("llama@bf16"), fleet, Limits())
    assert decision.chosen == "llama@bf16"
    assert codes(decision) == {"llama@int4": "not_asked_for"}


def test_nothing_that_fits_is_a_refusal_that_names_each_reason() -> None:
    fleet = [candidate("a", energy_j=30), candidate("b", energy_j=None, marginal_j=None)]
    with pytest.raises(NoBackendWithinLimits) as refusal:
        LeastEnergy().choose(request(), fleet, Limits(max_energy_j=1))
    assert [(r.backend, r.code) for r in refusal.value.rejections] == [
        ("a", "energy_over_limit"),
        ("b", "energy_unknown"),
    ]
    assert "a: may take up to 33 J, over the limit of 1" in str(refusal.value)


@pytest.mark.alone
def test_twenty_candidates_are_decided_in_a_fraction_of_a_millisecond() -> None:
    fleet = [
        candidate(f"g@{n}", energy_j=10 + n % 7, quality=0.5 + n % 5 / 20, money_usd=1 + n % 3)
        for n in range(20)
    ]
    within = Limits(min_quality=0.4, max_energy_j=50, max_ttft_s=2, regions=None)
    policy, asked = LeastEnergy(), request()
    took = []
    for _ in range(30):
        began = time.process_time_ns()
        for _ in range(10):
            policy.choose(asked, fleet, within)
        took.append((time.process_time_ns() - began) / 10)
    # 100 us is the aim (see benchmarks); a busy test machine may be several times slower.
    assert statistics.median(took) < 500_000
