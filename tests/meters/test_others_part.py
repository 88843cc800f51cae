"""What of a window is ours where others were at work too: the energy's own word."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meters.others_part import NOTHING_SEEN, split
from meters.shared import Bill

N = 60
MIDDLES = np.arange(N) + 0.5


def bill(ours: np.ndarray, external: np.ndarray, doubt: float = 0.2, lasting: float = 0.2) -> Bill:
    at = np.arange(len(ours))
    return Bill(
        at, np.zeros(len(ours), dtype=int), ours, external, doubt * external, lasting * external
    )


def test_what_is_metered_beyond_the_model_is_others_where_others_are() -> None:
    ours, external = np.full(N, 300.0), np.where(np.arange(N) % 20 < 10, 100.0, 0.0)
    truly = 1.5 * external  # their contexts are far longer than ours
    found = split(bill(ours, external), ours + truly, MIDDLES).bill
    above = ours + truly
    us = above * ours / (ours + found.external)
    assert us == pytest.approx(ours, rel=0.03)
    assert found.external.sum() == pytest.approx(truly.sum(), rel=0.05)


def test_a_model_that_is_off_as_a_whole_is_off_for_both() -> None:
    ours, external = np.full(N, 300.0), np.where(np.arange(N) < 30, 0.0, 100.0)
    found = split(bill(ours, external), 1.2 * (ours + external), MIDDLES).bill
    part = ours / (ours + found.external)
    assert part[30:] == pytest.approx(0.75, abs=0.01)


def test_without_others_nothing_changes() -> None:
    ours = np.full(N, 300.0)
    alone = bill(ours, np.zeros(N))
    assert split(alone, 1.1 * ours, MIDDLES).bill is alone


def test_one_window_at_a_time_the_level_is_remembered() -> None:
    random_ = random.Random(3)
    ours = np.array([random_.uniform(200, 400) for _ in range(N)])
    external = np.where(np.arange(N) < 30, 0.0, 100.0)
    above = 0.9 * (ours + 1.5 * external)
    level, us = NOTHING_SEEN, []
    for i in range(N):
        one = split(
            bill(ours[i : i + 1], external[i : i + 1]), above[i : i + 1], MIDDLES[i : i + 1], level
        )
        level = one.levels[0]
        us.append(float(above[i] * ours[i] / (ours[i] + one.bill.external[0])))
    assert np.array(us[40:]) == pytest.approx(0.9 * ours[40:], rel=0.03)
    assert level.times == pytest.approx(0.9, rel=0.02)


amounts = st.lists(st.floats(0, 1e4), min_size=4, max_size=30)


@given(amounts, amounts, amounts)
@settings(max_examples=200)
def test_whatever_is_metered_parts_are_finite_and_not_negative(
    ours: list[float], external: list[float], above: list[float]
) -> None:
    n = min(len(ours), len(external), len(above))
    cut = [np.array(values[:n]) for values in (ours, external, above)]
    with np.errstate(all="ignore"):
        found = split(bill(cut[0], cut[1]), cut[2] - 5.0, MIDDLES[:n])
    assert np.isfinite(found.bill.external).all()
    assert (found.bill.external >= 0).all()
    assert all(level.times_var > 0 for level in found.levels)
