"""Serving goes on while Redis is away: limits then hold per replica, and a person is told once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from secrets import token_hex
from typing import NamedTuple, TypeVar

from redis.exceptions import RedisError

from proxy.background import ended
from proxy.budgets import Charge
from proxy.store import Admission, AdmitRequest, Settlement, settled
from proxy.store_local import LocalStore
from proxy.store_redis import RedisStore

log = logging.getLogger("joulegate.store")

T = TypeVar("T")

_IDS_AT_ONCE = 1_000
# Going again within so long of coming back is the same trouble: a Redis that is slow now and then
# would be turned to and from twice a second, each time at the cost of a request's wait.
_SAME_S = 60.0
_LONGEST_WORDS = 200  # characters of what Redis said
_LONGEST = 16  # times probe_s, that it is left alone for then

# A client whose connections are torn down under it also fails in ways of its own (AttributeError):
# whatever goes wrong there, a request is served.
_AWAY = (RedisError, OSError, TimeoutError, AttributeError, RuntimeError, ValueError, TypeError)


class _Batch(NamedTuple):
    """One holder's share of what is handed over."""

    holder: str
    taken: list[tuple[Charge, int]]
    request_ids: list[str]
    mark: str


class FallbackStore:
    """A Store in Redis, and in this process while Redis does not answer.

    The first failure turns to the stand-in for all requests, so that none waits; a probe turns
    back, and adds to Redis what was used meanwhile; where Redis goes again soon, it is left alone
    for longer each time, without another warning. What several replicas use during an outage is
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
        self._pause_s = probe_s  # between probes, longer each time that it goes again soon
        self._back_s = -_SAME_S
        self._changed = changed
        self._holders: dict[str, str] = {}  # counter -> holder, of what the stand-in counts
        self._settled: dict[str, list[str]] = defaultdict(list)  # by holder, while Redis is away
        self._unsure: list[Settlement] = []
        self._handing: list[_Batch] = []
        self._probing: asyncio.Task[None] | None = None
        self._level = logging.WARNING  # once for each trouble

    async def admit(self, request: AdmitRequest) -> Admission:
        return await self._either(
            lambda: self._redis.admit(request), lambda: self._stand_in.admit(request)
        )

    async def settle(self, settlement: Settlement) -> None:
        if not self.down:
            try:
                await self._redis.settle(settlement)
                return
            except _AWAY as error:
                self._went(error)
                self._unsure.append(settlement)  # it may have come through, or may yet
        else:
            self._settled[settlement.holder].append(settlement.request_id)
        for charge in settlement.charges:
            self._holders[charge.counter] = settlement.holder
        await self._stand_in.settle(settlement)

    async def correct(self, holder: str, more: Sequence[tuple[Charge, int]]) -> None:
        if not self.down:
            try:
                await self._redis.correct(holder, more)
            except _AWAY as error:
                self._went(error)  # it may have come through: an estimate is left as it is
            return
        await self._stand_in.correct(holder, more)

    async def first(self, holder: str, name: str, until_s: float) -> bool:
        return await self._either(
            lambda: self._redis.first(holder, name, until_s),
            lambda: self._stand_in.first(holder, name, until_s),
        )

    async def hold(self, holder: str, name: str, until_s: float) -> None:
        await self._stand_in.hold(holder, name, until_s)
        await self._either(lambda: self._redis.hold(holder, name, until_s), _nothing)

    async def put(self, holder: str, cache_key: str, answer: bytes | None, ttl_s: float) -> None:
        # also here: whoever waits on a claim made while Redis was away waits in this process
        await self._stand_in.put(holder, cache_key, answer if self.down else None, ttl_s)
        await self._either(lambda: self._redis.put(holder, cache_key, answer, ttl_s), _nothing)

    async def wait(self, holder: str, cache_key: str, timeout_s: float) -> bytes | None:
        return await self._either(
            lambda: self._redis.wait(holder, cache_key, timeout_s),
            lambda: self._stand_in.wait(holder, cache_key, timeout_s),
        )

    def hold_at_most(self, cache_bytes: int) -> None:
        """Of the stand-in; Redis has its own ``maxmemory``."""
        self._stand_in.hold_at_most(cache_bytes)

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
        same = time.monotonic() - self._back_s < _SAME_S
        self._pause_s = min(2 * self._pause_s, _LONGEST * self._probe_s) if same else self._probe_s
        self._level = logging.INFO if same else logging.WARNING
        log.log(
            self._level,
            "Redis does not answer (%s): limits, budgets and the cache are kept by each replica "
            "alone until it does.",
            f"{type(error).__name__}: {str(error)[:_LONGEST_WORDS]}",
        )
        if self._changed is not None:
            self._changed(True)
        self._probing = asyncio.get_running_loop().create_task(self._probe())

    async def _probe(self) -> None:
        while self.down:
            await asyncio.sleep(self._pause_s)
            try:
                await self._redis.ping()
                await self._hand_over()
            except _AWAY:
                continue
            self._stand_in.forget_counters()
            self._holders.clear()
            self.down = False
            self._back_s = time.monotonic()
            log.log(self._level, "Redis answers again")
            if self._changed is not None:
                self._changed(False)

    async def _hand_over(self) -> None:
        """Add to Redis what was settled here, and give back what was reserved there.

        Whatever fails is sent again as it was: Redis knows by its mark what it has counted.
        """
        while self._unsure:
            one = self._unsure[0]
            await self._redis.settle(one)
            self._stand_in.take([(c, settled(c, one.took)) for c in one.charges])
            del self._unsure[0]
        while self._handing or self._gather():
            batch = self._handing[0]
            await self._redis.add(batch.holder, batch.taken, batch.request_ids, mark=batch.mark)
            self._stand_in.take(batch.taken)
            del self._handing[0]

    def _gather(self) -> list[_Batch]:
        """What is to be handed over now; empty when nothing is."""
        taken: dict[str, list[tuple[Charge, int]]] = defaultdict(list)
        for charge, amount in self._stand_in.settled_here():
            taken[self._holders[charge.counter]].append((charge, amount))
        for holder in [*taken, *(h for h in self._settled if h not in taken)]:
            ids = self._settled.pop(holder, [])
            for start in range(0, max(1, len(ids)), _IDS_AT_ONCE):
                part = ids[start : start + _IDS_AT_ONCE]
                self._handing.append(_Batch(holder, taken.pop(holder, []), part, token_hex(8)))
        return self._handing


async def _nothing() -> None:
    return None
