"""How good estimates have been lately: error, bias, bands and drift, from outcomes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimators.lately import RECENT, Judgement, Lately, lately


def judged(number: int, said: float, took: float, **more: object) -> Judgement:
    values = {"backend": "a", "energy_j": said, "metered_j": took, "start_s": float(number)}
    return Judgement(**{**values, **more})  # type: ignore[arg-type]


def one_of(judgements: list[Judgement]) -> Lately:
    (found,) = lately(judgements)
    return found


def test_error_bias_and_total_are_those_of_a_known_miss() -> None:
    found = one_of([judged(1, 120.0, 100.0), judged(2, 90.0, 100.0)])
    assert found.requests == found.recent == 2
    assert found.error == pytest.approx(0.15)
    assert found.bias == pytest.approx((1.2 * 0.9) ** 0.5 - 1.0)
    assert found.total == pytest.approx(0.05)
    assert (found.from_s, found.to_s) == (1.0, 2.0)
    assert found.drift is None  # nothing before that to drift from
    assert not found.drifts


def test_the_band_holds_what_lies_in_it_and_is_unknown_without_one() -> None:
    inside = [judged(n, 100.0, 110.0, low_j=80.0, high_j=120.0) for n in range(4)]
    outside = [judged(9, 100.0, 130.0, low_j=80.0, high_j=120.0)]
    assert one_of(inside + outside).band_holds == pytest.approx(0.8)
    assert one_of([judged(1, 100.0, 110.0)]).band_holds is None


def test_a_change_of_the_engine_is_a_drift_and_scatter_is_none() -> None:
    rng = random.Random(7)
    steady = [judged(n, 100.0, 100.0 * rng.lognormvariate(0.0, 0.15)) for n in range(800)]
    assert not one_of(steady).drifts
    slower = [judged(900 + n, 100.0, 130.0 * rng.lognormvariate(0.0, 0.15)) for n in range(200)]
    found = one_of(steady + slower)
    assert found.recent == RECENT
    assert found.drifts
    assert found.drift == pytest.approx(1 / 1.3 - 1.0, abs=0.05)


def test_real_and_simulated_requests_are_judged_apart() -> None:
    found = lately([judged(1, 1.0, 1.0), judged(2, 3.0, 1.0, simulated=True)])
    assert [(one.simulated, one.requests) for one in found] == [(False, 1), (True, 1)]


def test_versions_are_named_in_the_order_they_came() -> None:
    some = [judged(n, 1.0, 1.0, version=version) for n, version in enumerate("aab")]
    assert one_of(some).versions == ("a", "b")


energies = st.floats(1e-6, 1e6)


@given(st.lists(st.tuples(energies, energies), min_size=1, max_size=50))
def test_figures_are_finite_and_within_their_ranges(pairs: list[tuple[float, float]]) -> None:
    found = one_of([judged(n, said, took) for n, (said, took) in enumerate(pairs)])
    assert found.error >= 0.0
    assert found.median >= 0.0
    assert found.bias >= -1.0
    assert found.total >= -1.0
    assert 1 <= found.recent <= found.requests == len(pairs)
