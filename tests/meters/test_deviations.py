"""The traces that drift, noise and edges leave in windows, and what knowing them is worth."""

import numpy as np
import pytest

from meters.deviations import Deviations

N = 600


def made(seed, drift=0.0, noise=0.0, edge=0.0, step=0.1):
    """Relative deviations of windows of a second that have these causes."""
    random = np.random.default_rng(seed)
    slow = np.zeros(N)
    for i in range(1, N):
        slow[i] = slow[i - 1] * np.exp(-1 / 60) + random.normal(0, 1) * np.sqrt(1 - np.exp(-1 / 30))
    edges = np.diff(random.normal(0, edge * step, N + 1))
    return drift * slow + random.normal(0, noise or 1e-9, N) + edges


def over(step=0.1):
    starts = np.arange(float(N))
    return Deviations(starts, starts + 1, np.full(N, step))


def test_each_cause_is_told_by_its_trace():
    only = over()
    only.fit(made(1, drift=0.02, noise=0.005))
    assert only.sizes.drift > 0.01 > only.sizes.noise
    assert only.sizes.edge < 0.05
    edges = over()
    edges.fit(made(2, noise=0.005, edge=0.4))
    assert edges.sizes.edge == pytest.approx(0.4, rel=0.3)
    assert edges.sizes.drift < 0.006


def test_whitened_deviations_are_independent_and_of_size_one():
    off = made(3, drift=0.02, noise=0.01, edge=0.3)
    deviations = over()
    deviations.fit(off)
    _, white = deviations.whitened(np.zeros((N, 1)), off)
    assert white.std() == pytest.approx(1.0, abs=0.15)
    assert abs(np.corrcoef(white[1:], white[:-1])[0, 1]) < 0.15
    assert abs(np.corrcoef(off[1:], off[:-1])[0, 1]) > 0.15


def test_knowing_the_traces_finds_an_effect_several_times_as_well():
    """A column that wanders, as contexts do, beside drift that wanders more slowly."""
    wrong = {"plain": [], "whitened": []}
    for seed in range(20):
        column = 1 + 10 * made(100 + seed, drift=0.02)
        off = made(seed, drift=0.03, noise=0.004, edge=0.05)
        goal = column + off
        plain = np.linalg.lstsq(np.stack([column, np.ones(N)], 1), goal, rcond=None)[0][0]
        deviations = over()
        deviations.fit(off)
        rows, aim = deviations.whitened(np.stack([column, np.ones(N)], 1), goal)
        whitened = np.linalg.lstsq(rows, aim, rcond=None)[0][0]
        wrong["plain"].append(plain - 1)
        wrong["whitened"].append(whitened - 1)
    assert np.std(wrong["whitened"]) < 0.7 * np.std(wrong["plain"])


def test_a_window_far_off_counts_less():
    off = made(5, noise=0.01)
    off[100] = 0.5
    deviations = over()
    deviations.fit(off)
    deviations.doubt(off, 3.0)
    assert deviations.extra[100] > 0
    assert (np.delete(deviations.extra, 100) == 0).mean() > 0.97


def test_a_gap_between_windows_parts_their_edges():
    starts = np.array([0.0, 1.0, 5.0])
    deviations = Deviations(starts, starts + 1, np.full(3, 0.5))
    covariance = deviations.covariance(deviations.sizes._replace(drift=0.0))[0]
    assert covariance[0, 1] < 0
    assert covariance[1, 2] == 0
