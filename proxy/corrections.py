"""Budgets of energy and carbon corrected to what meters told, whichever replica got the windows.

What a request was settled with is an estimate. Seconds later the ledger has its shares of metered
windows; the replica that served it asks for them and charges the difference, in periods that still
go on. A request is looked at once more some seconds later, since its windows may come by several
ways.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from meters.ledger import Ledger
from meters.receipts import JITTER_S
from proxy import budgets
from proxy.background import ended, looking
from proxy.budgets import Charge
from proxy.store import Store

log = logging.getLogger("joulegate.corrections")

EVERY_S = 1.0
AGAIN_S = 5.0  # how long after its end a node's windows may still change a request's shares
PATIENCE_S = 900.0  # how long a request waits for a window; others stay as settled
MOST = 20_000  # requests that wait for a node's windows; the oldest stay as settled


@dataclass(slots=True)
class Part:
    """What a request did on one node, and what its budgets were charged for it."""

    node: str
    end_s: float  # Unix time
    settled_j: float
    g_per_j: float


class _Waiting(NamedTuple):
    """A part of a request."""

    request_id: str
    part: Part
    holder: str
    charges: tuple[Charge, ...]  # those of energy and carbon


@dataclass(slots=True)
class _Node:
    """What waits for a node's windows, in the order it was settled, which is that of its ends but
    for moments: a look costs what is due and no more."""

    fresh: deque[_Waiting] = field(default_factory=lambda: deque(maxlen=MOST))
    again: deque[_Waiting] = field(default_factory=lambda: deque(maxlen=MOST))  # charged once

    def due(self, last_s: float) -> list[_Waiting]:
        """Those whose windows are all in, and, AGAIN_S later, once more."""
        found = _up_to(self.again, last_s - AGAIN_S)
        first = _up_to(self.fresh, last_s + JITTER_S)
        self.again += first
        return found + first


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
        self._nodes: dict[str, _Node] = {}
        self._task: asyncio.Task[None] | None = None

    def expect(
        self, request_id: str, holder: str, charges: Sequence[Charge], parts: Sequence[Part]
    ) -> None:
        """A request was settled; ``charges`` are those of its admission."""
        kept = tuple([c for c in charges if c.rule.metric in ("energy_j", "carbon_g")])
        if not kept:
            return
        for part in parts if len(parts) == 1 else _by_node(parts):
            fresh = self._nodes.setdefault(part.node, _Node()).fresh
            fresh.append(_Waiting(request_id, part, holder, kept))

    def start(self) -> None:
        failed = "what meters told could not be charged to budgets"
        self._task = asyncio.create_task(looking(self.look, EVERY_S, log, failed))

    async def stop(self) -> None:
        await ended(self._task)

    async def look(self) -> None:
        """Charge what the ledger knows by now."""
        ledger = self._ledger()
        nodes = [name for name, node in self._nodes.items() if node.fresh or node.again]
        if ledger is None or not nodes:
            return
        last_s = await asyncio.to_thread(ledger.metered_until, nodes)
        now_s = self._clock()
        due: list[_Waiting] = []
        for name in nodes:
            node = self._nodes[name]
            due += node.due(last_s.get(name, -math.inf))
            for waits in (node.fresh, node.again):
                _up_to(waits, now_s - PATIENCE_S)  # they stay as they are
        if not due:
            return
        try:
            ids = {waiting.request_id for waiting in due}
            shares_j = await asyncio.to_thread(ledger.metered, ids)
        except SQLAlchemyError:
            for waiting in reversed(due):  # the ledger will be back
                self._nodes[waiting.part.node].fresh.appendleft(waiting)
            raise
        by_holder: dict[str, dict[str, tuple[Charge, int]]] = {}
        for one in due:
            part = one.part
            took_j = shares_j.get((one.request_id, part.node))
            if took_j is None:
                continue
            more_j, part.settled_j = took_j - part.settled_j, took_j
            _add(by_holder.setdefault(one.holder, {}), one.charges, more_j, part.g_per_j, now_s)
        for holder, deltas in by_holder.items():
            await self._store.correct(holder, [d for d in deltas.values() if d[1]])


def _by_node(parts: Sequence[Part]) -> Iterable[Part]:
    """What was done on the same node together, charged once."""
    found: dict[str, Part] = {}
    for part in parts:
        known = found.setdefault(part.node, part)
        if known is not part:
            known.settled_j += part.settled_j
            known.end_s = max(known.end_s, part.end_s)
    return found.values()


def _up_to(waits: deque[_Waiting], end_s: float) -> list[_Waiting]:
    """Take those out that ended by then."""
    found = []
    while waits and waits[0].part.end_s <= end_s:
        found.append(waits.popleft())
    return found


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
