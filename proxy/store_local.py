"""The shared state of a single replica, in memory."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from proxy.background import ended
from proxy.budgets import Charge
from proxy.store import (
    AGAIN_S,
    KEPT_S,
    Admission,
    AdmitRequest,
    Seed,
    Settlement,
    admission,
    settled,
)

ENTRY_BYTES = 400  # what the key and the table take beside an answer
HELD_S = 3600.0  # after which a reservation is given back whose request never settled
_SEED_S = 1.0  # how long the first request of a period waits for what was used before


class Counter:
    """What was used in one period: before this process, settled, and reserved in flight."""

    __slots__ = ("before", "charge", "margins", "reserved", "settled")

    def __init__(self, charge: Charge) -> None:
        self.before = 0
        self.settled = 0
        self.reserved = 0
        self.margins = 0
        self.charge = charge  # the first of it; its rule and period are those of all

    @property
    def used(self) -> int:
        return self.before + self.settled + self.reserved


class LocalStore:
    """A Store in this process; used from one event loop, so nothing needs a lock."""

    def __init__(
        self,
        *,
        cache_bytes: int = 64 * 1024 * 1024,
        seed: Seed | None = None,
        clock: Callable[[], float] = time.time,
        degraded: bool = False,
    ) -> None:
        self.counters: dict[str, Counter] = {}
        self._held: dict[str, tuple[float, Sequence[Charge]]] = {}
        self._cache: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._cached_bytes = 0
        self._claims: dict[str, tuple[asyncio.Event, float]] = {}
        self._asked: dict[str, float] = {}  # names that somebody was first to ask for
        self._seed = seed
        self._sowing: dict[str, asyncio.Future[None]] = {}  # counters that the ledger is asked for
        self._again: set[asyncio.Task[None]] = set()
        self._unread: dict[str, float] = {}  # counters it did not know of, and when to ask again
        self._clock = clock
        self._degraded = degraded
        self._swept_s = clock()

    async def admit(self, request: AdmitRequest) -> Admission:
        if self._seed is not None:
            await self._sow(request.charges)
        now_s = self._clock()
        self._sweep(now_s)
        answer = None if request.cache_key is None else self._get(request.cache_key, now_s)
        held: Sequence[Charge] = request.charges
        if answer is not None:
            held = [
                c if c.rule.metric == "requests" else c._replace(amount=0, margin=0) for c in held
            ]
        counters = [self._counter(c) for c in held]
        used = [c.used for c in counters]
        margins = [c.margins for c in counters]
        for index, charge in enumerate(held):
            limit, have = charge.limit, used[index] + margins[index]
            if (
                (have >= limit or have + charge.amount > limit)
                and charge.rule.fallback_policy is None
                and (answer is None or charge.rule.metric == "requests")
            ):
                return admission(
                    request, index, used, margins, cached=answer, degraded=self._degraded
                )
        for index, charge in enumerate(held):
            counter = counters[index]
            counter.reserved += charge.amount
            counter.margins += charge.margin
            used[index] += charge.amount
        if held:
            self._held[request.request_id] = (now_s + HELD_S, held)
        leads = answer is not None or self._claim(request, now_s)
        return admission(
            request, None, used, margins, cached=answer, leads=leads, degraded=self._degraded
        )

    async def settle(self, settlement: Settlement) -> None:
        self._release(settlement.request_id)
        for charge in settlement.charges:
            self._counter(charge).settled += settled(charge, settlement.took)

    async def correct(self, holder: str, more: Sequence[tuple[Charge, int]]) -> None:
        for charge, amount in more:
            if charge.counter in self.counters:
                self.counters[charge.counter].settled += amount

    async def first(self, holder: str, name: str, until_s: float) -> bool:
        if self._asked.get(name, 0.0) > self._clock():
            return False
        self._asked[name] = until_s
        return True

    async def hold(self, holder: str, name: str, until_s: float) -> None:
        self._asked[name] = until_s

    async def put(self, holder: str, cache_key: str, answer: bytes | None, ttl_s: float) -> None:
        if answer is not None and len(answer) + ENTRY_BYTES <= self._cache_bytes:
            self._drop(cache_key)
            self._cache[cache_key] = (answer, self._clock() + ttl_s)
            self._cached_bytes += len(answer) + ENTRY_BYTES
            self.hold_at_most(self._cache_bytes)
        claim = self._claims.pop(cache_key, None)
        if claim is not None:
            claim[0].set()

    async def wait(self, holder: str, cache_key: str, timeout_s: float) -> bytes | None:
        claim = self._claims.get(cache_key)
        if claim is not None:
            limit_s = min(timeout_s, max(0.0, claim[1] - self._clock()))
            try:
                await asyncio.wait_for(claim[0].wait(), limit_s)
            except TimeoutError:
                return None
        return self._get(cache_key, self._clock())

    def hold_at_most(self, cache_bytes: int) -> None:
        """Keep answers of so many bytes together from now on, those that were asked for last."""
        self._cache_bytes = cache_bytes
        while self._cached_bytes > cache_bytes:
            self._drop(next(iter(self._cache)))

    async def close(self) -> None:
        for task in list(self._again):
            await ended(task)
        for event, _ in self._claims.values():
            event.set()

    def settled_here(self) -> list[tuple[Charge, int]]:
        """What was settled in this process, by counter."""
        return [(c.charge, c.settled) for c in self.counters.values() if c.settled]

    def take(self, amounts: Sequence[tuple[Charge, int]]) -> None:
        """These amounts are counted elsewhere now."""
        for charge, amount in amounts:
            self.counters[charge.counter].settled -= amount

    def forget_counters(self) -> None:
        """Count elsewhere from now on; requests in flight settle there."""
        self.counters.clear()
        self._held.clear()

    async def _sow(self, charges: Sequence[Charge]) -> None:
        assert self._seed is not None
        for charge in charges:
            if charge.rule.per == "minute":
                continue
            if charge.counter not in self.counters:
                self._counter(charge)  # now, so that only one request asks
                self._sowing[charge.counter] = asyncio.ensure_future(self._before(charge))
            elif self._unread.get(charge.counter, math.inf) <= self._clock():
                self._unread[charge.counter] = math.inf
                task = asyncio.get_running_loop().create_task(self._before(charge))
                self._again.add(task)
                task.add_done_callback(self._again.discard)
            asked = self._sowing.get(charge.counter)
            if asked is not None:  # who comes meanwhile must not find the counter empty
                await asyncio.shield(asked)

    async def _before(self, charge: Charge) -> None:
        assert self._seed is not None
        try:
            before = await asyncio.wait_for(self._seed(charge.rule, charge.period), _SEED_S)
            counter = self.counters.get(charge.counter)
            if counter is not None:  # what was counted since the ledger knows by now
                counter.before = max(0, before - counter.settled - counter.reserved)
            self._unread.pop(charge.counter, None)
        except Exception:
            self._unread[charge.counter] = self._clock() + AGAIN_S
        finally:
            self._sowing.pop(charge.counter, None)

    def _counter(self, charge: Charge) -> Counter:
        counter = self.counters.get(charge.counter)
        if counter is None:
            counter = self.counters[charge.counter] = Counter(charge)
        return counter

    def _release(self, request_id: str) -> None:
        _, charges = self._held.pop(request_id, (0.0, ()))
        for charge in charges:
            if charge.counter in self.counters:
                counter = self.counters[charge.counter]
                counter.reserved -= charge.amount
                counter.margins -= charge.margin

    def _claim(self, request: AdmitRequest, now_s: float) -> bool:
        if request.cache_key is None or request.claim_s <= 0:
            return True
        claim = self._claims.get(request.cache_key)
        if claim is not None and claim[1] > now_s:
            return False
        self._claims[request.cache_key] = (asyncio.Event(), now_s + request.claim_s)
        return True

    def _get(self, key: str, now_s: float) -> bytes | None:
        found = self._cache.get(key)
        if found is None:
            return None
        answer, until_s = found
        if until_s <= now_s:
            self._drop(key)
            return None
        self._cache.move_to_end(key)
        return answer

    def _drop(self, key: str) -> None:
        found = self._cache.pop(key, None)
        if found is not None:
            self._cached_bytes -= len(found[0]) + ENTRY_BYTES

    def _sweep(self, now_s: float) -> None:
        """Forget periods that are over and leases that ran out, once a minute."""
        if now_s - self._swept_s < 60:
            return
        self._swept_s = now_s
        for request_id in [r for r, (until_s, _) in self._held.items() if until_s < now_s]:
            self._release(request_id)
        for name in [n for n, c in self.counters.items() if c.charge.period.end_s + KEPT_S < now_s]:
            del self.counters[name]
            self._unread.pop(name, None)
        for name in [n for n, until_s in self._asked.items() if until_s < now_s]:
            del self._asked[name]
        for key in [k for k, (_, until_s) in self._claims.items() if until_s < now_s]:
            self._claims.pop(key)[0].set()
