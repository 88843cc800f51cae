"""Ending a task that goes on for as long as the process does."""

from __future__ import annotations

import asyncio
from typing import Any

_AGAIN_S = 0.5


async def ended(task: asyncio.Task[Any] | None) -> None:
    """Cancel a background task and wait until it has ended.

    Cancels again while it has not: a library that catches the cancellation while one of its own
    time limits runs out would otherwise go on for ever, and so would the shutdown.
    """
    while task is not None and not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_AGAIN_S)
    if task is not None and not task.cancelled():
        task.exception()  # taken, so that nobody complains that it was not
