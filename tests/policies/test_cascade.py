"""Cascades: only where both together are expected to use less; and what fails an answer."""

from __future__ import annotations

import pytest

from policies.cascade import Cascade, faults, misfit, plan
from policies.configured import Configured
from policies.least_energy import LeastEnergy
from policies.types import Limits
from tests.policies.candidates import candidate, request

SMALL = candidate("small", energy_j=20, marginal_j=2, quality=0.6)
LARGE = candidate("large", energy_j=100, marginal_j=10, quality=0.9)
GOOD = Configured("good", LeastEnergy(), Limits(min_quality=0.8))


def test_the_plan_is_used_only_when_its_expected_energy_is_lower() -> None:
    assert plan(SMALL, LARGE, 0.5).expected_energy_j == 7
    assert plan(SMALL, LARGE, 0.5).worthwhile
    assert not plan(SMALL, LARGE, 0.2).worthwhile
    assert not plan(SMALL, LARGE, 0.5, check_j=4).worthwhile
    unknown = candidate("x", energy_j=None, marginal_j=None)
    assert not plan(SMALL, unknown, 1.0).worthwhile


def test_the_thrifty_one_answers_first_and_the_good_one_stands_by() -> None:
    decision = Cascade(GOOD, 0.7).choose(request(), [SMALL, LARGE], Limits())
    assert decision.order == ("small", "large")
    assert decision.escalate_to == "large"
    assert decision.reason == (
        "small answers first and large when that fails the checks: 5 J expected, 10 J directly"
    )
    assert [(r.backend, r.code) for r in decision.rejections] == [("large", "asked_second")]
    direct = Cascade(GOOD, 0.1).choose(request(), [SMALL, LARGE], Limits())
    assert direct.chosen == "large"
    assert direct.escalate_to is None


def test_a_stream_waits_only_where_the_policy_allows_it() -> None:
    streamed = request(stream=True)
    assert Cascade(GOOD, 0.7).choose(streamed, [SMALL, LARGE], Limits()).chosen == "large"
    waits = Cascade(GOOD, 0.7, streams_wait=True)
    assert waits.choose(streamed, [SMALL, LARGE], Limits()).chosen == "small"


def test_both_answers_together_stay_within_the_limits() -> None:
    within = Limits(max_energy_j=125)  # the large one alone fits, both do not
    assert Cascade(GOOD, 0.9).choose(request(), [SMALL, LARGE], within).chosen == "large"
    late = Limits(max_ttft_s=1.0)  # the second's first token comes after the first's whole answer
    assert Cascade(GOOD, 0.9).choose(request(), [SMALL, LARGE], late).chosen == "large"


def test_both_answers_together_stay_within_the_policys_own_limits() -> None:
    own = Limits(max_energy_j=115)  # each alone fits
    good = Configured("good", LeastEnergy(), Limits(min_quality=0.8, max_energy_j=115))
    assert Cascade(good, 0.9, within=own).choose(request(), [SMALL, LARGE], Limits()).chosen == (
        "large"
    )
    middle = Limits(max_energy_j=125, cautious=False)  # 20 J and 100 J in the middle
    assert Cascade(GOOD, 0.9, within=middle).choose(request(), [SMALL, LARGE], Limits()).chosen == (
        "small"
    )


def test_the_callers_floor_on_quality_holds_for_the_first_answer_too() -> None:
    decision = Cascade(GOOD, 0.9).choose(request(), [SMALL, LARGE], Limits(min_quality=0.7))
    assert decision.chosen == "large"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Paris is the capital.", []),
        ("", ["shorter than 1 characters"]),
        ("I'm sorry, but I can't help with that.", ["a refusal"]),
        ("I’m not able to do that", ["a refusal"]),
        ("You asked whether I can help. I cannot say.", []),
    ],
)
def test_plain_answers_are_judged(text: str, found: list[str]) -> None:
    assert faults(text) == found


def test_answers_that_were_cut_off_or_unsure_or_unfit_fail() -> None:
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
    assert faults("x", finish_reason="length") == ["cut off at the token limit"]
    assert faults("x", mean_logprob=-2, least_mean_logprob=-1) == [
        "unsure: mean log-probability -2.00"
    ]
    assert faults("x", mean_logprob=None, least_mean_logprob=-1) == []
    assert faults("nope", schema=schema) == ["not JSON"]
    assert faults('{"n": 3}', schema=schema) == []
    assert faults('{"n": "3"}', schema=schema) == ["does not fit the schema: $.n is not integer"]
    assert faults("{}", schema=schema) == ["does not fit the schema: $.n is missing"]


def test_schemas_are_checked_as_far_as_structured_output_uses_them() -> None:
    assert misfit(True, {"type": "integer"}) == "$ is not integer"
    assert misfit(2.0, {"type": "integer"}) is None
    assert misfit([1, "a"], {"type": "array", "items": {"type": "number"}}) == "$[1] is not number"
    assert misfit({"a": 1}, {"additionalProperties": False}) == "$.a is not allowed"
    assert misfit("c", {"enum": ["a", "b"]}) == "$ is none of the allowed values"
    assert misfit(1, {"const": 2}) == "$ is not the required value"
    assert misfit(None, {"anyOf": [{"type": "string"}, {"type": "null"}]}) is None
    assert misfit(1, {"anyOf": [{"type": "string"}]}) == "$ fits none of the alternatives"
    assert misfit(None, {"type": ["string", "null"]}) is None
