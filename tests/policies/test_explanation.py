"""A decision in sentences."""

from __future__ import annotations

import pytest

from policies.explanation import explained, refused
from policies.least_energy import LeastEnergy
from policies.presets import presets
from policies.types import Limits, NoBackendWithinLimits
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
