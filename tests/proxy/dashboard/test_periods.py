from __future__ import annotations

from datetime import date

import pytest

from proxy.dashboard.periods import BadPeriod, parse


@pytest.mark.parametrize(
    ("text", "first", "last", "before"),
    [
        ("2026", date(2026, 1, 1), date(2026, 12, 31), "2025"),
        ("2026-10", date(2026, 10, 1), date(2026, 10, 31), "2026-09"),
        ("2024-02", date(2024, 2, 1), date(2024, 2, 29), "2024-01"),
        ("2026-01", date(2026, 1, 1), date(2026, 1, 31), "2025-12"),
        ("2026-10-07", date(2026, 10, 7), date(2026, 10, 7), "2026-10-06"),
        ("2026-10-01..2026-10-14", date(2026, 10, 1), date(2026, 10, 14), "2026-09-17..2026-09-30"),
    ],
)
def test_periods_are_read_and_know_the_one_before(
    text: str, first: date, last: date, before: str
) -> None:
    period = parse(text, "Europe/Berlin")
    assert (period.first, period.last, period.previous.name) == (first, last, before)
    assert period.previous.next.name == text


def test_october_in_berlin_has_an_hour_more_than_its_days() -> None:
    october = parse("2026-10", "Europe/Berlin")
    assert (october.end_s - october.start_s) // 3600 == 31 * 24 + 1


@pytest.mark.parametrize(
    "text",
    ["", "october", "2026-13", "2026-02-30", "2026-10-07..2026-10-01", "0001", "99999", "2026-1"],
)
def test_what_is_no_period_is_refused_with_how_to_write_one(text: str) -> None:
    with pytest.raises(BadPeriod):
        parse(text)


def test_an_unknown_time_zone_is_refused() -> None:
    with pytest.raises(BadPeriod, match="IANA"):
        parse("2026-10", "Berlin")
    with pytest.raises(BadPeriod, match="IANA"):
        parse("2026-10", "../../etc/passwd")


def test_a_running_period_is_compared_with_as_many_days() -> None:
    october = parse("2026-10", "UTC")
    assert october.compared(october.start_s + 3.5 * 86400).name == "2026-09-01..2026-09-04"
    assert october.compared(october.end_s).name == "2026-09"
    assert parse("2026-03", "UTC").compared(parse("2026-03-31").start_s).name == "2026-02"
