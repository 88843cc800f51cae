from __future__ import annotations

from benchmarks.attribution import Scenario, play
from benchmarks.attribution_bound import bound


def test_a_full_engine_says_less_of_its_coefficients_than_one_that_is_not() -> None:
    light = bound(play(Scenario("light", "8b", 8, 300), 1), "8b")
    full = bound(play(Scenario("full", "8b", 200, 900), 1), "8b")
    assert light[0] < 0.3
    assert full[0] > 4 * light[0]


def test_what_is_cut_off_at_edges_is_information_lost() -> None:
    seen = play(Scenario("some", "8b", 32, 300), 1)
    assert bound(seen, "8b", edge=0.0)[0] < bound(seen, "8b", edge=0.5)[0]
