"""A background task ends when it should, whatever it does with its cancellation."""

from __future__ import annotations

import asyncio

from proxy import background


async def test_a_task_that_swallows_a_cancellation_is_cancelled_again() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed > 1:
                    raise

    task = asyncio.get_running_loop().create_task(stubborn())
    await asyncio.sleep(0)
    await asyncio.wait_for(background.ended(task), 10)
    assert task.cancelled()
    assert swallowed == 2


async def test_a_task_that_failed_or_never_was_is_no_trouble() -> None:
    async def fails() -> None:
        raise OSError("gone")

    task = asyncio.get_running_loop().create_task(fails())
    await asyncio.wait([task])
    await background.ended(task)
    await background.ended(None)
