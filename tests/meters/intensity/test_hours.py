from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meters.intensity.hours import day_start_s, hours_between, iso, parse_hour


def hours_of_day(day: date, tz: str) -> list[int]:
    return hours_between(day_start_s(day, tz), day_start_s(day + timedelta(days=1), tz))


@pytest.mark.parametrize(
    ("day", "hours"),
    [(date(2026, 3, 29), 23), (date(2026, 10, 25), 25), (date(2026, 6, 1), 24)],
)
def test_days_when_clocks_change_have_23_and_25_hours(day: date, hours: int) -> None:
    assert len(hours_of_day(day, "Europe/Berlin")) == hours


def test_the_hour_that_happens_twice_is_two_hours() -> None:
    hours = hours_of_day(date(2026, 10, 25), "Europe/Berlin")
    assert len(set(hours)) == 25
    assert [iso(h) for h in hours[2:4]] == ["2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z"]
    assert parse_hour("2026-10-25T02:00:00+02:00") == hours[2]
    assert parse_hour("2026-10-25T02:00:00+01:00") == hours[3]


def test_an_hour_without_offset_is_refused() -> None:
    with pytest.raises(ValueError, match="no UTC offset"):
        parse_hour("2026-10-25T02:00:00")


@given(
    st.dates(date(2000, 1, 1), date(2100, 1, 1)),
    st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata", "Australia/Lord_Howe", "Asia/Tokyo"]),
)
def test_consecutive_days_share_no_hour_and_leave_none_out(day: date, tz: str) -> None:
    following = date.fromordinal(day.toordinal() + 1)
    first, second = hours_of_day(day, tz), hours_of_day(following, tz)
    assert second[0] - first[-1] == 3600
    assert day_start_s(day, tz) <= first[0] < day_start_s(day, tz) + 3600
