from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.budgets import (
    MOST,
    Amounts,
    Charge,
    Per,
    Period,
    Rule,
    Spent,
    charges,
    exceeded,
    left,
    period,
    refusal,
    rules,
    warning,
    warnings,
    whole,
)
from proxy.settings import Budget
from proxy.store import AdmitRequest
from proxy.store_local import LocalStore

NOW_S = datetime(2026, 11, 21, 12, 30, 15, tzinfo=UTC).timestamp()
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"]


def at(zone: str, *when: int) -> float:
    return datetime(*when, tzinfo=ZoneInfo(zone)).timestamp()  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", (2026, 3, 29), 23),
        ("Europe/Berlin", (2026, 10, 25), 25),
        ("Europe/Berlin", (2026, 11, 21), 24),
        ("Australia/Lord_Howe", (2026, 10, 4), 23.5),
        ("Africa/Cairo", (2026, 4, 24), 23),  # clocks jump over midnight itself
    ],
)
def test_a_day_is_as_long_as_the_clocks_make_it(
    zone: str, day: tuple[int, int, int], hours: float
) -> None:
    found = period("day", at(zone, *day, 12), zone)
    assert found.end_s - found.start_s == hours * 3600
    assert found.name == "{}-{:02}-{:02}".format(*day)


def test_a_month_begins_at_the_time_zones_midnight() -> None:
    assert period("month", NOW_S, "Europe/Berlin") == Period(
        at("Europe/Berlin", 2026, 11, 1), at("Europe/Berlin", 2026, 12, 1), "2026-11"
    )
    december = period("month", at("Asia/Kolkata", 2026, 12, 31, 23, 59), "Asia/Kolkata")
    assert december.end_s == at("Asia/Kolkata", 2027, 1, 1)


@given(st.floats(1.0e9, 2.5e9), st.sampled_from(ZONES), st.sampled_from(["minute", "day", "month"]))
def test_every_moment_lies_in_its_period_and_periods_touch(
    now_s: float, zone: str, per: Per
) -> None:
    found = period(per, now_s, zone)
    assert found.start_s <= now_s < found.end_s
    assert period(per, found.end_s, zone).start_s == found.end_s
    assert period(per, found.start_s, zone) == found


def test_a_budget_is_a_rule_for_each_of_its_limits() -> None:
    found = rules(
        "team:search",
        [Budget(per="month", energy_j=5e6, money_usd=10.0), Budget(per="minute", requests=60)],
        "Europe/Berlin",
    )
    assert [(r.metric, r.per, r.limit) for r in found] == [
        ("energy_j", "month", 5e6),
        ("money_usd", "month", 10.0),
        ("requests", "minute", 60.0),
    ]


def test_charges_are_whole_numbers_and_name_their_period() -> None:
    rule = Rule(scope="key:a", metric="energy_j", per="day", limit=2.5, timezone="Asia/Kolkata")
    (charge,) = charges([rule], Amounts(energy_j=0.1234567), NOW_S)
    assert (charge.limit, charge.amount) == (2_500_000, 123_457)
    assert charge.counter == "key:a:energy_j:day:2026-11-21"


async def test_two_limits_on_the_same_thing_are_counted_each_on_its_own() -> None:
    both = [
        Budget(per="month", carbon_g=2.0, fallback_policy="least_energy"),
        Budget(per="month", carbon_g=4.0),
    ]
    store = LocalStore()
    said = []
    for number in range(6):
        taken = charges(rules("team:search", both), Amounts(carbon_g=1.0), NOW_S)
        request = AdmitRequest(request_id=f"r{number}", holder="search", charges=taken)
        admission = await store.admit(request)
        said.append((admission.allowed, admission.fallback_policy))
    thrifty = (True, "least_energy")
    assert said == [(True, None), (True, None), thrifty, thrifty, (False, None), (False, None)]


@pytest.mark.parametrize("amount", [None, float("nan"), float("inf"), -3.0])
def test_what_is_not_known_reserves_nothing(amount: float | None) -> None:
    assert whole("energy_j", amount) == 0


@pytest.mark.parametrize("limit", [1e13, 1e305])
def test_a_limit_beyond_all_use_is_one_a_counter_holds(limit: float) -> None:
    rule = Rule(scope="team:search", metric="energy_j", per="month", limit=limit)
    (charge,) = charges([rule], Amounts(energy_j=5.0), NOW_S)
    assert (charge.limit, charge.amount) == (MOST, 5_000_000)
    assert exceeded([Spent(charge, charge.amount)]) is None


def spent(used: float, limit: float = 10.0, **fields: object) -> Spent:
    rule = Rule(scope="team:search", metric="energy_j", per="month", limit=limit, **fields)  # type: ignore[arg-type]
    (charge,) = charges([rule], Amounts(energy_j=1.0), NOW_S)
    return Spent(charge, whole("energy_j", used))


def test_the_tightest_budget_counts() -> None:
    all_of_it = [spent(9.0), spent(2.0), spent(8.5)]
    assert left(all_of_it) == pytest.approx(0.1)
    assert warnings(all_of_it) == [spent(9.0), spent(8.5)]
    assert exceeded(all_of_it) is None
    assert exceeded([spent(9.0), spent(11.0), spent(12.0)]) == spent(12.0)
    assert left([]) is None


def test_a_refusal_says_what_was_used_up_and_when_it_resets() -> None:
    error = refusal(spent(9.5, timezone="Europe/Berlin"), NOW_S)
    assert (error.status, error.code) == (429, "budget_exceeded")
    assert "team 'search' has used 9.5 of its 10 J of this month" in error.message
    assert "2026-12-01T00:00:00+01:00" in error.message
    assert error.retry_after_s == at("Europe/Berlin", 2026, 12, 1) - NOW_S
    assert error.details is not None
    assert error.details["used"] == 9.5


def test_a_full_minute_is_a_rate_limit() -> None:
    rule = Rule(scope="key:a", metric="requests", per="minute", limit=3)
    (charge,) = charges([rule], Amounts(), NOW_S)
    error = refusal(Spent(charge, 3), NOW_S)
    assert error.code == "rate_limit_exceeded"
    assert error.retry_after_s == 45


def test_a_warning_fits_a_header() -> None:
    assert warning(spent(8.3)) == "team:search energy_j per month 83% of 10"


def test_a_limit_of_nothing_is_full() -> None:
    rule = Rule(scope="t", metric="requests", per="day", limit=0)
    assert Spent(Charge(rule, "c", 0, 1, Period(0, 1, "")), 0).share == 1.0
