from __future__ import annotations

import random

import numpy as np
import pytest

from benchmarks.attribution import Scenario, compare, play
from benchmarks.attribution_pooled import Bias, Pool, pooled, run, verdict


def runs(bias: float, scatter: float, n: int, seed: int) -> Bias:
    random_ = random.Random(seed)
    return pooled([random_.gauss(bias, scatter) for _ in range(n)])


def test_a_bias_of_one_and_a_half_per_cent_is_found_among_scatter_of_half_a_per_cent() -> None:
    found = [runs(1.5, 0.5, 12, seed).verdict for seed in range(200)]
    assert found.count("within") == 0
    assert found.count("beyond") > 150


def test_a_bias_is_not_called_within_for_lack_of_runs() -> None:
    found = [runs(1.5, 1.0, 3, seed).verdict for seed in range(500)]
    assert found.count("within") < 15
    assert pooled([0.0]).verdict == "open"


def test_scatter_alone_is_no_bias() -> None:
    found = [runs(0.0, 0.5, 12, seed).verdict for seed in range(200)]
    assert found.count("within") > 195


def test_the_interval_is_students() -> None:
    bias = pooled([0.0, 1.0, 2.0])
    assert bias.mean == pytest.approx(1.0)
    assert bias.half_width == pytest.approx(4.303 / 3**0.5, rel=1e-3)


def test_one_group_beyond_decides_for_all() -> None:
    fine, off, few = Bias(0.1, 0.2, 0.3), Bias(-1.4, 0.2, 0.3), Bias(0.5, 0.9, 1.0)
    assert verdict([fine, fine]) == "within"
    assert verdict([fine, few]) == "open"
    assert verdict([few, off, fine]) == "beyond"


@pytest.mark.parametrize(("off", "expected"), [(0.0, "within"), (0.015, "beyond")])
def test_what_one_team_is_given_too_much_is_found_in_played_traffic(
    off: float, expected: str
) -> None:
    pool = Pool()
    for seed in range(5):
        random_ = random.Random(seed)
        seen = play(Scenario("some", "8b", 16, 120), seed)
        teams = {i: job.team for i, job in seen.run.jobs.items()}
        given = {
            i: joules * (1 + random_.gauss(0, 0.005) + off * (teams[i] == "search"))
            for i, joules in seen.truth_j.items()
        }
        pool.add(compare(seen, given), {}, None)
    assert verdict(pool.all_groups) in ({"within", "open"} if off == 0 else {expected, "open"})
    assert verdict(pool.groups("team")) == expected


def test_runs_are_added_up() -> None:
    pool = Pool()
    for seed in (1, 2):
        run(Scenario("some", "8b", 8, 80), seed, pool, None)
    assert pool.accurate
    assert pool.quantile(0.5) < pool.quantile(0.95) < pool.quantile(0.5, "equal")
    assert pool.least is not None
    assert np.isfinite([bias.half_width for bias in pool.all_groups]).all()
