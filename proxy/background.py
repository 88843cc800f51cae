"""Tasks that go on for as long as the process does, and ending them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

_AGAIN_S = 0.5


async def looking(
    look: Callable[[], Awaitable[None]], every_s: float, log: logging.Logger, failed: str
) -> None:
    """``look`` into the ledger again and again; an exception is logged, as what ``failed``."""
    while True:
        try:
            await look()
        except SQLAlchemyError:
            log.debug("the ledger is away")  # the drain has said so
        except Exception:
            log.exception(failed)
        await asyncio.sleep(every_s)


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
