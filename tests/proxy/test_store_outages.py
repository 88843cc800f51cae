"""Redis slow, gone, failing over, of another authority, and in parts: with the real servers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from proxy.budgets import MOST, Amounts, Charge, Rule, charges
from proxy.store import AdmitRequest, Settlement, Store
from proxy.store_fallback import FallbackStore
from proxy.store_local import LocalStore
from proxy.store_redis import RedisStore
from tests.servers import Server, move_slots, start_redis, start_redis_cluster, start_sentinel
from tests.tls import TlsEndpoint
from tests.waiting import until, until_in_loop


class Outage:
    """A store with its stand-in over one Redis, and what was said about it."""

    def __init__(
        self,
        url: str,
        caplog: pytest.LogCaptureFixture,
        holder: str = "team",
        timeout_s: float = 0.3,
    ) -> None:
        caplog.set_level(logging.WARNING)
        self.changes: list[bool] = []
        self.redis = RedisStore(url, timeout_s=timeout_s)
        self.store = FallbackStore(
            self.redis, LocalStore(degraded=True), probe_s=0.02, changed=self.changes.append
        )
        self.holder = holder
        self.rule = Rule(scope=f"team:{holder}", metric="energy_j", per="month", limit=1000.0)
        self._log = caplog
        self._number = 0

    @property
    def warnings(self) -> list[str]:
        told = [record.getMessage() for record in self._log.records]
        return [message for message in told if "does not answer" in message]

    async def ask(self, holder: str | None = None) -> AdmitRequest:
        """Admit one more request of 1 J."""
        self._number += 1
        request = AdmitRequest(
            request_id=f"r{self._number}",
            holder=holder or self.holder,
            charges=self.charges(Amounts(energy_j=1.0)),
        )
        assert (await self.store.admit(request)).allowed
        return request

    async def settle(self, request: AdmitRequest, energy_j: float) -> None:
        settled = Settlement(
            request_id=request.request_id,
            holder=request.holder,
            charges=request.charges,
            took=Amounts(energy_j=energy_j),
        )
        await self.store.settle(settled)

    async def used(self, store: Store | None = None) -> float:
        nothing = AdmitRequest(
            request_id="look", holder=self.holder, charges=self.charges(Amounts(requests=0))
        )
        return (await (store or self.store).admit(nothing)).spent[0].used / 1e6

    def charges(self, amounts: Amounts) -> list[Charge]:
        return list(charges([self.rule], amounts, time.time()))

    async def is_over(self) -> None:
        await until_in_loop(lambda: not self.store.down)


def _wait_until(server: Server, condition: Callable[[Any], bool]) -> None:
    with redis.Redis(port=server.port) as client:
        until(lambda: condition(client))


async def test_what_a_stuck_redis_did_not_acknowledge_is_counted_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = start_redis()
    outage = Outage(server.url, caplog)
    first = await outage.ask()
    server.pause()
    await outage.settle(first, 5.0)  # lies in the stuck server's buffer, and here
    assert outage.store.down
    second = await outage.ask()
    await outage.settle(second, 7.0)
    server.resume()
    await outage.is_over()
    assert await outage.used() == 12.0
    assert len(outage.warnings) == 1
    await outage.store.close()
    server.close()


class SlowLine:
    """Passes bytes to a Redis and back; ``delay_s`` is what each answer takes longer."""

    def __init__(self, port: int) -> None:
        self._to_port = port
        self.delay_s = 0.0
        self._pumps: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    async def close(self) -> None:
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection("127.0.0.1", self._to_port)
        ways = ((reader, to_there, False), (there, writer, True))
        self._pumps.update(asyncio.create_task(self._pump(*way)) for way in ways)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, late: bool
    ) -> None:
        try:
            while data := await source.read(65536):
                if late:
                    await asyncio.sleep(self.delay_s)
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()


@pytest.mark.alone
async def test_a_redis_that_is_slow_now_and_then_is_left_alone_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = start_redis()
    line = SlowLine(server.port)
    outage = Outage(await line.start(), caplog, timeout_s=0.25)
    await outage.settle(await outage.ask(), 1.0)
    away_s = []
    for _ in range(4):
        line.delay_s = 0.5
        began_s = time.monotonic()
        asked = [await outage.ask() for _ in range(20)]
        assert time.monotonic() - began_s < 1.5  # one waits for the time limit, the others do not
        assert outage.store.down
        line.delay_s = 0.0
        began_s = time.monotonic()
        await outage.is_over()
        away_s.append(time.monotonic() - began_s)
        for request in asked:
            await outage.settle(request, 1.0)
    assert outage.changes == [True, False] * 4  # the metric says each time
    assert len(outage.warnings) == 1
    assert away_s[-1] > 0.08  # at first 0.02 s between two probes
    assert await outage.used() == 81.0
    await outage.store.close()
    await line.close()
    server.close()


GARBAGE: dict[str, Callable[[Any, str], None]] = {
    "list": lambda client, key: client.lpush(key, "garbage"),
    "text": lambda client, key: client.set(key, "garbage"),
    "1e5": lambda client, key: client.set(key, "1e5"),
    "long": lambda client, key: client.set(key, "9" * 30),
    "overflowing": lambda client, key: client.set(key, "9" * 19),
    "hash": lambda client, key: client.hset(key, "r1", "garbage"),
}


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_a_damaged_value_turns_redis_off_for_nobody(
    caplog: pytest.LogCaptureFixture, redis_url: str, garbage: str
) -> None:
    outage = Outage(redis_url, caplog, holder=f"damaged-{garbage}")
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        asked = await outage.ask()
        keys = sorted(client.scan_iter(f"*damaged-{garbage}*"))
        [counter] = [key for key in keys if "energy_j" in key]
        for key in keys:
            client.delete(key)
            GARBAGE[garbage](client, key)
        await outage.settle(asked, 1.0)  # its counter begins anew with it
        for key in keys:
            client.delete(key)
            GARBAGE[garbage](client, key)
        await outage.settle(await outage.ask(), 2.0)
        assert client.get(counter) == "2000000"
    assert outage.changes == []
    told = [r.getMessage() for r in caplog.records if r.name == "joulegate.store"]
    assert any(counter in message for message in told)
    await outage.store.close()


async def test_the_largest_counter_there_may_be_is_not_damaged(
    caplog: pytest.LogCaptureFixture, redis_url: str
) -> None:
    outage = Outage(redis_url, caplog, holder="largest")
    outage.rule = Rule(scope="team:largest", metric="requests", per="month", limit=float(MOST))
    with redis.Redis.from_url(redis_url) as client:
        await outage.ask()
        [counter] = client.scan_iter("*largest*requests*")
        client.set(counter, 10**18)
        await outage.ask()
        assert client.get(counter) == str(10**18 + 1).encode()
    await outage.store.close()


async def test_a_damaged_answer_is_fetched_again(redis_url: str) -> None:
    store = RedisStore(redis_url)
    looking = {"holder": "damaged-answers", "cache_key": "k", "claim_s": 5.0}
    with redis.Redis.from_url(redis_url) as client:
        for name in ("answer", "claim"):
            client.lpush(f"joulegate:{{damaged-answers}}:{name}:k", "garbage")
        admitted = await store.admit(AdmitRequest(request_id="r1", **looking))  # type: ignore[arg-type]
        assert (admitted.cached, admitted.leads) == (None, True)
        client.lpush("joulegate:{damaged-answers}:answer:k", "garbage")
        await store.put("damaged-answers", "k", b"answer", 60.0)
        assert await store.wait("damaged-answers", "k", 0.1) == b"answer"
    await store.close()


async def test_sentinel_s_new_master_is_found_and_told_what_was_used_meanwhile(
    caplog: pytest.LogCaptureFixture,
) -> None:
    master = start_redis()
    replica = start_redis("--replicaof", "127.0.0.1", str(master.port))
    _wait_until(replica, lambda c: c.info("replication")["master_link_status"] == "up")
    sentinel = start_sentinel(master, down_after_ms=300)
    _wait_until(sentinel, lambda c: bool(c.sentinel_slaves("main")))
    outage = Outage(sentinel.url, caplog)
    before = await outage.ask()
    await outage.settle(before, 2.0)
    with redis.Redis(port=master.port) as client:
        client.wait(1, 5000)

    master.kill()
    during = await outage.ask()
    assert outage.store.down
    await outage.settle(during, 3.0)
    await outage.is_over()
    after = await outage.ask()
    await outage.settle(after, 4.0)
    assert await outage.used() == 9.0
    _wait_until(replica, lambda c: c.info("replication")["role"] == "master")
    assert outage.changes == [True, False]
    assert len(outage.warnings) == 1
    await outage.store.close()
    for server in (sentinel, replica, master):
        server.close()


async def test_a_cluster_with_a_node_gone_is_away_until_all_of_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    nodes = start_redis_cluster(3, timeout_ms=2_000)
    # Long, so that a busy machine is no outage: a node that is dead refuses at once.
    outage = Outage(nodes[0].url, caplog, timeout_s=5.0)
    await outage.settle(await outage.ask(), 2.0)
    holders = [f"team-{n}" for n in range(12)]  # some lie on each node
    for holder in holders:
        await outage.ask(holder)
    kept_on = [redis.Redis(port=node.port).dbsize() for node in nodes]
    assert all(kept_on)

    nodes[2].kill()
    for holder in holders:
        await outage.ask(holder)
    assert outage.store.down
    await asyncio.sleep(0.2)  # ten probes, each of which finds the other two nodes
    assert outage.store.down
    nodes[2].start()
    await outage.is_over()
    for holder in holders:
        await outage.ask(holder)
    assert outage.changes == [True, False]
    assert len(outage.warnings) == 1
    await outage.store.close()
    for node in nodes:
        node.close()


async def test_slots_that_move_to_other_nodes_under_load_are_no_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    nodes = start_redis_cluster(3)
    outage = Outage(nodes[0].url, caplog)
    outage.redis = RedisStore(nodes[0].url, timeout_s=20.0)
    outage.store = FallbackStore(outage.redis, LocalStore(), changed=outage.changes.append)
    await outage.ask()  # knows by now where slots are
    for n in range(4):
        holders = [f"moved-{n}-{m}" for m in range(20)]
        slots = [key_slot(holder.encode()) for holder in holders]
        to = {slot: (slot * 3 // 16384 + 1) % 3 for slot in slots}
        await asyncio.to_thread(move_slots, nodes, to)
        await asyncio.gather(*(outage.ask(holder) for holder in holders * 8))
    assert outage.changes == []
    await outage.store.close()
    for node in nodes:
        node.close()


@pytest.mark.parametrize("kind", ["redis", "cluster"])
async def test_a_burst_of_more_requests_than_connections_waits_its_turn(
    caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    nodes = start_redis_cluster(1) if kind == "cluster" else [start_redis()]
    outage = Outage(nodes[0].url, caplog)
    outage.redis = RedisStore(nodes[0].url, timeout_s=20.0)
    outage.store = FallbackStore(outage.redis, LocalStore(), changed=outage.changes.append)
    await asyncio.gather(*(outage.ask() for _ in range(400)))
    assert outage.changes == []
    assert await outage.used(outage.redis) == 400.0
    await outage.store.close()
    nodes[0].close()


@pytest.mark.alone
async def test_a_burst_that_meets_a_stuck_redis_waits_for_one_time_limit_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = start_redis()
    outage = Outage(server.url, caplog)
    await outage.ask()
    server.pause()
    started_s = time.monotonic()
    await asyncio.gather(*(outage.ask() for _ in range(1_000)))
    took_s = time.monotonic() - started_s
    server.resume()
    assert outage.store.down
    assert took_s < 12 * 0.3  # of the 16 that a thousand would take, 64 at once; one is usual
    await outage.is_over()
    await outage.store.close()
    server.close()


async def test_a_redis_with_another_authority_s_certificate_is_not_spoken_to(
    caplog: pytest.LogCaptureFixture, redis_server: Server, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    endpoint = TlsEndpoint(redis_server.port, tmp_path / "a")
    other = TlsEndpoint(redis_server.port, tmp_path / "b")
    outage = Outage(f"rediss://127.0.0.1:{endpoint.port}/0?ssl_ca_certs={other.authority}", caplog)
    await outage.ask()
    assert outage.store.down
    assert endpoint.handshakes == 0
    await outage.store.close()
    endpoint.close()
    other.close()
