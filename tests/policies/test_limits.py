"""Hard limits: cautious, strict about the unknown, tightened but never loosened."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given

from policies.limits import fitting, tighten, within
from policies.types import Candidate, Limits, Request
from tests.policies.candidates import candidate, fleets, limits, request, requests


def names(candidates: list[Candidate]) -> list[str]:
    return [each.backend.name for each in candidates]


def codes(asked: Request, candidates: list[Candidate], within: Limits) -> dict[str, str]:
    return {r.backend: r.code for r in fitting(asked, candidates, within)[1]}


def test_an_upper_limit_is_held_against_the_high_end_of_the_band() -> None:
    sure, unsure = candidate("sure", spread=0.01), candidate("unsure", spread=0.5)
    fits, rejected = fitting(request(), [sure, unsure], Limits(max_energy_j=12))
    assert fits == [sure]
    assert rejected[0].code == "energy_over_limit"
    assert rejected[0].message == "may take up to 15 J, over the limit of 12"


def test_quality_is_held_against_the_low_end_of_the_band() -> None:
    unsure = candidate("unsure", quality=0.8, spread=0.2)
    assert codes(request(), [unsure], Limits(min_quality=0.7)) == {"unsure": "quality_below_limit"}
    assert codes(request(), [unsure], Limits(min_quality=0.7, cautious=False)) == {}


def test_what_is_just_at_a_limit_is_within_it() -> None:
    at = candidate(quality=0.5, energy_j=8, spread=0.0, context_tokens=4096)
    for limit in (
        Limits(min_quality=0.5),
        Limits(max_energy_j=8),
        Limits(min_context_tokens=4096),
    ):
        assert codes(request(), [at], limit) == {}
    assert codes(request(), [at], Limits(min_context_tokens=4097)) != {}


@pytest.mark.parametrize(
    ("limit", "figure"),
    [
        (Limits(max_energy_j=1e9), "energy_j"),
        (Limits(max_carbon_g=1e9), "carbon_g"),
        (Limits(max_money_usd=1e9), "money_usd"),
        (Limits(max_ttft_s=1e9), "ttft_s"),
        (Limits(max_latency_s=1e9), "latency_s"),
        (Limits(min_quality=0.0), "quality"),
        (Limits(min_relative_quality=0.1), "quality"),
    ],
)
def test_a_limit_on_an_unknown_figure_is_not_satisfied(limit: Limits, figure: str) -> None:
    unknown, known = candidate("unknown", **{figure: None}), candidate("known")
    [(backend, code)] = codes(request(), [unknown, known], limit).items()
    assert backend == "unknown"
    assert code.endswith("_unknown")


def test_an_unknown_figure_does_no_harm_where_there_is_no_limit_on_it() -> None:
    unknown = candidate(energy_j=None, marginal_j=None, quality=None, carbon_g=None)
    assert fitting(request(), [unknown], Limits(max_ttft_s=1)) == ([unknown], [])


def test_relative_quality_is_a_share_of_the_asked_for_models_best_variant() -> None:
    fleet = [
        candidate("big@bf16", quality=0.8, spread=0),
        candidate("big@int4", quality=0.75, spread=0),
        candidate("small", quality=0.78, spread=0),
    ]
    assert codes(request("big"), fleet, Limits(min_relative_quality=0.97)) == {
        "big@int4": "quality_below_limit"
    }
    against_small = Limits(min_relative_quality=1.0, relative_to="small")
    assert set(codes(request("big"), fleet, against_small)) == {"big@int4"}


def test_the_model_that_counts_as_all_is_not_rejected_for_being_little_known() -> None:
    fleet = [candidate("big", quality=0.8, spread=0.3), candidate("other", quality=0.7)]
    assert set(codes(request("big"), fleet, Limits(min_relative_quality=1.0))) == {"other"}


def test_relative_quality_without_any_reference_is_not_satisfied() -> None:
    [(_, code)] = codes(request("gone"), [candidate()], Limits(min_relative_quality=0.5)).items()
    assert code == "quality_unknown"
    remembered = request("gone", reference_quality=0.8)
    assert codes(remembered, [candidate()], Limits(min_relative_quality=0.5)) == {}


def test_what_a_request_needs_is_a_limit_too() -> None:
    fleet = [
        candidate("plain", supports_tools=False, supports_schema=False, context_tokens=1000),
        candidate("able", supports_images=True),
    ]
    for asked, code in (
        (request(has_tools=True), "no_tools"),
        (request(has_schema=True), "no_schema"),
        (request(has_images=True), "no_images"),
        (request(prompt_tokens=900, max_tokens=200), "context_too_long"),
        (request(prompt_tokens=1000), "context_too_long"),
    ):
        assert codes(asked, fleet, Limits()) == {"plain": code}
    assert codes(request(prompt_tokens=800, max_tokens=200), fleet, Limits()) == {}
    assert set(codes(request(), fleet, Limits(min_context_tokens=2000))) == {"plain", "able"}


def test_data_goes_only_where_it_may() -> None:
    fleet = [
        candidate("eu", region="eu"),
        candidate("us", region="us", provider="openai"),
        candidate("somewhere"),
    ]
    assert set(codes(request(), fleet, Limits(regions=("eu",)))) == {"us", "somewhere"}
    assert set(codes(request(), fleet, Limits(providers=("local",)))) == {"us"}
    assert set(codes(request(), fleet, Limits(backends=("us",)))) == {"eu", "somewhere"}
    assert set(codes(request(), fleet, Limits(backends=()))) == {"eu", "us", "somewhere"}


def test_a_figure_that_is_no_number_fits_no_limit() -> None:
    broken = candidate(energy_j=float("nan"))
    assert codes(request(), [broken], Limits(max_energy_j=5)) == {"a": "energy_over_limit"}


@given(requests, fleets(), limits, limits)
def test_a_caller_can_only_tighten(
    asked: Request, fleet: list[Candidate], team: Limits, caller: Limits
) -> None:
    both = {c.backend.name for c in fitting(asked, fleet, tighten(team, caller))[0]}
    assert both <= {c.backend.name for c in fitting(asked, fleet, team)[0]}
    assert tighten(team, Limits()) == team
    assert tighten(team, team) == team


def test_a_policy_may_hold_the_middle_against_limits_and_a_caller_may_not() -> None:
    expected, asked = Limits(cautious=False), Limits(max_energy_j=5)
    assert within(asked, expected).cautious is False
    assert tighten(asked, expected).cautious is None
    assert within(msgspec.structs.replace(asked, cautious=True), expected).cautious is True
    assert tighten(expected, Limits(cautious=True)).cautious is True
    assert tighten(expected, asked).cautious is False


def test_a_caller_cannot_swap_the_reference_for_a_weaker_one() -> None:
    team = Limits(min_relative_quality=0.97)
    assert tighten(team, Limits(relative_to="tiny")).relative_to is None
    assert tighten(Limits(), Limits(relative_to="big", min_relative_quality=1)).relative_to == "big"


def test_allow_lists_meet_on_the_narrower_name() -> None:
    group, variant = Limits(backends=("llama", "qwen")), Limits(backends=("llama@int4", "phi"))
    fleet = [candidate(name) for name in ("llama@int4", "llama@fp8", "qwen@fp8", "phi@fp8")]
    for both in (tighten(group, variant), tighten(variant, group)):
        assert names(fitting(request(), fleet, both)[0]) == ["llama@int4"]


def test_a_variant_with_a_name_of_its_own_is_within_a_list_of_models() -> None:
    """What is meant by a list only the backends know, whatever they are called."""
    fleet = [candidate("box", group="llama"), candidate("llama@x", group="qwen")]
    both = tighten(Limits(backends=("llama",)), Limits(backends=("box", "llama@x")))
    assert names(fitting(request(), fleet, both)[0]) == ["box"]
    again = tighten(both, Limits(backends=("box",)))
    assert (again.backends, again.backends_too) == (("llama",), (("box",),))
    assert tighten(Limits(backends=("a", "b")), Limits(backends=("b",))).backends == ("b",)
