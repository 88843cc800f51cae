"""Waiting for what another thread or process does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LOOK_EVERY_S = 0.02  # often enough; strangers may only ask so many times a minute


def until(
    look: Callable[[], T],
    within_s: float = 60.0,
    every_s: float = LOOK_EVERY_S,
    told: Callable[[], object] = str,
) -> T:
    """The first true value of ``look``, asked for again and again. The test fails where none comes
    in time, with what ``told`` gives then."""
    deadline_s = time.monotonic() + within_s
    while not (value := look()):
        assert time.monotonic() < deadline_s, f"it did not come true in time {told()}"
        time.sleep(every_s)
    return value


async def until_in_loop(look: Callable[[], object], within_s: float = 60.0) -> None:
    """Likewise, for what happens on this thread's event loop meanwhile."""
    deadline_s = time.monotonic() + within_s
    while not look():
        assert time.monotonic() < deadline_s, "it did not come true in time"
        await asyncio.sleep(LOOK_EVERY_S)
