"""Looks for changes of teams and keys in the ledger, and takes them over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from proxy.auth import KeyRing
from proxy.background import ended
from proxy.teams import Directory, TeamStore

log = logging.getLogger("joulegate.teams")


class KeyWatch:
    """Keeps a key ring as the ledger has it: a change anywhere holds here within a second."""

    def __init__(
        self,
        store: TeamStore,
        ring: KeyRing,
        interval_s: float = 0.5,
        also: Callable[[Directory], None] = lambda found: None,
    ) -> None:
        """``also`` is called after each change that was seen, in the same thread."""
        self._also = also
        self._store = store
        self._ring = ring
        self._interval_s = interval_s
        self._number = -1
        self._failing = False
        # Its own: a few long exports keep all threads that are shared busy.
        self._thread = ThreadPoolExecutor(1, "joulegate-keys")
        self._task: asyncio.Task[None] | None = None

    def watch(self, store: TeamStore) -> None:
        """Look there from now on, as after a change of the config."""
        self._store = store
        self._number = -1

    def refresh(self) -> bool:
        """Look once; True when there was a change. Blocks, and raises what the ledger raises."""
        store = self._store
        number = store.number()
        if number == self._number:
            return False
        found = store.directory()
        self._ring.replace(found.callers)
        self._also(found)
        if store is self._store:  # else the config has changed meanwhile: look again
            self._number = number
        return True

    def start(self) -> None:
        """Go on looking, from the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        await ended(self._task)
        self._thread.shutdown(wait=False)

    async def look(self) -> None:
        """Look now, from the event loop. What cannot be read is looked for again soon."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self.refresh)
            self._failing = False
        except Exception as error:  # looking on matters more than why it failed
            if not self._failing:
                log.warning(
                    "Keys cannot be read from the ledger (%s): those known stay in use.",
                    type(error).__name__,
                )
            self._failing = True

    async def _run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(self._interval_s)
