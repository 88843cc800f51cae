"""Windows that are divided among the requests that the ledger has: those whose replica died after
it took them and before it divided them, and those that came so late that no replica remembers all
that was in flight then.

They are in the ledger, since a window is journalled before its agent is answered; seconds
later any replica divides them among the requests that the ledger has of all replicas, and those
in flight here. When two do so at once the first counts, as with everything in the ledger. While
journals are carried into a ledger that was away, a window may be there and its division not: that
is waited for.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from meters.ledger import Ledger
from meters.types import Activity, Attribution, StepPhysics, Window
from proxy.accounts import HOLD_S
from proxy.background import ended, looking

log = logging.getLogger("joulegate.leftovers")

PATIENCE_S = HOLD_S + 10.0  # how long its own replica has for a window
EVERY_S = 5.0
RECENT_S = 3600.0  # how far back it looks, but for the first time
CALM_S = 5.0  # so long there must have been nothing to catch up with
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
        live: Callable[[str], Iterable[Activity]] = lambda node: (),
        caught_up_s: Callable[[], float] = lambda: math.inf,
        divided: Callable[[Attribution], None] = lambda attribution: None,
    ) -> None:
        """``live`` gives what is in flight on a node, which no ledger has yet, ``caught_up_s`` for
        how long the journal has been in the ledger, ``divided`` is told what became of windows
        that were expected, in the event loop."""
        self._ledger = ledger
        self._journal = journal
        self._nodes = sorted(set(nodes))
        self._divide = divide
        self._physics = physics
        self._patience_s = patience_s
        self._every_s = every_s
        self._back_s = FIRST_S
        self._live, self._caught_up_s, self._divided = live, caught_up_s, divided
        self._expected: dict[str, Window] = {}
        self._to_count: list[Attribution] = []
        self._task: asyncio.Task[None] | None = None

    def look(self, now_s: float) -> int:
        """Divide what ended ``patience_s`` before this Unix time; how many windows that were."""
        found = 0
        until_s = now_s - self._patience_s
        expected = dict(self._expected)
        from_s = min([now_s - self._back_s, *(w.start_s for w in expected.values())])
        for node in self._nodes:
            for window in self._ledger.undivided(node, from_s, until_s):
                activities = self._ledger.activities(node, window.start_s, window.end_s)
                known = {activity.request_id for activity in activities}
                activities += [
                    a
                    for a in self._live(node)
                    if a.request_id not in known and a.start_s < window.end_s
                ]
                attribution = self._divide(window, activities, self._physics(node))
                self._journal.append(attribution)
                if window.window_id in expected:
                    self._to_count.append(attribution)
                found += 1
        for window_id, window in expected.items():
            if window.end_s < until_s:
                del self._expected[window_id]
        self._back_s = RECENT_S
        return found

    def expect(self, window: Window) -> None:
        """Divide this one as soon as the ledger has it, however old it is."""
        self._expected[window.window_id] = window

    def start(self) -> None:
        """Go on looking, from the running event loop."""
        failed = "Windows that were left undivided stay so for now"
        self._task = asyncio.create_task(looking(self._look, self._every_s, log, failed))

    async def stop(self) -> None:
        await ended(self._task)

    async def _look(self) -> None:
        if self._caught_up_s() < CALM_S:
            return
        found = await asyncio.to_thread(self.look, time.time())
        if found:
            log.info("Divided %d windows that were left or came late", found)
        while self._to_count:
            self._divided(self._to_count.pop())
