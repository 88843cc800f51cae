"""The engine's own count of bytes says how long others' contexts are."""

import random

import msgspec
import numpy as np
import pytest

from benchmarks.attribution import Scenario, play
from meters.attribution import attribute_all
from meters.counted_work import CountedWork

WEIGHTS, CACHED = 16e9, 131e3


def windows(n, noise=0.0):
    random_ = random.Random(4)
    steps = np.array([random_.uniform(20, 120) for _ in range(n)])
    context = np.array([random_.uniform(1e5, 3e6) for _ in range(n)])
    read = WEIGHTS * steps + CACHED * context
    return read * np.array([random_.gauss(1, noise) for _ in range(n)]), steps, context


def test_what_others_read_is_what_the_engine_counted_beyond_ours():
    read, steps, context = windows(60)
    alone = np.arange(60) < 40
    others = np.where(alone, 0.0, 7e5)
    found = CountedWork().others_context(read + CACHED * others, steps, context, alone)
    assert np.isnan(found[:40]).all()
    assert found[40:] == pytest.approx(7e5, rel=1e-3)


def test_it_is_remembered_from_window_to_window():
    counted = CountedWork()
    read, steps, context = windows(41)
    for i in range(40):
        one = slice(i, i + 1)
        counted.others_context(read[one], steps[one], context[one], np.array([True]))
    last = slice(40, 41)
    found = counted.others_context(
        read[last] + CACHED * 5e5, steps[last], context[last], np.array([False])
    )
    assert found[0] == pytest.approx(5e5, rel=1e-3)


@pytest.mark.parametrize(
    ("n", "noise", "same"),
    [(10, 0.0, False), (200, 0.5, False), (200, 0.0, True)],
)
def test_a_count_that_says_nothing_leaves_it_unknown(n, noise, same):
    read, steps, context = windows(n, noise)
    if same:  # a steady engine: weights and cached tokens cannot be told apart
        context = steps * 1e4
        read = WEIGHTS * steps + CACHED * context
    alone = np.arange(n) < n - 1
    assert np.isnan(CountedWork().others_context(read, steps, context, alone)).all()


def test_an_engine_that_does_not_count_is_unknown():
    nothing = np.full(30, np.nan)
    _, steps, context = windows(30)
    found = CountedWork().others_context(nothing, steps, context, np.zeros(30, dtype=bool))
    assert np.isnan(found).all()


def test_others_long_contexts_are_not_charged_to_ours():
    seen = play(Scenario("b", requests=900, external=0.25, bursts=True, counts_work=True), 2)
    blind = [msgspec.structs.replace(w, flops=None, read_bytes=None) for w in seen.windows]
    true_j = sum(
        joules
        for shares in seen.run.truth_j.values()
        for request_id, joules in shares.items()
        if seen.run.jobs[request_id].external
    )
    off = [
        abs(sum(a.external_j for a in attribute_all(w, seen.activities).attributions) / true_j - 1)
        for w in (seen.windows, blind)
    ]
    assert off[0] < 0.05
    assert off[1] > 2 * off[0]
