"""Answer budgets: variants of a backend that answer with less."""

from __future__ import annotations

from estimators.types import Lengths
from policies.answer_budget import AnswerBudget, applied, expected, variant
from policies.least_energy import LeastEnergy
from policies.types import Candidate, Limits
from tests.policies.candidates import candidate, request

BRIEF = AnswerBudget(
    name="brief", directive="Answer briefly.", output_factor=0.5, quality_factor=0.98
)


def test_a_budget_is_a_candidate_of_its_own() -> None:
    full = candidate("m", quality=0.8, spread=0.01)
    brief = Candidate(variant(full.backend, BRIEF), expected(full.estimate, BRIEF, 20), full.load)
    assert brief.backend.name == brief.estimate.backend == "m+brief"
    assert brief.backend.group == "m"
    decide = LeastEnergy().choose
    assert decide(request(), [full, brief], Limits()).chosen == "m+brief"
    assert decide(request(), [full, brief], Limits(min_quality=0.79)).chosen == "m"


def test_only_what_the_output_causes_gets_smaller() -> None:
    estimate = candidate("m", energy_j=10, latency_s=2.2, ttft_s=0.2, spread=0).estimate
    short = expected(estimate, BRIEF, prompt_tokens=0)
    assert short.energy_j is not None
    assert short.latency_s is not None
    assert abs(short.energy_j.mid - 5) < 1e-9
    assert abs(short.latency_s.mid - 1.2) < 1e-9
    assert short.ttft_s == estimate.ttft_s
    long = expected(estimate, BRIEF, prompt_tokens=10_000)
    assert long.energy_j is not None
    assert long.energy_j.mid > 9.8


def test_a_cap_on_tokens_cuts_the_long_tail() -> None:
    capped = expected(candidate("m").estimate, AnswerBudget(name="cap", max_tokens=120), 0)
    assert capped.output_tokens == Lengths(50, 100, 120, 120)


def test_without_an_expectation_nothing_is_assumed() -> None:
    estimate = candidate("m").estimate
    same = expected(estimate, AnswerBudget(name="low", reasoning_effort="low"), 100)
    assert same.energy_j == estimate.energy_j
    assert same.quality == estimate.quality


def test_the_request_is_changed_and_a_tighter_wish_of_the_caller_stays() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}
    budget = AnswerBudget(
        name="b", directive="Answer briefly.", max_tokens=200, reasoning_effort="low"
    )
    sent = applied(body, budget)
    assert sent["max_tokens"] == 50
    assert sent["reasoning_effort"] == "low"
    assert sent["messages"] == [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "hi"},
    ]
    assert body["messages"] == [{"role": "user", "content": "hi"}]
    assert applied({"messages": [], "reasoning_effort": "high"}, budget) == {
        "messages": [{"role": "system", "content": "Answer briefly."}],
        "reasoning_effort": "high",
        "max_completion_tokens": 200,
    }
