"""The shared state of many replicas, in Redis: one script, so one atomic round trip, a request.

All keys of one holder carry ``{holder}``, so that a cluster keeps them together. What may be lost
without harm is: a counter that is gone is read again from the ledger, a cached answer is fetched
again. Give Redis ``maxmemory-policy volatile-ttl`` or more memory than it needs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from secrets import token_hex
from typing import Any
from urllib.parse import unquote, urlsplit

import orjson
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ClusterDownError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeout

from meters.rows import clean
from proxy.background import ended
from proxy.budgets import Charge
from proxy.redis_scripts import ADMIT, CLAIM, LOOK, PUT, RAISE, SETTLE, say_damaged
from proxy.store import (
    AGAIN_S,
    KEPT_S,
    LEASE_S,
    SHARED,
    Admission,
    AdmitRequest,
    Seed,
    Settlement,
    admission,
    settled,
)

_SEED_S = 1.0  # how long the first request of a period waits for what was used before
_POLL_S = (0.02, 0.25)  # how often a follower looks for the answer, at first and later
# Questions under way at once, below the 100 connections that redis-py opens at most: beyond those
# it refuses instead of waiting, and a burst would look like an outage.
_AT_ONCE = 64

# What is settled is remembered for so long, so that settling it again counts nothing: a script
# that was given up after the time limit may still have run, or may run once a stuck Redis goes on.
_SETTLED_S = 120

_RENEW_S = LEASE_S / 5
_LONGEST_S = 3600.0  # a request that has not settled by then never will


class RedisStore:
    """A Store in Redis. Raises what redis-py raises: wrap it in ``FallbackStore`` for serving."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 0.25,
        seed: Seed | None = None,
        clock: Callable[[], float] = time.time,
        prefix: str = "joulegate",
    ) -> None:
        """``url``: ``redis://``, ``redis+sentinel://host,host/master/db`` or
        ``redis+cluster://host``, each with ``rediss`` over TLS."""
        self.client = connect(url, timeout_s)
        self._timeout_s = timeout_s
        self._seed = seed
        self._clock = clock
        self._prefix = prefix
        self._is_cluster = isinstance(self.client, RedisCluster)
        self._opened = not self._is_cluster
        self._opening = asyncio.Lock()
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._failures = 0
        self._leased: dict[str, dict[str, float]] = {}  # holder -> requests in flight, since when
        self._unread: dict[str, tuple[Charge, float]] = {}  # what the ledger did not tell
        self._reading: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._admit_script = self.client.register_script(ADMIT)
        self._settle_script = self.client.register_script(SETTLE)
        self._raise_script = self.client.register_script(RAISE)
        self._claim_script = self.client.register_script(CLAIM)
        self._put_script = self.client.register_script(PUT)
        self._look_script = self.client.register_script(LOOK)

    async def admit(self, request: AdmitRequest) -> Admission:
        now_s = self._clock()
        keys, args = self._arguments(request, now_s)
        answer: bytes | None = None
        apart = self._is_cluster and request.cache_key is not None and _shared(request.cache_key)
        if apart:  # lies with no holder: a cluster's scripts cannot reach it
            _, answer = await self._look(keys[3:5])
            keys[3] = keys[4] = self._key(request.holder, "none")
            args[3], args[4] = "0", "0"
            if answer is not None:
                args[5] = args[6]
                for at in range(7, len(args), 7):
                    args[at + 1] = args[at + 1] if args[at + 4] == "1" else "0"
                    args[at + 2] = "0"
        reply = await self._asked_to_admit(keys, args)
        if reply[0] == -1:
            await self._sow(request.charges, request.holder)
            reply = await self._asked_to_admit(keys, args)
        if self._unread and (self._reading is None or self._reading.done()):
            self._reading = asyncio.get_running_loop().create_task(self._read_again())
        denied, leads = int(reply[0]), bool(reply[1])
        if request.charges and not denied:
            self._lease(request, now_s)
        if apart and not denied and answer is None and request.claim_s > 0:
            leads, answer = await self._claim(request)
        return admission(
            request,
            denied - 1 if denied else None,
            [int(value) for value in reply[4::2]],
            [int(value) for value in reply[5::2]],
            cached=answer or reply[2],
            leads=leads,
        )

    async def settle(self, settlement: Settlement) -> None:
        if settlement.charges:
            taken = [(charge, settled(charge, settlement.took)) for charge in settlement.charges]
            ids = [settlement.request_id]
            await self.add(settlement.holder, taken, ids, mark=settlement.request_id)

    async def correct(self, holder: str, more: Sequence[tuple[Charge, int]]) -> None:
        if more:
            await self.add(holder, more, [], mark=token_hex(8), making=False)

    async def first(self, holder: str, name: str, until_s: float) -> bool:
        asked = self.client.set(self._key(holder, name), "1", nx=True, pxat=int(until_s * 1000))
        return bool(await self._timed(asked))

    async def hold(self, holder: str, name: str, until_s: float) -> None:
        await self._timed(self.client.set(self._key(holder, name), "1", pxat=int(until_s * 1000)))

    async def put(self, holder: str, cache_key: str, answer: bytes | None, ttl_s: float) -> None:
        for_ms = 0 if answer is None else max(1, int(ttl_s * 1000))
        keys = self._answer_keys(holder, cache_key)
        await self._timed(self._put_script(keys=keys, args=[str(for_ms), answer or b""]))

    async def wait(self, holder: str, cache_key: str, timeout_s: float) -> bytes | None:
        end_s = time.monotonic() + timeout_s
        pause_s, slowest_s = _POLL_S
        keys = self._answer_keys(holder, cache_key)
        while True:
            claimed, answer = await self._look(keys)
            if answer is not None or not claimed or time.monotonic() >= end_s:
                return answer if isinstance(answer, bytes) else None
            await asyncio.sleep(pause_s)
            pause_s = min(slowest_s, pause_s * 1.5)

    async def add(
        self,
        holder: str,
        taken: Sequence[tuple[Charge, int]],
        request_ids: Sequence[str],
        *,
        mark: str,
        making: bool = True,
    ) -> None:
        """Count what was taken, and give back what these requests had reserved.

        Again with the same ``mark`` it does nothing. Unless ``making``, counters that are gone
        stay gone.
        """
        leased = self._leased.get(holder)
        if leased is not None:
            for request_id in request_ids:
                leased.pop(request_id, None)
        names = ("order", "held", "margins", f"settled:{mark}")
        keys = [self._key(holder, name) for name in names]
        args = [str(_SETTLED_S)]
        for charge, amount in taken:
            keys.append(self._key(holder, charge.counter))
            known = self._sown(charge) or not making
            args += [str(amount), "0" if known else _until_ms(charge)]
        args += request_ids
        say_damaged(await self._timed(self._settle_script(keys=keys, args=args)))

    async def ping(self) -> None:
        """Returns when every part of it answers that a request may need. Raises otherwise."""
        if self._is_cluster:
            told = self.client.cluster_info(target_nodes=RedisCluster.PRIMARIES)
            states = (await self._timed(told)).values()
            if any(info.get("cluster_state") != "ok" for info in states):
                raise ClusterDownError("a node says that the cluster is not whole")
        else:
            await self._timed(self.client.ping())

    def hold_at_most(self, cache_bytes: int) -> None:
        """Redis has its own ``maxmemory``."""

    async def close(self) -> None:
        await ended(self._renewing)
        await ended(self._reading)
        await self.client.aclose()

    def _lease(self, request: AdmitRequest, now_s: float) -> None:
        self._leased.setdefault(request.holder, {})[request.request_id] = now_s
        if self._renewing is None:
            self._renewing = asyncio.get_running_loop().create_task(self._renew_ever())

    async def _renew_ever(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            try:
                await self.renew()
            except Exception:
                pass  # whoever serves notices that Redis is away, and says so

    async def renew(self) -> None:
        """Keep what requests in flight here have reserved for another ``LEASE_S``."""
        now_s = self._clock()
        until_ms = int((now_s + LEASE_S) * 1000)
        for holder, leased in list(self._leased.items()):
            for request_id in [r for r, s in leased.items() if now_s - s > _LONGEST_S]:
                del leased[request_id]
            if not leased:
                del self._leased[holder]
                continue
            ends = dict.fromkeys(leased, until_ms)
            await self._timed(self.client.zadd(self._key(holder, "order"), ends, xx=True))

    async def _timed(self, awaitable: Any) -> Any:
        """What Redis answers. The time limit counts from its turn; whoever waits for one while
        another question fails does so too, at once."""
        failures = self._failures
        async with self._turns:
            if failures != self._failures:
                awaitable.close()
                raise RedisTimeout("Redis did not answer those before")
            try:
                async with asyncio.timeout(self._timeout_s):
                    if not self._opened:
                        await self._open()
                    return await awaitable
            except (RedisConnectionError, RedisTimeout, OSError):
                self._failures += 1
                raise

    async def _open(self) -> None:
        """Learn where a cluster's slots are. redis-py breaks the connections of its first users
        when several ask at once."""
        async with self._opening:
            if not self._opened:
                await self.client.initialize()
                self._opened = True

    async def _claim(self, request: AdmitRequest) -> tuple[bool, bytes | None]:
        """Claim an answer that holders share, whose keys lie with none of them."""
        assert request.cache_key is not None
        keys = self._answer_keys(request.holder, request.cache_key)
        args = [request.request_id, str(int(request.claim_s * 1000))]
        leads, answer, damaged = await self._timed(self._claim_script(keys=keys, args=args))
        say_damaged(damaged)
        return bool(leads), answer

    async def _asked_to_admit(self, keys: list[str], args: list[str]) -> list[Any]:
        reply: list[Any] = await self._timed(self._admit_script(keys=keys, args=args))
        say_damaged(reply[3])
        return reply

    async def _look(self, keys: list[str]) -> tuple[bool, bytes | None]:
        """Whether an answer is claimed, and the answer; by their keys."""
        claimed, answer, damaged = await self._timed(self._look_script(keys=keys))
        say_damaged(damaged)
        return bool(claimed), answer

    async def _sow(self, charges: Sequence[Charge], holder: str) -> None:
        """Make the counters that the ledger knows; whoever is first makes them for all."""
        assert self._seed is not None
        for charge in charges:
            if not self._sown(charge):
                continue
            key = self._key(holder, charge.counter)
            if await self._timed(self.client.exists(key)):
                continue
            try:
                before = await asyncio.wait_for(self._seed(charge.rule, charge.period), _SEED_S)
            except Exception:
                before = 0
                self._unread[key] = charge, self._clock() + AGAIN_S
            set_once = self.client.set(key, before, nx=True, pxat=int(_until_ms(charge)))
            await self._timed(set_once)

    async def _read_again(self) -> None:
        """Raise counters to what the ledger says, whose beginnings it could not tell."""
        assert self._seed is not None
        now_s = self._clock()
        for key, (charge, at_s) in list(self._unread.items()):
            if charge.period.end_s <= now_s:
                del self._unread[key]
            if at_s > now_s or charge.period.end_s <= now_s:
                continue
            self._unread[key] = charge, now_s + AGAIN_S
            try:
                used = await asyncio.wait_for(self._seed(charge.rule, charge.period), _SEED_S)
                say_damaged(await self._timed(self._raise_script(keys=[key], args=[str(used)])))
            except Exception:
                continue
            self._unread.pop(key, None)

    def _arguments(self, request: AdmitRequest, now_s: float) -> tuple[list[str], list[str]]:
        holder = request.holder
        keys = [self._key(holder, name) for name in ("order", "held", "margins")]
        if request.cache_key is None:
            keys += [self._key(holder, "none")] * 2
        else:
            keys += self._answer_keys(holder, request.cache_key)
        counters = [self._key(holder, charge.counter) for charge in request.charges]
        held = [
            [k, str(c.amount), str(c.margin)]
            for k, c in zip(counters, request.charges, strict=True)
        ]
        held_after_hit = [
            part
            for part, c in zip(held, request.charges, strict=True)
            if c.rule.metric == "requests"
        ]
        args = [
            str(int(now_s * 1000)),
            str(int((now_s + LEASE_S) * 1000)),
            request.request_id,
            "0" if request.cache_key is None else "1",
            "0" if request.cache_key is None else str(int(request.claim_s * 1000)),
            _json(held),
            _json(held_after_hit),
        ]
        for charge in request.charges:
            args += [
                str(charge.limit),
                str(charge.amount),
                str(charge.margin),
                "1" if charge.rule.fallback_policy is None else "0",
                "1" if charge.rule.metric == "requests" else "0",
                "1" if self._sown(charge) else "0",
                _until_ms(charge),
            ]
        return keys + counters, args

    def _sown(self, charge: Charge) -> bool:
        """Whether the ledger is asked what was used before; a minute is over too soon."""
        return self._seed is not None and charge.rule.per != "minute"

    def _key(self, holder: str, name: str) -> str:
        return f"{self._prefix}:{{{_tag(holder)}}}:{clean(name)}"

    def _answer_keys(self, holder: str, cache_key: str) -> list[str]:
        return [self._cache_key(holder, cache_key), self._claim_key(holder, cache_key)]

    def _cache_key(self, holder: str, cache_key: str) -> str:
        return self._key(SHARED if _shared(cache_key) else holder, f"answer:{cache_key}")

    def _claim_key(self, holder: str, cache_key: str) -> str:
        return self._key(SHARED if _shared(cache_key) else holder, f"claim:{cache_key}")


def connect(url: str, timeout_s: float) -> Any:
    """A client for any of the addresses that ``RedisStore`` takes. Connects when first used."""
    parts = urlsplit(url)
    secure = parts.scheme.startswith("rediss")
    timeouts: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
    }
    plain = parts._replace(scheme="rediss" if secure else "redis").geturl()
    if parts.scheme.endswith("+cluster"):
        # Else redis-py closes every connection, also those others wait on, at each fifth slot that
        # has moved; with 0 it learns that slot alone.
        return RedisCluster.from_url(
            plain, retry=Retry(NoBackoff(), 2), reinitialize_steps=0, **timeouts
        )
    if parts.scheme.endswith("+sentinel"):
        path = parts.path.strip("/").split("/")
        if not path[0]:
            raise ValueError("A Sentinel address names its master: redis+sentinel://host/master")
        hosts = [_host(h) for h in parts.netloc.rpartition("@")[2].split(",")]
        options = timeouts | dict(parse_url(f"redis://?{parts.query}"))
        if secure:
            options["ssl"] = True
        sentinel = Sentinel(hosts, sentinel_kwargs=options)  # type: ignore[no-untyped-call]
        return sentinel.master_for(
            path[0],
            db=int(path[1]) if len(path) > 1 else 0,
            username=parts.username and unquote(parts.username),
            password=parts.password and unquote(parts.password),
            **options,
        )
    return Redis.from_url(plain, retry=Retry(NoBackoff(), 1), **timeouts)


def _until_ms(charge: Charge) -> str:
    """When its counter may be forgotten."""
    return str(int((charge.period.end_s + KEPT_S) * 1000))


def _host(text: str) -> tuple[str, int]:
    host, _, port = text.partition(":")
    return host, int(port or 26379)


def _shared(cache_key: str) -> bool:
    return cache_key.startswith(f"{SHARED}:")


def _tag(holder: str) -> str:
    """A holder's name without what would end the braces early."""
    return clean(holder).replace("{", "(").replace("}", ")") or "-"


def _json(parts: list[list[str]]) -> str:
    return orjson.dumps(parts).decode()
