"""Coefficients from a batch of windows: non-negative, robust, and no surer than they can be."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meters.fitting import Spans, non_negative, regress

squares = st.lists(st.lists(st.floats(-3, 3), min_size=3, max_size=3), min_size=3, max_size=3)


@given(squares, st.lists(st.floats(-5, 5), min_size=3, max_size=3))
@settings(max_examples=100)
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


def full_steps(seed, steps_a_window):
    """Windows of an engine full of prompts, and their energy; at each edge nobody saw how much of
    a step's prompts was computed before it."""
    random = np.random.default_rng(seed)
    n = 600
    steps = random.integers(steps_a_window - 1, steps_a_window + 2, n).astype(float)
    tokens, prompts = steps * random.uniform(20, 40, n), steps * random.uniform(3_000, 5_000, n)
    work = np.stack([steps, tokens, prompts], axis=1)
    cut = np.diff(4_000 * random.uniform(-0.5, 0.5, n + 1))
    seen = work + np.stack([0 * cut, 0 * cut, cut], axis=1)
    when = Spans(np.arange(n) * 1.0, np.arange(n) + 1.0, steps)
    return seen, work @ FULL, when


FULL = np.array([20.0, 0.3, 0.1])


@pytest.mark.parametrize("steps_a_window", [3, 8, 60])
def test_what_is_cut_at_edges_is_no_effect_of_anything(steps_a_window):
    found = [
        regress(seen, joules, FULL, np.full(3, 0.4), when).relative
        for seen, joules, when in (full_steps(seed, steps_a_window) for seed in range(4))
    ]
    assert np.mean(found, axis=0) == pytest.approx([1, 1, 1], abs=0.5)
    assert np.mean(found, axis=0)[2] == pytest.approx(1, abs=0.03)


def test_windows_with_many_steps_are_looked_at_one_by_one():
    seen, joules, when = full_steps(1, 60)
    whole = regress(seen, joules, FULL, np.full(3, 0.4), when)
    one_off = joules.copy()
    one_off[300] *= 3  # an outlier counts less, whoever is beside it
    assert regress(seen, one_off, FULL, np.full(3, 0.4), when).relative == pytest.approx(
        whole.relative, rel=0.1
    )


def test_an_outlier_counts_less_among_a_few_windows_too():
    seen, joules, when = full_steps(2, 60)
    seen, joules, when = seen[:30], joules[:30], Spans(*(each[:30] for each in when))
    whole = regress(seen, joules, FULL, np.full(3, 0.4), when)
    one_off = joules.copy()
    one_off[20] *= 1.5
    found = regress(seen, one_off, FULL, np.full(3, 0.4), when)
    assert found.relative == pytest.approx(whole.relative, abs=0.3)
