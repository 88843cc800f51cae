"""Windows whose replica died after it took them and before it divided them.

They are in the ledger, since a window is journalled before its agent is answered; seconds
later any replica divides them among the requests that the ledger has of all replicas. When two do
so at once the first counts, as with everything in the ledger.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from meters.ledger import Ledger
from meters.types import Activity, Attribution, StepPhysics, Window
from proxy.accounts import HOLD_S
from proxy.background import ended

log = logging.getLogger("joulegate.leftovers")

PATIENCE_S = HOLD_S + 10.0  # how long its own replica has for a window
EVERY_S = 5.0
RECENT_S = 3600.0  # how far back it looks, but for the first time
FIRST_S = 45 * 86_400.0  # as far back as windows are taken at all


class Journal(Protocol):
    def append(self, entry: Attribution) -> None: ...


Divide = Callable[[Window, Sequence[Activity], StepPhysics | None], Attribution]


class Leftovers:
    """Looks for undivided windows of ``nodes`` and divides them."""

    def __init__(
        self,
        ledger: Ledger,
        journal: Journal,
        nodes: Iterable[str],
        divide: Divide,
        physics: Callable[[str], StepPhysics | None],
        *,
        patience_s: float = PATIENCE_S,
        every_s: float = EVERY_S,
    ) -> None:
        self._ledger = ledger
        self._journal = journal
        self._nodes = sorted(set(nodes))
        self._divide = divide
        self._physics = physics
        self._patience_s = patience_s
        self._every_s = every_s
        self._back_s = FIRST_S
        self._task: asyncio.Task[None] | None = None

    def look(self, now_s: float) -> int:
        """Divide what ended ``patience_s`` before this Unix time; how many windows that were."""
        found = 0
        until_s = now_s - self._patience_s
        for node in self._nodes:
            for window in self._ledger.undivided(node, now_s - self._back_s, until_s):
                activities = self._ledger.activities(node, window.start_s, window.end_s)
                self._journal.append(self._divide(window, activities, self._physics(node)))
                found += 1
        self._back_s = RECENT_S
        return found

    def start(self) -> None:
        """Go on looking, from the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        await ended(self._task)

    async def _run(self) -> None:
        while True:
            try:
                found = await asyncio.to_thread(self.look, time.time())
                if found:
                    log.info("Divided %d windows that a stopped replica had left", found)
            except SQLAlchemyError:
                log.debug("the ledger is away")  # the drain has said so
            except Exception:
                log.exception("Windows that were left undivided stay so for now")
            await asyncio.sleep(self._every_s)
