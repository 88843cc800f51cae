from __future__ import annotations

import logging
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meters.intensity.book import IntensityBook
from meters.intensity.table import WORLD_G_PER_KWH, AnnualTable
from meters.intensity.types import HOUR_S, Observation, Tier

DAY_S = 24 * HOUR_S
NOON_S = 1_790_000_000 // DAY_S * DAY_S + 12 * HOUR_S
TABLE = AnnualTable(zones={"XX-1": 700.0})


def hour(at_s: int, g: float, zone: str = "DE", **more: object) -> Observation:
    return Observation(zone=zone, hour_s=at_s, g_per_kwh=g, source="file", **more)  # type: ignore[arg-type]


def four_weeks(until_s: int) -> list[Observation]:
    """g/kWh is 100 plus the UTC hour, on each of 28 days and until ``until_s``."""
    start_s = until_s - 28 * DAY_S
    return [hour(s, 100.0 + s // HOUR_S % 24) for s in range(start_s, until_s + 1, HOUR_S)]


def test_each_step_of_the_ladder_is_taken_in_turn_as_figures_grow_old() -> None:
    book = IntensityBook(TABLE)
    book.put(four_weeks(NOON_S))
    tiers = [book.at("DE", NOON_S + hours * HOUR_S).tier for hours in (0, 1, 2, 3, 6, 7, 72, 73)]
    assert tiers == [
        Tier.HOURLY,
        Tier.LIVE,
        Tier.LIVE,
        Tier.LAST_VALUE,
        Tier.LAST_VALUE,
        Tier.CLIMATOLOGY,
        Tier.CLIMATOLOGY,
        Tier.ANNUAL_ZONE,
    ]
    ranks = [tier.rank for tier in tiers]
    assert ranks == sorted(ranks)


def test_a_figure_carried_forward_says_so_and_names_its_own_hour() -> None:
    book = IntensityBook(TABLE)
    book.put([hour(NOON_S, 250.0)])
    answer = book.at("DE", NOON_S + 2 * HOUR_S + 59)
    assert (answer.g_per_kwh, answer.of_hour_s, answer.hour_s, answer.estimated) == (
        250.0,
        NOON_S,
        NOON_S + 2 * HOUR_S,
        True,
    )


def test_climatology_is_the_mean_of_that_hour_of_the_day() -> None:
    book = IntensityBook(TABLE)
    book.put(four_weeks(NOON_S))
    answer = book.at("DE", NOON_S + 10 * HOUR_S)
    assert (answer.tier, answer.g_per_kwh) == (Tier.CLIMATOLOGY, 122.0)


def test_climatology_is_of_28_days_and_of_no_day_before_them() -> None:
    book = IntensityBook(TABLE)
    book.put(four_weeks(NOON_S))
    asked_s = NOON_S + 10 * HOUR_S
    first_s = asked_s - asked_s % DAY_S - 28 * DAY_S
    early = [hour(s, 5000.0) for s in range(first_s - 3 * DAY_S, first_s, HOUR_S)]
    book.put(early)
    assert book.at("DE", asked_s).g_per_kwh == 122.0
    book.put([hour(first_s + 22 * HOUR_S, 122.0 + 28.0)])
    assert book.at("DE", asked_s).g_per_kwh == pytest.approx(123.0, abs=0.1)


def test_climatology_of_a_past_gap_does_not_look_into_its_future() -> None:
    book = IntensityBook(TABLE)
    book.put(four_weeks(NOON_S))
    before = book.at("DE", NOON_S + 10 * HOUR_S).g_per_kwh
    book.put([hour(s, 9000.0) for s in range(NOON_S + 4 * DAY_S, NOON_S + 9 * DAY_S, HOUR_S)])
    assert book.at("DE", NOON_S + 10 * HOUR_S).g_per_kwh == before


def test_without_enough_days_for_a_climate_the_annual_figure_is_used() -> None:
    book = IntensityBook(TABLE)
    book.put([hour(NOON_S, 250.0)])
    assert book.at("DE", NOON_S + 8 * HOUR_S).tier is Tier.ANNUAL_ZONE


@pytest.mark.parametrize(
    ("zone", "tier"),
    [
        ("XX-1", Tier.ANNUAL_ZONE),
        ("US-CAL-CISO", Tier.ANNUAL_ZONE),
        ("DE", Tier.ANNUAL_ZONE),
        ("SE-SE3", Tier.ANNUAL_COUNTRY),
        ("QQ", Tier.WORLD),
        (None, Tier.WORLD),
        ("gcp:europe-west9", Tier.ANNUAL_ZONE),
        ("aws:eu-north-1", Tier.ANNUAL_COUNTRY),
    ],
)
def test_annual_zone_then_country_then_world(zone: str | None, tier: Tier) -> None:
    assert IntensityBook(TABLE).at(zone, NOON_S).tier is tier


def test_no_zone_is_the_world_and_never_a_place() -> None:
    book = IntensityBook(TABLE)
    book.put(four_weeks(NOON_S))
    answer = book.at(None, NOON_S)
    assert (answer.zone, answer.g_per_kwh) == ("world", WORLD_G_PER_KWH)


def test_a_cloud_region_uses_the_hours_of_its_zone() -> None:
    book = IntensityBook(TABLE)
    book.put([hour(NOON_S, 321.0)])
    assert book.at("gcp:europe-west3", NOON_S).g_per_kwh == 321.0


def test_marginal_figures_never_reach_the_inventory() -> None:
    book = IntensityBook(TABLE)
    book.put([hour(NOON_S, 999.0, factor_type="marginal")])
    assert book.at("DE", NOON_S).g_per_kwh != 999.0
    marginal = book.marginal_at("DE", NOON_S)
    assert marginal is not None
    assert marginal.g_per_kwh == 999.0
    assert book.marginal_at("DE", NOON_S + 7 * HOUR_S) is None


def test_restatements_over_one_percent_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    book = IntensityBook(TABLE)
    book.put([hour(NOON_S, 200.0), hour(NOON_S + HOUR_S, 200.0)])
    version = book.version
    with caplog.at_level(logging.INFO, "joulegate.intensity"):
        restated = book.put([hour(NOON_S, 210.0), hour(NOON_S + HOUR_S, 201.0)])
    assert [(r.before_g_per_kwh, r.after_g_per_kwh) for r in restated] == [(200.0, 210.0)]
    assert "before=200.0 after=210.0" in caplog.text
    assert book.version != version  # the small change counts too
    assert book.at("DE", NOON_S).g_per_kwh == 210.0


def test_the_set_version_names_contents_not_the_way_they_came() -> None:
    one, other = IntensityBook(TABLE), IntensityBook(TABLE)
    figures = four_weeks(NOON_S)
    one.put(figures)
    for figure in reversed(figures):
        other.put([figure])
    assert one.version == other.version
    other.put([hour(NOON_S, 1.0)])
    assert one.version != other.version
    other.put([figures[-1]])
    assert one.version == other.version
    assert one.version != IntensityBook(AnnualTable(zones={"XX-1": 701.0})).version


@given(st.dictionaries(st.integers(0, 200), st.floats(0, 1500), max_size=40), st.integers(0, 300))
def test_always_answers_and_never_with_a_later_hour(found: dict[int, float], asked: int) -> None:
    book = IntensityBook(TABLE)
    book.put([hour(NOON_S + h * HOUR_S, g) for h, g in found.items()])
    answer = book.at("DE", NOON_S + asked * HOUR_S + 17.5)
    assert answer.g_per_kwh >= 0
    assert answer.of_hour_s is None or answer.of_hour_s <= answer.hour_s
    assert answer.tier is not Tier.HOURLY or asked in found


def test_tiers_are_ordered_from_best_to_worst() -> None:
    assert all(a.rank < b.rank for a, b in pairwise(Tier))
