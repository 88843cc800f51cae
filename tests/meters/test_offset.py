"""The offset between two clocks."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meters.offset import ClockOffset


def test_the_middle_of_a_round_trip_is_the_guess_and_half_of_it_the_error() -> None:
    offset = ClockOffset()
    assert (offset.offset_s, offset.error_s(0.0)) == (None, None)
    offset.add(100.0, 1100.05, 100.1)
    assert offset.offset_s == pytest.approx(1000.0)
    assert offset.error_s(100.1) == pytest.approx(0.05)


def test_the_shortest_round_trip_wins() -> None:
    offset = ClockOffset()
    offset.add(0.0, 50.9, 1.0)  # slow on the way back
    offset.add(2.0, 52.505, 2.01)
    assert offset.offset_s == pytest.approx(50.5)
    offset.add(3.0, 53.51, 4.0)  # slow again: not believed
    assert offset.offset_s == pytest.approx(50.5)


def test_the_error_grows_as_clocks_drift() -> None:
    offset = ClockOffset()
    offset.add(0.0, 0.0, 0.002)
    later = offset.error_s(1000.0)
    assert later == pytest.approx(0.001 + 0.05, rel=0.01)


def test_clocks_that_run_apart_are_noticed_and_their_error_told() -> None:
    offset = ClockOffset()
    for n in range(3):
        offset.add(60.0 * n, 61.0 * n + 0.001, 60.0 * n + 0.002)
    assert offset.drifts
    assert offset.offset_s == pytest.approx(2.0)
    # a minute ago it was one second less
    assert offset.error_s(120.002, 60.002) == pytest.approx(1.0, rel=0.01)
    offset.add(121.0, 123.001, 121.002)
    assert not offset.drifts
    assert offset.error_s(121.002, 60.0) == pytest.approx(0.001, rel=0.1)


def test_between_two_measurements_it_moved_steadily() -> None:
    """An hour in which the other could not be asked, while it lost 40 ppm."""
    offset = ClockOffset()
    assert offset.at(0.0) is None
    for n in range(5):
        offset.add(n / 100, n / 100 + 7.001, n / 100 + 0.002)
    for n in range(5):
        at_s = 3600.0 + n / 100
        offset.add(at_s, at_s * (1 - 40e-6) + 7.001, at_s + 0.002)
    assert offset.at(-60.0) == pytest.approx(7.0, abs=0.001)
    for at_s in (0.0, 900.0, 1800.0, 3599.0, 3601.0):
        assert offset.at(at_s) == pytest.approx(7.0 - 40e-6 * at_s, abs=0.001)


def test_a_clock_that_was_set_did_not_move_there_steadily() -> None:
    offset = ClockOffset()
    for n in range(4):
        offset.add(60.0 * n, 60.0 * n + 0.001, 60.0 * n + 0.002)
    offset.add(240.0, 3840.001, 240.002)
    assert offset.at(210.0) == offset.at(300.0) == pytest.approx(3600.0)


def test_noise_does_not_move_it_and_a_clock_that_was_set_does() -> None:
    rng, offset = random.Random(3), ClockOffset()
    seen = set()
    for n in range(200):
        way_there, way_back = rng.uniform(0.001, 0.01), rng.uniform(0.001, 0.01)
        offset.add(n, n + way_there + 7.0, n + way_there + way_back)
        seen.add(offset.offset_s)
    assert len(seen) < 10
    assert offset.offset_s == pytest.approx(7.0, abs=0.006)
    offset.add(300.0, 300.001 + 3607.0, 300.002)
    assert offset.offset_s == pytest.approx(3607.0, abs=0.006)


delays = st.floats(0.0, 2.0)


@given(st.floats(-1e6, 1e6), st.lists(st.tuples(delays, delays), min_size=1, max_size=40))
def test_the_truth_is_always_within_the_error(
    true_s: float, trips: list[tuple[float, float]]
) -> None:
    offset, now_s = ClockOffset(), 0.0
    for there_s, back_s in trips:
        offset.add(now_s, now_s + there_s + true_s, now_s + there_s + back_s)
        now_s += there_s + back_s + 1.0
        error_s = offset.error_s(now_s)
        assert offset.offset_s is not None
        assert error_s is not None
        assert abs(offset.offset_s - true_s) <= error_s + 1e-6
