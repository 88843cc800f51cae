"""The share of new kinds in traffic is told by many prompts together, kind by kind."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimators.quality_fit import learn
from estimators.text import read
from estimators.traffic import Traffic, known_odds
from tests.estimators.outcomes import outcomes, prompt

CROWDING = 0.4


def ranks(number: int, new: bool, rng: random.Random) -> list[float]:
    """As they come: even for known kinds, crowded towards 0 for new ones."""
    return [rng.random() ** (1 / CROWDING if new else 1.0) for _ in range(number)]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_batch_tells_which_share_of_it_is_new(share: float) -> None:
    rng = random.Random(1)
    batch = ranks(round(400 * share), True, rng) + ranks(round(400 * (1 - share)), False, rng)
    traffic = Traffic(0.5, CROWDING)
    traffic.look([(0, rank) for rank in batch])
    assert traffic.share(0) == pytest.approx(share, abs=0.15)


def test_one_kind_turning_strange_leaves_the_others_trusted() -> None:
    rng = random.Random(2)
    batch = [(0, rank) for rank in ranks(100, True, rng)]
    batch += [(1, rank) for rank in ranks(500, False, rng)]
    traffic = Traffic(0.3, CROWDING)
    traffic.look(batch)
    assert traffic.known(0, 0.5) < 0.4
    assert traffic.known(1, 0.5) > 0.8


def test_a_kind_that_has_slightly_changed_is_not_trusted_either() -> None:
    rng = random.Random(5)
    traffic = Traffic(0.3, CROWDING)
    traffic.look([(0, rng.random() ** 1.6) for _ in range(300)])
    assert traffic.share(0) < 0.6
    assert traffic.known(0, 0.9) == 0.0


def test_where_nearly_all_is_new_no_kind_is_trusted() -> None:
    rng = random.Random(6)
    batch = [(0, rank) for rank in ranks(300, True, rng)]
    batch += [(1, rank) for rank in ranks(15, False, rng)]
    traffic = Traffic(0.3, CROWDING)
    traffic.look(batch)
    assert traffic.known(1, 0.9) == 0.0


def test_a_kind_that_is_plainly_new_puts_no_other_in_doubt() -> None:
    """More than half is new, all of it taken for one kind; twenty-four prompts of each other."""
    rng = random.Random(7)
    batch = [(0, 0.005)] * 100
    batch += [(1 + kind, (place + 0.5) / 24) for kind in range(4) for place in range(24)]
    at_once, while_serving = Traffic(0.5, CROWDING), Traffic(0.5, CROWDING)
    at_once.look(batch)
    for kind, rank in rng.sample(batch, len(batch)):
        while_serving.learn(kind, rank)
    for traffic in (at_once, while_serving):
        assert traffic.known(0, 0.9) == 0.0
        assert min(traffic.known(kind, 0.7) for kind in range(1, 5)) > 0.7


def test_follows_traffic_that_changes_and_changes_back() -> None:
    rng = random.Random(3)
    traffic = Traffic(0.3, CROWDING)
    shares = []
    for new in (False, True, False):
        for rank in ranks(1500, new, rng):
            traffic.learn(0, rank)
        shares.append(traffic.share(0))
    assert shares[0] < 0.2
    assert shares[1] > 0.8
    assert shares[2] < 0.3


@given(rank=st.floats(0, 1), share=st.floats(0, 1), other=st.floats(0, 1))
def test_a_more_familiar_prompt_is_never_less_likely_known(
    rank: float, share: float, other: float
) -> None:
    low, high = sorted((rank, other))
    assert 0.0 <= known_odds(low, share, CROWDING) <= known_odds(high, share, CROWDING) <= 1.0


def test_a_whole_new_kind_of_traffic_gets_every_backends_overall_mean() -> None:
    model = learn(outcomes(450, tasks=("code", "cooking")))
    rng = random.Random(4)
    strange = [read(prompt("law", rng)) for _ in range(100)]
    known = [read(prompt(task, rng)) for _ in range(150) for task in ("code", "cooking")]
    assert model.quality is not None

    def gaps(texts) -> np.ndarray:  # type: ignore[no-untyped-def,type-arg]
        said = [each.quality[:, 1] for each in model.predict_all(texts)]
        return np.ptp(np.array(said), axis=1)

    overall = float(np.ptp(model.quality.mean))
    # the choice between backends is the same for every prompt: that of the hull
    assert gaps(strange) == pytest.approx(overall, abs=1e-6)
    assert gaps(known)[::2].mean() > overall + 0.1
