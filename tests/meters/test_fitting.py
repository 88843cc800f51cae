"""Coefficients from a batch of windows: non-negative, robust, and no surer than they can be."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meters.fitting import non_negative

squares = st.lists(st.lists(st.floats(-3, 3), min_size=3, max_size=3), min_size=3, max_size=3)


@given(squares, st.lists(st.floats(-5, 5), min_size=3, max_size=3))
@settings(max_examples=100, deadline=None)
def test_no_other_choice_of_zeros_is_better(rows, wanted):
    matrix = np.array(rows)
    normal = matrix.T @ matrix + np.eye(3)
    right = np.array(wanted)

    def cost(x):
        return float(x @ normal @ x / 2 - right @ x)

    found = non_negative(normal, right)
    assert (found >= 0).all()
    for free in itertools.product([False, True], repeat=3):
        other = np.zeros(3)
        chosen = np.array(free)
        if chosen.any():
            other[chosen] = np.linalg.solve(normal[np.ix_(chosen, chosen)], right[chosen])
        if (other >= 0).all():
            assert cost(found) <= cost(other) + 1e-6


def test_a_direction_that_wants_to_be_negative_is_pinned_at_zero():
    assert non_negative(np.eye(2), np.array([1.0, -1.0])).tolist() == [1.0, pytest.approx(0.0)]
