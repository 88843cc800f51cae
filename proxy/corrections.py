"""Budgets of energy and carbon corrected to what meters told, whichever replica got the windows.

What a request was settled with is an estimate. Seconds later the ledger has its shares of metered
windows; the replica that served it asks for them and charges the difference, in periods that still
go on. A request is looked at again for some seconds, since its windows may come by several ways.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from meters.ledger import Ledger
from meters.receipts import JITTER_S
from proxy import budgets
from proxy.background import ended
from proxy.budgets import Charge
from proxy.store import Store

log = logging.getLogger("joulegate.corrections")

EVERY_S = 1.0
AGAIN_S = 5.0  # how long after its end a node's windows may still change a request's shares
PATIENCE_S = 900.0  # how long a request waits for a window; others stay as settled
MOST = 20_000  # requests that wait; the oldest stay as settled


@dataclass(slots=True)
class Part:
    """What a request did on one node, and what its budgets were charged for it."""

    node: str
    end_s: float  # Unix time
    settled_j: float
    g_per_j: float


@dataclass(slots=True)
class _Waiting:
    holder: str
    charges: tuple[Charge, ...]  # those of energy and carbon
    parts: list[Part]


class Corrections:
    """Used from the event loop; asks the ledger from a thread, and only while requests wait."""

    def __init__(
        self,
        store: Store,
        ledger: Callable[[], Ledger | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._clock = clock
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._task: asyncio.Task[None] | None = None

    def expect(
        self, request_id: str, holder: str, charges: Sequence[Charge], parts: Sequence[Part]
    ) -> None:
        """A request was settled; ``charges`` are those of its admission."""
        kept = tuple(c for c in charges if c.rule.metric in ("energy_j", "carbon_g"))
        if not kept or not parts:
            return
        by_node: dict[str, Part] = {}
        for part in parts:
            known = by_node.setdefault(part.node, part)
            if known is not part:
                known.settled_j += part.settled_j
                known.end_s = max(known.end_s, part.end_s)
        self._waiting[request_id] = _Waiting(holder, kept, list(by_node.values()))
        if len(self._waiting) > MOST:
            self._waiting.popitem(last=False)

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        await ended(self._task)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.look()
            except SQLAlchemyError:
                log.debug("the ledger is away")  # the drain has said so
            except Exception:
                log.exception("what meters told could not be charged to budgets")

    async def look(self) -> None:
        """Charge what the ledger knows by now."""
        ledger, waiting = self._ledger(), dict(self._waiting)
        if ledger is None or not waiting:
            return
        nodes = {part.node for one in waiting.values() for part in one.parts}
        last_s = await asyncio.to_thread(ledger.metered_until, nodes)
        ready = [
            request_id
            for request_id, one in waiting.items()
            if any(_is_in(part, last_s) for part in one.parts)
        ]
        shares_j = await asyncio.to_thread(ledger.metered, ready) if ready else {}
        now_s = self._clock()
        by_holder: dict[str, dict[str, tuple[Charge, int]]] = {}
        for request_id in ready:
            one = waiting[request_id]
            for part in one.parts:
                took_j = shares_j.get((request_id, part.node))
                if took_j is None or not _is_in(part, last_s):
                    continue
                more_j, part.settled_j = took_j - part.settled_j, took_j
                _add(by_holder.setdefault(one.holder, {}), one.charges, more_j, part.g_per_j, now_s)
        for request_id, one in waiting.items():
            if all(
                last_s.get(part.node, 0.0) >= part.end_s + AGAIN_S
                or now_s > part.end_s + PATIENCE_S
                for part in one.parts
            ):
                self._waiting.pop(request_id, None)
        for holder, deltas in by_holder.items():
            await self._store.correct(holder, [d for d in deltas.values() if d[1]])


def _is_in(part: Part, last_s: dict[str, float]) -> bool:
    """Whether all windows that it lived through have been divided."""
    return last_s.get(part.node, 0.0) >= part.end_s - JITTER_S


def _add(
    deltas: dict[str, tuple[Charge, int]],
    charges: Sequence[Charge],
    more_j: float,
    g_per_j: float,
    now_s: float,
) -> None:
    for charge in charges:
        if charge.period.end_s <= now_s:
            continue
        in_unit = more_j if charge.rule.metric == "energy_j" else more_j * g_per_j
        whole = budgets.whole(charge.rule.metric, abs(in_unit))
        before = deltas.get(charge.counter, (charge, 0))[1]
        deltas[charge.counter] = (charge, before + (whole if in_unit > 0 else -whole))
