"""Strengths from games: they find what made the games, and say how sure they are."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimators.pairwise import Game, judged


def played(qualities: dict[str, float], prompts: int, seed: int = 0) -> list[Game]:
    """Games that a Bradley-Terry world with these qualities gives."""
    draw = random.Random(seed)
    names = sorted(qualities)
    odds = {name: q / (1 - q) for name, q in qualities.items()}
    games = []
    for prompt in range(prompts):
        one, other = draw.sample(names, 2)
        for first, second in ((one, other), (other, one)):
            won = draw.random() < odds[first] / (odds[first] + odds[second])
            games.append(Game(first, second, float(won), 1.0, prompt))
    return games


def test_finds_the_qualities_that_made_the_games_when_one_of_them_is_known() -> None:
    true = {"large": 0.7, "middle": 0.5, "small": 0.3}
    found = judged(played(true, 3000), {"middle": 0.5})
    assert [each.name for each in found] == ["large", "middle", "small"]
    for each in found:
        assert each.mid == pytest.approx(true[each.name], abs=0.03)
        assert each.low <= each.mid <= each.high


def test_intervals_cover_the_truth_about_nineteen_times_in_twenty() -> None:
    true = {"one": 0.6, "other": 0.4}
    inside = 0
    for seed in range(100):
        found = {e.name: e for e in judged(played(true, 80, seed), true, seed=seed)}
        inside += found["one"].low <= 0.6 <= found["one"].high
    assert 88 <= inside <= 100


def test_a_quarter_of_the_prompts_gives_twice_the_interval() -> None:
    true = {"one": 0.6, "other": 0.4}
    few, many = (judged(played(true, n), true)[0] for n in (100, 400))
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(2.0, rel=0.3)
    assert many.weight > 2.5 * few.weight


def test_much_better_counts_three_times() -> None:
    much = [Game("a", "b", 1.0, 3.0, 0), Game("b", "a", 0.0, 3.0, 0)]
    little = [game._replace(weight=1.0) for game in much]
    assert judged(much, {})[0].mid > judged(little, {})[0].mid


def test_backends_that_never_met_are_levelled_apart() -> None:
    games = [Game("a", "b", 0.5, 1.0, 0), Game("c", "d", 0.5, 1.0, 1)]
    found = {e.name: e.mid for e in judged(games, {"a": 0.8, "c": 0.3})}
    assert found == pytest.approx({"a": 0.8, "b": 0.8, "c": 0.3, "d": 0.3})


def test_nothing_judged_says_nothing() -> None:
    assert judged([], {"a": 0.5}) == []


GAMES = st.lists(
    st.builds(
        Game,
        st.sampled_from("ab"),
        st.sampled_from("cd"),
        st.sampled_from([0.0, 0.5, 1.0]),
        st.sampled_from([1.0, 3.0]),
        st.integers(0, 5),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40)
@given(GAMES)
def test_is_finite_and_ordered_however_one_sided_the_games_are(games: list[Game]) -> None:
    for each in judged(games, {}, rounds=20):
        assert 0.0 < each.low <= each.mid <= each.high < 1.0
        assert each.games >= 1


@settings(max_examples=40)
@given(GAMES)
def test_the_order_of_the_two_answers_makes_no_difference(games: list[Game]) -> None:
    turned = [Game(g.second, g.first, 1.0 - g.points, g.weight, g.prompt) for g in games]
    for one, other in zip(judged(turned, {}, rounds=5), judged(games, {}, rounds=5), strict=True):
        assert one[1:] == pytest.approx(other[1:])
