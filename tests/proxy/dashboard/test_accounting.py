from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meters.intensity import Tier
from meters.types import Evidence
from proxy.dashboard.accounting import (
    TIER_WEIGHT,
    Part,
    combine,
    forecast,
    grade,
    idle_spans,
    part_of,
    saving,
    scope_rows,
    split_by_tags,
)

amounts = st.integers(0, 10**15)
teams = st.dictionaries(st.sampled_from(["a", "b", "c", ""]), amounts, max_size=4)


def test_errors_of_different_backends_combine_in_quadrature() -> None:
    whole = combine([Part(70, 100, 130), Part(160, 200, 240)])
    assert (whole.mid_ug, whole.high_ug - 300, 300 - whole.low_ug) == (300, 50, 50)


def test_errors_inside_one_backend_do_not_shrink_with_count() -> None:
    one = combine([Part(70, 100, 130)])
    hundred = combine([Part(7000, 10_000, 13_000)])
    assert one.high_ug / one.mid_ug == hundred.high_ug / hundred.mid_ug


@given(st.lists(st.tuples(amounts, amounts, amounts), max_size=6), st.floats(0, 2))
def test_a_range_holds_its_middle_and_is_never_below_zero(
    parts: list[tuple[int, int, int]], relative: float
) -> None:
    ordered = [Part(*sorted(map(float, p))) for p in parts]
    whole = combine(ordered, [(sum(p.mid_ug for p in ordered), relative)])
    assert 0 <= whole.low_ug <= whole.mid_ug <= whole.high_ug


def test_a_needs_metered_and_hourly() -> None:
    metered = {Evidence.METERED: 100}
    assert grade(metered, {Tier.HOURLY: 100}, 10, 0) == "A"
    assert grade(metered, {Tier.CLIMATOLOGY: 100}, 10, 0) == "B"
    assert grade({Evidence.METERED: 79, Evidence.CALIBRATED: 21}, {Tier.HOURLY: 1}, 10, 0) == "B"
    assert grade({Evidence.MODELLED: 100}, {Tier.WORLD: 100}, 10, 0) == "E"
    assert grade({}, {}, 0, 0) == "E"


def test_every_step_down_the_ladder_weighs_less() -> None:
    weights = [TIER_WEIGHT[tier] for tier in Tier]
    assert weights == sorted(weights, reverse=True)
    assert len(set(weights)) == len(weights)


@given(st.sampled_from(list(Tier)), st.integers(0, 10))
def test_unknown_requests_never_raise_a_grade(tier: Tier, unknown: int) -> None:
    mix = {Evidence.METERED: 100}
    assert grade(mix, {tier: 100}, 10, unknown) >= grade(mix, {tier: 100}, 10, 0)


def allot(idle: int, *rule: Any, **more: Any) -> dict[str, int]:
    return {team: part_of(idle, span) for team, span in idle_spans(*rule, **more).items()}


@given(amounts, st.sampled_from([None, "a", "z"]), teams, st.booleans())
def test_idle_is_allotted_exactly(
    idle: int, owner: str | None, trailing: dict[str, int], lately: bool
) -> None:
    assert sum(allot(idle, owner, trailing, lately).values()) == idle


def test_idle_goes_to_owner_then_to_users_then_to_the_platform() -> None:
    used = {"a": 300, "b": 100}
    assert allot(100, "z", used, True) == {"z": 100}
    assert allot(100, None, used, True) == {"a": 75, "b": 25}
    assert allot(100, None, used, True, entitled=("b",)) == {"b": 100}
    assert allot(100, None, used, False) == {"": 100}
    assert allot(100, None, {}, True) == {"": 100}


@given(amounts, st.lists(st.text(min_size=1, max_size=4), max_size=9, unique=True))
def test_tags_split_exactly(amount: int, tags: list[str]) -> None:
    parts = split_by_tags(amount, tags)
    assert sum(part for _, part in parts) == amount
    assert max(p for _, p in parts) - min(p for _, p in parts) <= 1


def test_a_saving_is_claimed_only_when_its_range_excludes_zero() -> None:
    assert saving("route", 10, 100.0, 20.0, 1.0, 0.2).claimed
    assert not saving("route", 10, 100.0, 90.0, 1.0, 0.2).claimed
    assert not saving("route", 10, 80.0, 90.0, 1.0, 0.0).claimed


def test_a_saving_is_corrected_by_what_was_measured() -> None:
    assert saving("route", 1, 100.0, 20.0, 0.5, 0.1).mid_g == 40.0


def test_what_is_not_supplied_is_none_and_never_zero() -> None:
    rows = scope_rows(10, 5, None, None, None)
    assert [r.market_ug for r in rows] == [None] * 4
    assert rows[2].location_ug is None


def test_a_forecast_is_what_was_and_the_trailing_weeks_mean_for_what_is_left() -> None:
    found = forecast([100] * 10, 20.0)
    assert found is not None
    assert (found.low_ug, found.mid_ug, found.high_ug) == (3000, 3000, 3000)
    uneven = forecast([50, 150] * 5, 20.0)
    assert uneven is not None
    assert uneven.low_ug < uneven.mid_ug < uneven.high_ug
    assert uneven.low_ug >= 1000  # what was used cannot come back
    assert forecast([], 20.0) is None


def test_a_forecast_from_one_day_is_wide() -> None:
    found = forecast([100], 29.0)
    assert found is not None
    assert found.high_ug > 2 * found.mid_ug
    assert math.isclose(found.low_ug, 100)


@pytest.mark.parametrize("days_left", [0.0, 1.0, 30.0])
def test_a_forecast_narrows_to_nothing_as_the_period_ends(days_left: float) -> None:
    found = forecast([90, 110, 100], days_left)
    assert found is not None
    assert (found.high_ug == found.mid_ug) is (days_left == 0)
