"""A short run of what ``python -m tests.chaos`` does for as long as it is told."""

from __future__ import annotations

import pytest

from tests.chaos.run import missing_numbers, run


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.timeout(500)
async def test_nothing_finished_is_lost_or_counted_twice_whatever_is_killed() -> None:
    found = await run(seconds=6.0, seed=7, clients=3, every_s=0.8)
    replicas = {f"replica {number}" for number in range(3)}
    assert set(found.killed) == {*replicas, "Redis", "PostgreSQL", "meter agent"}
    assert found.answered > 20
    assert found.lost == []
    assert found.problems == []
    assert found.windows_missing == []
    assert found.undivided == 0


def test_a_window_that_is_not_there_is_seen() -> None:
    assert missing_numbers(["n:run1:3", "n:run1:5", "n:run2:1"]) == ["n:run1:4"]
