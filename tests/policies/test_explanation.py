"""A decision in sentences."""

from __future__ import annotations

import pytest

from policies.explanation import explained, refused
from policies.guarantee import Guarantee
from policies.language import read_policies
from policies.least_energy import LeastEnergy
from policies.presets import presets
from policies.types import Limits, NoBackendWithinLimits
from policies.weighted import Weighted
from tests.policies.candidates import candidate, request


def test_the_choice_comes_first_then_broken_limits_then_the_rest() -> None:
    fleet = [
        candidate("a", marginal_j=2, quality=0.7),
        candidate("b", marginal_j=5, quality=0.9),
        candidate("c", energy_j=90, quality=0.9),
        candidate("d", marginal_j=7, quality=0.6),
    ]
    decision = presets()["low-carbon"].choose(request(), fleet, Limits(max_energy_j=50))
    assert explained(LeastEnergy().choose(request(), fleet, Limits(max_energy_j=50))) == [
        "least_energy chose a: a would add 2 J, the least marginal energy of the 3 that fit.",
        "Not c: may take up to 99 J, over the limit of 50.",
        "Not b: would add 5 J; a would add 2 J.",
        "Not d: better in nothing than a and worse in marginal energy: 7 against 2 J.",
    ]
    assert explained(decision)[0].startswith("low-carbon (version preset-1) chose b: ")


def test_a_refusal_lists_every_reason() -> None:
    with pytest.raises(NoBackendWithinLimits) as error:
        LeastEnergy().choose(request(), [candidate()], Limits(min_quality=0.9))
    assert refused(error.value) == [
        "Nothing was chosen: no backend fits the limits.",
        "Not a: quality may be as low as 0.72, below the limit of 0.9.",
    ]


def test_scores_are_told_with_their_sign() -> None:
    fleet = [candidate("a", marginal_j=0.5), candidate("b", marginal_j=3)]
    weighted = Weighted({"energy": 1}).choose(request(), fleet, Limits())
    assert explained(weighted) == [
        "weighted chose a: a scores -0.693, the lowest weighted score of the 2 that fit.",
        "Not b: better in nothing than a and worse in marginal energy: 3 against 0.5 J.",
    ]
    owed = Guarantee(0.8).choose(
        request(quality_debt=5),
        [candidate("a"), candidate("b", quality=0.9, energy_j=20)],
        Limits(),
    )
    assert explained(owed) == [
        "guarantee chose a: a scores -4, the lowest score of energy and the quality still owed of "
        "the 2 that fit.",
        "Not b: scores -3.81; a scores -4.",
    ]


def test_a_figure_that_nobody_knows_is_no_infinity() -> None:
    fleet = [candidate("a", energy_j=None), candidate("b")]
    asked = request(session_backend="a", cached_prompt_tokens=50)
    decision = LeastEnergy(session="hold").choose(asked, fleet, Limits())
    assert decision.chosen == "a"
    assert "inf" not in " ".join(explained(decision))


def test_what_was_given_up_stands_before_why_another_was_taken_then() -> None:
    policies = read_policies({"p": {"limits": {"max_energy_j": 1}, "otherwise": "least_energy"}})
    fleet = [candidate("a", energy_j=50), candidate("b", energy_j=70, quality=0.9)]
    decision = policies.policies["p"].choose(request("auto"), fleet, Limits())
    assert explained(decision)[1] == (
        "Not b: may take up to 77 J, over the limit of 1; then would add 7 J; a would add 5 J."
    )
