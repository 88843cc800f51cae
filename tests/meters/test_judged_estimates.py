"""Which requests of a ledger say how good its estimates were, and what they say."""

from __future__ import annotations

from typing import Any

import pytest

from meters.judged_estimates import JudgedEstimate, judged_estimates
from meters.ledger import Ledger
from meters.types import Attribution, UsageRecord
from tests.meters.books import NOON_S, attribution, record


def second(number: int, shares: dict[str, float], **fields: Any) -> Attribution:
    """The window of second ``number`` of the hour."""
    times = {"start_s": NOON_S + number, "end_s": NOON_S + number + 1.0}
    return attribution(number, shares, **{**times, **fields})


def judged(ledger: Ledger, **more: Any) -> list[JudgedEstimate]:
    with ledger.database.read() as connection:
        return judged_estimates(connection, NOON_S, NOON_S + 3600.0, **{"most": 100, **more})


@pytest.fixture
def write(ledger_url: str) -> Any:
    ledger = Ledger(ledger_url)

    def written(records: list[UsageRecord], windows: list[Attribution]) -> Ledger:
        ledger.write(records, windows, [])
        return ledger

    yield written
    ledger.close()


WHOLE = [second(10, {"req-1": 5.0}), second(11, {"req-1": 6.0})]


def test_an_estimate_stands_beside_the_sum_of_its_shares(write: Any) -> None:
    (found,) = judged(write([record(1)], WHOLE))
    assert (found.backend, found.simulated, found.version) == ("llama@bf16", False, "")
    assert (found.energy_j, found.low_j, found.high_j) == (12.5, 8.0, 20.0)
    assert found.metered_j == pytest.approx(11.0)


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({}, WHOLE[:1]),  # its last window is not in
        ({}, [WHOLE[0], second(12, {"req-1": 1.0})]),  # the meter was away for a second of two
        ({"energy_j": None}, WHOLE),  # nothing was said
        ({"attempts": 2}, WHOLE),  # what failed before has its part in the joules
        ({"cache": "hit"}, WHOLE),
        ({"outcome": "cancelled"}, WHOLE),
        ({"node": "elsewhere"}, WHOLE),
    ],
)
def test_what_cannot_be_compared_is_left_out(
    write: Any, fields: dict[str, Any], windows: list[Attribution]
) -> None:
    assert judged(write([record(1, **fields)], windows)) == []


def test_the_jitter_of_two_clocks_is_no_gap(write: Any) -> None:
    late = second(11, {"req-1": 6.0}, start_s=NOON_S + 11.04)
    assert len(judged(write([record(1)], [WHOLE[0], late]))) == 1


def test_only_the_latest_of_each_backend_count_and_teams_apart(write: Any) -> None:
    records = [
        record(n, start_s=NOON_S + n, sent_s=NOON_S + n, end_s=NOON_S + n + 0.5, backend=name)
        for n, name in enumerate("aaab")
    ]
    records.append(record("x", team="other", start_s=NOON_S, sent_s=NOON_S, end_s=NOON_S + 0.5))
    windows = [second(n, {f"req-{n}": 1.0, **({"req-x": 1.0} if n == 0 else {})}) for n in range(4)]
    ledger = write(records, windows)
    assert [
        (one.backend, one.start_s - NOON_S) for one in judged(ledger, most=2, team="search")
    ] == [
        ("a", 1.0),
        ("a", 2.0),
        ("b", 3.0),
    ]
    assert [one.backend for one in judged(ledger, team="other")] == ["llama@bf16"]
    assert [one.backend for one in judged(ledger, among=1)] == ["b"]
