"""The clock of steps: each request gets its tokens, each window its counted steps."""

import numpy as np
import pytest

from meters.phases import phases
from meters.step_clock import StepClock
from meters.types import Activity


def decoding(start_s, end_s, tokens):
    return Activity(
        request_id=f"{start_s}-{end_s}",
        node="n",
        start_s=start_s,
        first_token_s=start_s + 0.001,
        end_s=end_s,
        prompt_tokens=1.0,
        output_tokens=tokens + 1.0,
    )


def clock(activities, counted, external=None):
    starts = np.arange(len(counted), dtype=float)
    counts = np.array([np.nan if c is None else c for c in counted], dtype=float)
    others = np.zeros(len(counted)) if external is None else np.array(external, dtype=float)
    found = phases(activities, float(len(counted)))
    return StepClock(starts, starts + 1.0, found, counts, others), found


def steps_between(made, start_s, end_s):
    total = np.interp([start_s, end_s], made.times, made.total)
    return float(total[1] - total[0])


def test_without_a_counter_the_requests_own_pace_sets_the_clock():
    made, _ = clock([decoding(0.0, 4.0, 200)], [None] * 4)
    assert steps_between(made, 0.0, 4.0) == pytest.approx(200, rel=0.02)


def test_a_counter_says_when_an_engine_was_slow():
    made, _ = clock([decoding(0.0, 4.0, 200)], [80, 20, 50, 50])
    assert steps_between(made, 0.0, 1.0) == pytest.approx(80, abs=1.5)
    assert steps_between(made, 1.0, 2.0) == pytest.approx(20, abs=1.5)


def test_a_count_may_be_one_step_behind_at_an_edge_and_no_more():
    made, _ = clock([decoding(0.0, 3.0, 30)], [9, 10, 11])
    assert np.allclose(made.steps, 10.0, atol=1.0)


def test_steps_are_shared_by_those_in_them():
    made, found = clock([decoding(0.0, 2.0, 100), decoding(1.0, 2.0, 50)], [None, None])
    at = made.index(found.end) - made.index(found.first)
    assert (at > 0).all()
    alone = np.interp(1.0, made.times, made.share) - np.interp(0.0, made.times, made.share)
    shared = np.interp(2.0, made.times, made.share) - np.interp(1.0, made.times, made.share)
    assert alone == pytest.approx(2 * shared, rel=0.05)


def test_others_in_the_batch_take_their_part_of_a_step():
    made, _ = clock([decoding(0.0, 2.0, 100)], [50, 50], external=[3.0, 0.0])
    first = np.interp(1.0, made.times, made.share)
    second = np.interp(2.0, made.times, made.share) - first
    assert first == pytest.approx(second / 4, rel=0.1)


def test_nothing_running_means_no_steps():
    made, _ = clock([], [0, 0])
    assert made.total[-1] == 0.0
    assert made.busy_s.tolist() == [0.0, 0.0]
