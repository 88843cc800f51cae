"""Serving goes on while Redis is away: limits then hold per replica, and a person is told once."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from redis.exceptions import RedisError

from proxy.background import ended
from proxy.budgets import Charge
from proxy.store import Admission, AdmitRequest, Settlement
from proxy.store_local import LocalStore
from proxy.store_redis import RedisStore

log = logging.getLogger("joulegate.store")

T = TypeVar("T")

_IDS_AT_ONCE = 1_000

_AWAY = (RedisError, OSError, TimeoutError)


class FallbackStore:
    """A Store in Redis, and in this process while Redis does not answer.

    The first failure turns to the stand-in for all requests, so that none waits; a probe turns
    back, and adds to Redis what was used meanwhile. What several replicas use during an outage is
    checked by each alone: together they may go over a limit by as many times as they are.
    """

    def __init__(
        self,
        redis: RedisStore,
        stand_in: LocalStore,
        *,
        probe_s: float = 0.5,
        changed: Callable[[bool], None] | None = None,
    ) -> None:
        """``changed`` is told True when Redis goes and False when it is back (for a metric)."""
        self.down = False
        self._redis = redis
        self._stand_in = stand_in
        self._probe_s = probe_s
        self._changed = changed
        self._holders: dict[str, str] = {}  # counter -> holder, of what the stand-in counts
        self._settled: dict[str, list[str]] = defaultdict(list)  # by holder, while Redis is away
        self._probing: asyncio.Task[None] | None = None

    async def admit(self, request: AdmitRequest) -> Admission:
        return await self._either(
            lambda: self._redis.admit(request), lambda: self._stand_in.admit(request)
        )

    async def settle(self, settlement: Settlement) -> None:
        async def here() -> None:
            for charge in settlement.charges:
                self._holders[charge.counter] = settlement.holder
            self._settled[settlement.holder].append(settlement.request_id)
            await self._stand_in.settle(settlement)

        await self._either(lambda: self._redis.settle(settlement), here)

    async def put(self, holder: str, cache_key: str, answer: bytes | None, ttl_s: float) -> None:
        # also here: whoever waits on a claim made while Redis was away waits in this process
        await self._stand_in.put(holder, cache_key, answer if self.down else None, ttl_s)
        await self._either(lambda: self._redis.put(holder, cache_key, answer, ttl_s), _nothing)

    async def wait(self, holder: str, cache_key: str, timeout_s: float) -> bytes | None:
        return await self._either(
            lambda: self._redis.wait(holder, cache_key, timeout_s),
            lambda: self._stand_in.wait(holder, cache_key, timeout_s),
        )

    async def close(self) -> None:
        await ended(self._probing)
        await self._stand_in.close()
        try:
            await self._redis.close()
        except _AWAY:
            pass

    async def _either(
        self, there: Callable[[], Awaitable[T]], here: Callable[[], Awaitable[T]]
    ) -> T:
        if not self.down:
            try:
                return await there()
            except _AWAY as error:
                self._went(error)
        return await here()

    def _went(self, error: Exception) -> None:
        if self.down:
            return
        self.down = True
        log.warning(
            "Redis does not answer (%s): limits, budgets and the cache are kept by each replica "
            "alone until it does.",
            type(error).__name__,
        )
        if self._changed is not None:
            self._changed(True)
        self._probing = asyncio.get_running_loop().create_task(self._probe())

    async def _probe(self) -> None:
        while self.down:
            await asyncio.sleep(self._probe_s)
            try:
                await self._redis.ping()
                while used := self._stand_in.settled_here():
                    await self._hand_over(used)
            except _AWAY:
                continue
            self._stand_in.forget_counters()
            self._holders.clear()
            self.down = False
            log.warning("Redis answers again")
            if self._changed is not None:
                self._changed(False)

    async def _hand_over(self, used: Sequence[tuple[Charge, int]]) -> None:
        """Add to Redis what was settled here, and give back what was reserved there."""
        by_holder: dict[str, list[tuple[Charge, int]]] = defaultdict(list)
        for charge, amount in used:
            by_holder[self._holders[charge.counter]].append((charge, amount))
        for holder, amounts in by_holder.items():
            ids = self._settled.get(holder, [])[:_IDS_AT_ONCE]
            await self._redis.add(holder, amounts, ids)
            self._stand_in.take(amounts)
            del self._settled[holder][: len(ids)]
        for holder, rest in self._settled.items():
            for start in range(0, len(rest), _IDS_AT_ONCE):
                await self._redis.add(holder, [], rest[start : start + _IDS_AT_ONCE])
        self._settled.clear()


async def _nothing() -> None:
    return None
