"""A table of quality and energy: means, intervals, and who is on the front."""

from __future__ import annotations

import random

import pytest

from estimators.evaluated import Answered, by_task, mean, table


def answers(name: str, quality: float, energy_j: float, number: int = 40) -> list[Answered]:
    return [
        Answered(
            item=str(i),
            backend=name,
            task="code" if i % 4 else "chat",
            score=float(i < quality * number),
            energy_j=energy_j,
            evidence="metered",
        )
        for i in range(number)
    ]


def test_the_front_is_what_no_other_one_beats() -> None:
    rows = table(
        [
            *answers("large", 0.9, 40.0),
            *answers("wasteful", 0.8, 50.0),
            *answers("small", 0.5, 5.0),
            *answers("middling", 0.5, 10.0),
        ]
    )
    assert [row.backend for row in rows] == ["small", "middling", "large", "wasteful"]
    assert [row.backend for row in rows if row.on_front] == ["small", "large"]
    assert rows[0].evidence == "metered"


def test_an_interval_holds_the_mean_of_what_made_it_nineteen_times_in_twenty() -> None:
    draw = random.Random(0)
    inside = 0
    for _ in range(200):
        found = mean([float(draw.random() < 0.7) for _ in range(60)])
        assert found is not None
        inside += found.low <= 0.7 <= found.high
    assert 180 <= inside <= 198


def test_scores_that_are_all_alike_are_not_certain() -> None:
    found = mean([1.0] * 9)
    assert found is not None
    assert (found.mid, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.95)
    assert mean([]) is None


def test_what_failed_or_is_unknown_is_not_taken_for_nothing() -> None:
    (row,) = table([Answered(item="1", backend="a", error="no answer")])
    assert (row.answered, row.failed, row.quality, row.energy_j) == (0, 1, None, None)
    assert not row.on_front


def test_kinds_of_task_with_few_scores_are_left_out() -> None:
    found = by_task(answers("a", 0.5, 1.0, 40), least=20)
    assert set(found["a"]) == {"", "code"}
    assert by_task(answers("a", 0.5, 1.0, 4), least=20) == {}
