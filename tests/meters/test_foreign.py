"""Foreign traffic: found when it is there, and not made of jitter."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meters.foreign import Beyond, Foreign


def slack(n, band=100.0):
    return np.full(n, band)


@given(st.lists(st.floats(-24, 24), min_size=1, max_size=200))
@settings(max_examples=50)
def test_jitter_at_edges_is_never_called_foreign(edges):
    ours = np.full(len(edges), 1_000.0)
    # What one window is counted too much the next lacks.
    counted = ours + np.diff(np.array([0.0, *edges]))
    assert Beyond().beyond(counted, ours, slack(len(edges))).sum() == 0.0


def test_a_steady_tenth_is_found_from_its_first_window_on():
    random_ = random.Random(1)
    ours = np.full(60, 1_000.0)
    counted = ours + 100 + np.array([random_.gauss(0, 10) for _ in range(60)])
    found = Beyond().beyond(counted, ours, slack(60))
    assert found.sum() == pytest.approx(6_000, rel=0.02)
    assert found[:3].sum() > 200


def test_when_it_ends_it_is_no_longer_booked():
    ours = np.full(60, 1_000.0)
    counted = ours + np.where(np.arange(60) < 30, 300.0, 0.0)
    found = Beyond().beyond(counted, ours, slack(60))
    assert found[:30].sum() == pytest.approx(9_000)
    assert found[30:].sum() == 0.0


def test_what_nobody_counted_is_nobodys():
    assert Beyond().beyond(np.full(5, np.nan), np.full(5, 10.0), slack(5)).sum() == 0.0


def test_window_by_window_it_is_noticed_one_slack_late():
    follow = Beyond()
    found = [
        float(follow.beyond(np.array([1_300.0]), np.array([1_000.0]), slack(1, 500.0))[0])
        for _ in range(10)
    ]
    assert found[0] == 0.0
    assert sum(found) >= 10 * 300 - 600


def test_after_foreign_traffic_the_next_needs_no_proof():
    known = Foreign()
    known.note(300.0, 0.0, 100.0)
    ours, counted = np.full(5, 1_000.0), np.full(5, 1_050.0)
    soon, later = known.anew(110.0), known.anew(200.0)
    assert soon.tokens.beyond(counted, ours, slack(5, 500.0)).sum() == pytest.approx(250)
    assert later.tokens.beyond(counted, ours, slack(5, 500.0)).sum() == 0.0
    assert soon.prompts.beyond(counted, ours, slack(5, 500.0)).sum() == 0.0  # none were seen
