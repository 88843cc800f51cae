from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meters.exact import apportion, from_micro, micro, nano

JOULES = st.floats(0, 1e7, allow_nan=False)


@given(st.lists(JOULES, min_size=1, max_size=200))
def test_parts_add_up_to_the_total_exactly_and_none_is_far_from_its_own(parts: list[float]) -> None:
    micro_parts = [part * 1e6 for part in parts]
    total = round(math.fsum(micro_parts))
    whole = apportion(total, micro_parts)
    assert sum(whole) == total
    assert all(abs(w - p) <= 1 + 1e-9 * p for w, p in zip(whole, micro_parts, strict=True))
    assert all(w >= 0 for w in whole)


@given(st.lists(JOULES, min_size=1, max_size=50))
def test_a_part_of_nothing_stays_nothing(parts: list[float]) -> None:
    micro_parts = [part * 1e6 for part in [*parts, 0.0]]
    assert apportion(round(math.fsum(micro_parts)), micro_parts)[-1] == 0


def test_what_rounding_loses_goes_to_those_that_lost_most() -> None:
    assert apportion(10, [3.4, 3.3, 3.3]) == [4, 3, 3]
    assert apportion(10, [3.2, 3.4, 3.4]) == [3, 4, 3]


def test_parts_that_miss_the_total_by_more_than_rounding_are_refused() -> None:
    with pytest.raises(ValueError, match="miss the total"):
        apportion(100, [10.0, 20.0])
    with pytest.raises(ValueError, match="negative"):
        apportion(10, [-1.0, 11.0])


def test_unknown_stays_unknown_and_zero_stays_zero() -> None:
    assert micro(None) is None
    assert from_micro(None) is None
    assert micro(0.0) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_a_figure_that_no_ledger_can_hold_is_refused(value: float) -> None:
    with pytest.raises((ValueError, OverflowError)):
        micro(value)


@given(st.floats(0, 1e5, allow_nan=False))
def test_a_price_comes_back_to_the_billionth(usd: float) -> None:
    whole = nano(usd)
    assert whole is not None
    assert abs(whole / 1e9 - usd) <= 5.1e-10
