from __future__ import annotations

import numpy as np
import pytest

from meters.others_context import others_contexts

N = 120
STARTS = np.arange(N, dtype=float)
ENDS = STARTS + 1


def contexts(prompt: float, rate: float) -> np.ndarray:
    """Others' cached tokens where their prompts are so long and they are so many beside us."""
    ours = np.full(N, 8_000.0), np.full(N, 2_000.0), np.full(N, 2e6)
    theirs = np.full(N, rate * 8_000.0 * prompt), np.full(N, rate * 2_000.0)
    return others_contexts(STARTS, ENDS, 5.0, ours, theirs)


def test_like_ours_they_read_as_much_a_token() -> None:
    assert contexts(prompt=1.0, rate=0.25)[20:] == pytest.approx(0.25 * 2e6, rel=0.01)


def test_with_longer_prompts_they_read_as_much_more() -> None:
    assert contexts(prompt=8.0, rate=0.25)[20:] == pytest.approx(8 * 0.25 * 2e6, rel=0.2)


def test_where_nothing_of_them_is_counted_nothing_is_read() -> None:
    assert contexts(prompt=1.0, rate=0.0).sum() == 0.0


def test_where_there_is_nothing_of_ours_nothing_can_be_said() -> None:
    nothing = np.zeros(N)
    theirs = np.full(N, 8_000.0), np.full(N, 2_000.0)
    found = others_contexts(STARTS, ENDS, 5.0, (nothing, nothing, nothing), theirs)
    assert (found == 0.0).all()
