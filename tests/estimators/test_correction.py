"""A backend's own outcomes move its estimate: little at first, surely in the end."""

from __future__ import annotations

import math
import random

import pytest

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


@pytest.mark.parametrize("scatter", [0.03, 0.15, 0.5])
def test_it_knows_how_far_single_requests_fall_from_it(scatter: float) -> None:
    chance = random.Random(4)
    taught = Correction()
    held = []
    for _ in range(400):
        missed = 0.4 + chance.gauss(0, scatter)
        reach = 1.2816 * math.hypot(taught.spread(16), taught.scatter)
        held.append(abs(missed - taught.at(16)) <= reach)
        taught.observe(16, missed)
    assert 0.72 < sum(held[100:]) / 300 < 0.88


@pytest.mark.parametrize("factor", [0.3, 2.5])
def test_another_card_under_the_same_name_is_followed_at_once(factor: float) -> None:
    chance = random.Random(5)
    taught = Correction()
    for _ in range(3000):
        taught.observe(16, chance.gauss(0, 0.15))
    for _ in range(25):
        taught.observe(16, math.log(factor) + chance.gauss(0, 0.15))
    assert math.exp(taught.at(16)) == pytest.approx(factor, rel=0.2)


def test_what_scatters_evenly_is_not_taken_for_another_engine() -> None:
    chance = random.Random(6)
    taught = Correction()
    spreads = []
    for _ in range(5000):
        taught.observe(2 ** chance.uniform(0, 8), chance.gauss(0, 0.3))
        spreads.append(taught.spread(16))
    assert max(spreads[200:]) < 0.05


def test_a_backend_that_is_far_from_its_prior_is_learnt_all_the_same() -> None:
    taught = Correction()
    for _ in range(40):
        taught.observe(16, math.log(0.08))
    assert math.exp(taught.at(16)) == pytest.approx(0.08, rel=0.1)


def test_faulty_readings_are_left_out() -> None:
    taught = Correction()
    for missed in (math.nan, math.inf, 5.0):
        taught.observe(16, missed)
    assert taught.outcomes == 0
    assert taught.at(16) == 0.0
