"""A backend's own outcomes move its estimate: little at first, surely in the end."""

from __future__ import annotations

import math
import random

from estimators.correction import Correction


def test_one_outcome_moves_the_estimate_part_of_the_way() -> None:
    taught = Correction()
    taught.observe(16, 0.4)
    assert 0.2 < taught.at(16) < 0.4


def test_two_hundred_noisy_requests_find_offset_and_slope_within_five_percent() -> None:
    chance = random.Random(3)
    taught = Correction()
    for _ in range(200):
        batch = 2 ** chance.uniform(0, 8)
        truth = 0.35 - 0.1 * math.log(batch / 16)
        taught.observe(batch, truth + chance.gauss(0, 0.15))
    for batch in (1, 8, 64, 256):
        truth = 0.35 - 0.1 * math.log(batch / 16)
        assert abs(math.expm1(taught.at(batch) - truth)) < 0.05


def test_the_more_is_seen_the_surer_it_is() -> None:
    taught = Correction()
    spreads = [taught.spread(32)]
    for _ in range(20):
        taught.observe(32, 0.1)
        spreads.append(taught.spread(32))
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < 0.3 * spreads[0]


def test_an_engine_that_changed_is_followed() -> None:
    taught = Correction()
    for _ in range(3000):
        taught.observe(16, 0.5)
    for _ in range(8000):
        taught.observe(16, -0.2)
    assert taught.at(16) < -0.1


def test_faulty_readings_are_left_out() -> None:
    taught = Correction()
    for missed in (math.nan, math.inf, 5.0):
        taught.observe(16, missed)
    assert taught.outcomes == 0
    assert taught.at(16) == 0.0
