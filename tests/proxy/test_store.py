"""One contract for the stores, in process and in Redis."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from proxy.budgets import Amounts, Metric, Per, Period, Rule, charges, refusal
from proxy.store import AGAIN_S, LEASE_S, Admission, AdmitRequest, Settlement, Store
from proxy.store_fallback import FallbackStore
from proxy.store_local import ENTRY_BYTES, HELD_S, LocalStore
from proxy.store_redis import RedisStore
from tests.servers import Server, start_redis, start_redis_cluster, start_sentinel
from tests.tls import TlsEndpoint
from tests.waiting import until_in_loop

NOW_S = 1_790_000_000.0
_numbers = itertools.count()


class Clock:
    now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


class Desk:
    """Asks a store for one holder, at the time of a clock that tests move."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.holder = f"team-{next(_numbers)}"

    def rule(
        self, limit: float, metric: Metric = "energy_j", per: Per = "day", **more: object
    ) -> Rule:
        return Rule(scope=f"team:{self.holder}", metric=metric, per=per, limit=limit, **more)  # type: ignore[arg-type]

    def ask(self, rules: list[Rule], request_id: str | None = None, **more: object) -> AdmitRequest:
        amounts = more.pop("amounts", Amounts(energy_j=1.0, tokens=100))
        most = more.pop("most", None)
        return AdmitRequest(
            request_id=request_id or f"r{next(_numbers)}",
            holder=self.holder,
            charges=charges(rules, amounts, self.clock(), most),  # type: ignore[arg-type]
            **more,  # type: ignore[arg-type]
        )

    async def admit(self, rules: list[Rule], **more: object) -> Admission:
        return await self.store.admit(self.ask(rules, **more))  # type: ignore[arg-type]

    async def settle(self, request: AdmitRequest, took: Amounts) -> None:
        await self.store.settle(
            Settlement(
                request_id=request.request_id,
                holder=self.holder,
                charges=request.charges,
                took=took,
            )
        )

    async def used(self, rule: Rule) -> float:
        """How full a counter is, seen by a request that takes nothing."""
        seen = await self.admit(
            [rule.__class__(**{**_fields(rule), "fallback_policy": "x"})],
            amounts=Amounts(requests=0),
        )
        return seen.spent[0].used / 1e6


def _fields(rule: Rule) -> dict[str, object]:
    return {name: getattr(rule, name) for name in rule.__struct_fields__}


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    nodes = start_redis_cluster(3)
    yield nodes[0].url
    for node in nodes:
        node.close()


@pytest.fixture(scope="module")
def sentinel_url() -> Iterator[str]:
    master = start_redis()
    server = start_sentinel(master)
    yield server.url
    server.close()
    master.close()


@pytest.fixture(scope="module")
def tls_url(redis_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    endpoint = TlsEndpoint(redis_server.port, tmp_path_factory.mktemp("tls"))
    yield f"rediss://127.0.0.1:{endpoint.port}/0?ssl_ca_certs={endpoint.authority}"
    assert endpoint.handshakes
    endpoint.close()


@pytest.fixture(params=["local", "redis", "tls", "cluster", "sentinel"])
def make_store(
    request: pytest.FixtureRequest,
) -> Callable[..., Store]:
    def make(**more: object) -> Store:
        if request.param == "local":
            return LocalStore(**more)  # type: ignore[arg-type]
        url = request.getfixturevalue(f"{request.param}_url")
        return RedisStore(url, timeout_s=20.0, prefix=f"t{next(_numbers)}-{time.time()}", **more)  # type: ignore[arg-type]

    return make


@pytest.fixture
async def desk(make_store: Callable[..., Store]) -> AsyncIterator[Desk]:
    clock = Clock()
    clock.now_s = time.time()  # Redis expires by its own clock
    store = make_store(clock=clock)
    yield Desk(store, clock)
    await store.close()


async def test_requests_in_flight_share_what_is_left(desk: Desk) -> None:
    rule = desk.rule(limit=10.0)
    answers = await asyncio.gather(*(desk.admit([rule]) for _ in range(50)))
    assert sum(a.allowed for a in answers) == 10
    refused = next(a for a in answers if not a.allowed)
    assert refused.denied is not None
    assert refusal(refused.denied, desk.clock()).code == "budget_exceeded"


async def test_what_a_request_may_take_at_most_leaves_no_room_for_others(desk: Desk) -> None:
    rule = desk.rule(limit=10.0, reserve_most=True, soft=0.5)
    most = Amounts(energy_j=50.0)
    first = desk.ask([rule], most=most)
    admitted = await desk.store.admit(first)
    assert admitted.allowed, "alone it only needs room for what is expected"
    assert admitted.warnings == [], "what may come of it is not used up"
    second = await desk.admit([rule], most=most)
    assert second.denied is not None
    told = refusal(second.denied, desk.clock())
    assert (told.code, told.retry_after_s, told.final) == ("rate_limit_exceeded", 5.0, False)
    assert "try again when they have ended" in told.message
    assert await desk.used(rule) == 1.0

    await desk.settle(first, Amounts(energy_j=3.0))
    again = desk.ask([rule], most=most)
    assert (await desk.store.admit(again)).allowed
    await desk.settle(again, Amounts(energy_j=7.0))
    full = (await desk.admit([rule], most=most)).denied
    assert full is not None
    assert refusal(full, desk.clock()).code == "budget_exceeded"


async def test_a_margin_ends_with_its_reservation(desk: Desk) -> None:
    rule = desk.rule(limit=10.0, per="month", reserve_most=True)
    dead = desk.ask([rule], most=Amounts(energy_j=50.0))
    assert (await desk.store.admit(dead)).allowed
    await desk.store.put(desk.holder, "k", b"answer", 100_000.0)
    hit = desk.ask([rule], most=Amounts(energy_j=50.0), cache_key="k")
    assert (await desk.store.admit(hit)).cached == b"answer"
    desk.clock.now_s += 61 + (HELD_S if isinstance(desk.store, LocalStore) else LEASE_S)
    later = desk.ask([rule], most=Amounts(energy_j=2.0))
    if later.charges[0].counter != dead.charges[0].counter:
        pytest.skip("the month ended meanwhile")
    assert (await desk.store.admit(later)).allowed
    beside = await desk.admit([rule])
    assert beside.allowed
    assert beside.spent[0].margins == 1_000_000, "that of the last one, and of no other"


async def test_a_fallback_is_asked_for_when_others_may_use_up_what_is_left(desk: Desk) -> None:
    rule = desk.rule(limit=10.0, reserve_most=True, fallback_policy="least_energy")
    first = await desk.admit([rule], most=Amounts(energy_j=12.0))
    assert first.fallback_policy is None
    assert (await desk.admit([rule])).fallback_policy == "least_energy"


async def test_settling_replaces_the_estimate_by_what_was_taken(desk: Desk) -> None:
    rule = desk.rule(limit=10.0)
    first = desk.ask([rule], amounts=Amounts(energy_j=8.0))
    assert (await desk.store.admit(first)).allowed
    assert not (await desk.admit([rule], amounts=Amounts(energy_j=8.0))).allowed
    await desk.settle(first, Amounts(energy_j=1.5))
    assert await desk.used(rule) == 1.5
    assert (await desk.admit([rule], amounts=Amounts(energy_j=8.0))).allowed


async def test_what_is_not_known_in_the_end_keeps_its_estimate(desk: Desk) -> None:
    rule = desk.rule(limit=10.0)
    request = desk.ask([rule], amounts=Amounts(energy_j=3.0))
    await desk.store.admit(request)
    await desk.settle(request, Amounts(energy_j=None))
    assert await desk.used(rule) == 3.0


async def test_a_refusal_reserves_nowhere(desk: Desk) -> None:
    wide, narrow = desk.rule(limit=100.0), desk.rule(limit=0.5, per="month")
    refused = await desk.admit([wide, narrow])
    assert refused.denied is not None
    assert refused.denied.charge.rule == narrow
    assert await desk.used(wide) == 0.0


async def test_a_full_budget_refuses_also_what_it_cannot_estimate(desk: Desk) -> None:
    rule = desk.rule(limit=2.0)
    request = desk.ask([rule], amounts=Amounts(energy_j=1.0))
    await desk.store.admit(request)
    await desk.settle(request, Amounts(energy_j=2.5))
    assert not (await desk.admit([rule], amounts=Amounts(energy_j=None))).allowed


async def test_past_the_soft_share_it_warns(desk: Desk) -> None:
    rule = desk.rule(limit=10.0, soft=0.5)
    assert (await desk.admit([rule], amounts=Amounts(energy_j=4.0))).warnings == []
    second = await desk.admit([rule], amounts=Amounts(energy_j=2.0))
    assert [w.share for w in second.warnings] == [0.6]
    assert second.budget_left == pytest.approx(0.4)


async def test_a_budget_may_ask_for_a_thriftier_policy_instead(desk: Desk) -> None:
    rule = desk.rule(limit=1.5, fallback_policy="least_energy")
    assert (await desk.admit([rule])).fallback_policy is None
    over = await desk.admit([rule])
    assert over.allowed
    assert over.fallback_policy == "least_energy"


async def test_periods_do_not_share(desk: Desk) -> None:
    rule = desk.rule(limit=1.0, metric="requests", per="minute")
    desk.clock.now_s = desk.clock() // 60 * 60 + 5
    assert (await desk.admit([rule])).allowed
    assert not (await desk.admit([rule])).allowed
    desk.clock.now_s += 60
    assert (await desk.admit([rule])).allowed


async def test_the_reservations_of_the_dead_are_given_back(desk: Desk) -> None:
    rule = desk.rule(limit=1.0, per="month", timezone="UTC")
    request = desk.ask([rule])
    assert (await desk.store.admit(request)).allowed
    assert not (await desk.admit([rule])).allowed
    desk.clock.now_s += 61 + (HELD_S if isinstance(desk.store, LocalStore) else LEASE_S)
    later = desk.ask([rule])
    if later.charges[0].counter != request.charges[0].counter:
        pytest.skip("the month ended meanwhile")
    assert (await desk.store.admit(later)).allowed


async def test_the_reservations_of_the_living_are_renewed(
    make_store: Callable[..., Store],
) -> None:
    clock = Clock()
    clock.now_s = time.time()
    store = make_store(clock=clock)
    if not isinstance(store, RedisStore):
        pytest.skip("a process that died holds nothing")
    desk = Desk(store, clock)
    rule = desk.rule(limit=1.0, per="month", reserve_most=True)
    request = desk.ask([rule], amounts=Amounts(energy_j=0.1), most=Amounts(energy_j=1.0))
    assert (await store.admit(request)).allowed
    for _ in range(3):
        clock.now_s += LEASE_S * 0.9
        await store.renew()
    later = desk.ask([rule])
    if later.charges[0].counter != request.charges[0].counter:
        pytest.skip("the month ended meanwhile")
    assert not (await store.admit(later)).allowed
    await desk.settle(request, Amounts(energy_j=0.0))
    await store.renew()  # not what has ended
    assert await desk.used(rule) == 0.0
    assert (await store.admit(later)).allowed
    await store.close()


async def test_admitting_a_request_again_reserves_once(desk: Desk) -> None:
    if isinstance(desk.store, LocalStore):
        pytest.skip("nothing is sent twice within a process")
    rule = desk.rule(limit=10.0)
    request = desk.ask([rule])
    await desk.store.admit(request)
    await desk.store.admit(request)
    assert await desk.used(rule) == 1.0


async def test_an_answer_comes_back_until_it_is_too_old(desk: Desk) -> None:
    await desk.store.put(desk.holder, "k", b"\x00answer\xff", 100.0)
    assert (await desk.admit([], cache_key="k")).cached == b"\x00answer\xff"
    assert (await desk.admit([], cache_key="other")).cached is None
    await desk.store.put(desk.holder, "k", b"new", 0.02)
    desk.clock.now_s += 1.0
    await asyncio.sleep(0.03)  # Redis has its own clock, and no other way to move it
    assert (await desk.admit([], cache_key="k")).cached is None


async def test_answers_of_one_holder_are_not_another_s(desk: Desk) -> None:
    if isinstance(desk.store, LocalStore):
        pytest.skip("keys hold the team already; the folder of a holder is Redis's")
    await desk.store.put(desk.holder, "k", b"secret", 100.0)
    stranger = AdmitRequest(request_id="x", holder="stranger", cache_key="k")
    assert (await desk.store.admit(stranger)).cached is None


async def test_shared_answers_are_found_by_every_holder(desk: Desk) -> None:
    await desk.store.put(desk.holder, "shared:k", b"for all", 100.0)
    stranger = AdmitRequest(request_id="x", holder="stranger", cache_key="shared:k")
    assert (await desk.store.admit(stranger)).cached == b"for all"


async def test_an_answer_from_the_cache_uses_requests_and_no_energy(desk: Desk) -> None:
    energy, count = desk.rule(limit=0.5), desk.rule(limit=1.0, metric="requests")
    await desk.store.put(desk.holder, "k", b"answer", 100.0)
    hit = await desk.admit([energy, count], cache_key="k")
    assert hit.allowed
    assert hit.cached == b"answer"
    assert await desk.used(energy) == 0.0
    again = await desk.admit([energy, count], cache_key="k")
    assert again.denied is not None
    assert again.denied.charge.rule.metric == "requests"


async def test_one_leads_and_the_others_get_its_answer(desk: Desk) -> None:
    answers = await asyncio.gather(
        *(desk.admit([], cache_key="k", claim_s=30.0) for _ in range(10))
    )
    assert sum(a.leads for a in answers) == 1
    waiting = [asyncio.create_task(desk.store.wait(desk.holder, "k", 10.0)) for _ in range(9)]
    await asyncio.sleep(0)
    await desk.store.put(desk.holder, "k", b"once", 100.0)
    assert await asyncio.gather(*waiting) == [b"once"] * 9


async def test_one_leads_for_an_answer_that_holders_share(desk: Desk) -> None:
    key = f"shared:{desk.holder}"
    asked = [desk.ask([], cache_key=key, claim_s=30.0) for _ in range(5)]
    asked += [
        AdmitRequest(request_id=f"o{n}", holder=f"other-{n}", cache_key=key, claim_s=30.0)
        for n in range(5)
    ]
    answers = await asyncio.gather(*(desk.store.admit(request) for request in asked))
    assert sum(a.leads for a in answers) == 1
    waiting = asyncio.create_task(desk.store.wait("other-1", key, 10.0))
    await desk.store.put(desk.holder, key, b"once", 100.0)
    assert await waiting == b"once"


async def test_settling_again_counts_once(desk: Desk) -> None:
    if isinstance(desk.store, LocalStore):
        pytest.skip("nothing is sent twice within a process")
    rule = desk.rule(limit=10.0)
    request = desk.ask([rule])
    await desk.store.admit(request)
    await desk.settle(request, Amounts(energy_j=3.0))
    await desk.settle(request, Amounts(energy_j=3.0))
    assert await desk.used(rule) == 3.0


async def test_when_the_leader_has_no_answer_the_others_stop_waiting(desk: Desk) -> None:
    await desk.admit([], cache_key="k", claim_s=30.0)
    waiting = asyncio.create_task(desk.store.wait(desk.holder, "k", 10.0))
    await asyncio.sleep(0)
    await desk.store.put(desk.holder, "k", None, 0.0)
    assert await waiting is None
    assert (await desk.admit([], cache_key="k", claim_s=30.0)).leads


async def test_a_follower_does_not_wait_longer_than_it_said(desk: Desk) -> None:
    await desk.admit([], cache_key="k", claim_s=30.0)
    assert await desk.store.wait(desk.holder, "k", 0.05) is None


async def test_a_new_counter_begins_with_what_the_ledger_knows(
    make_store: Callable[..., Store],
) -> None:
    asked: list[tuple[Rule, Period]] = []

    async def seed(rule: Rule, at: Period) -> int:
        asked.append((rule, at))
        return 8_000_000

    clock = Clock()
    clock.now_s = time.time()
    store = make_store(clock=clock, seed=seed)
    desk = Desk(store, clock)
    rule = desk.rule(limit=10.0)
    assert (await desk.admit([rule])).allowed
    assert (await desk.admit([rule])).allowed
    assert not (await desk.admit([rule])).allowed
    assert len(asked) == 1
    await store.close()


async def test_without_the_ledger_a_counter_begins_at_nothing_and_is_raised_once_it_answers(
    make_store: Callable[..., Store],
) -> None:
    asked, away = 0, True

    async def seed(rule: Rule, at: Period) -> int:
        nonlocal asked
        asked += 1
        if away:
            raise OSError("the ledger is away")
        return 8_000_000  # what was used before, and the two that were settled since

    clock = Clock()
    clock.now_s = time.time()
    store = make_store(clock=clock, seed=seed)
    desk = Desk(store, clock)
    rule = desk.rule(limit=10.0, per="month")
    for _ in range(2):
        request = desk.ask([rule])
        assert (await store.admit(request)).allowed
        await desk.settle(request, Amounts(energy_j=1.0))
    assert (asked, await desk.used(rule)) == (1, 2.0)
    away = False
    assert (await desk.used(rule), asked) == (2.0, 1), "not asked again at once"
    clock.now_s += AGAIN_S
    await desk.used(rule)
    await until_in_loop(lambda: asked == 2)
    for _ in range(100):
        if await desk.used(rule) == 8.0:
            break
        await asyncio.sleep(0.01)
    clock.now_s += AGAIN_S
    assert (await desk.used(rule), asked) == (8.0, 2), "asked until it has told, and no more"
    await store.close()


async def test_memory_for_answers_is_bounded_and_the_least_used_goes_first() -> None:
    store = LocalStore(cache_bytes=3 * (30 + ENTRY_BYTES))
    for key in "abc":
        await store.put("t", key, b"x" * 30, 60.0)
    await store.admit(AdmitRequest(request_id="1", holder="t", cache_key="a"))
    await store.put("t", "d", b"x" * 30, 60.0)
    found = {
        key: (await store.admit(AdmitRequest(request_id=key, holder="t", cache_key=key))).cached
        for key in "abcd"
    }
    assert [key for key, answer in found.items() if answer] == ["a", "c", "d"]
    await store.put("t", "big", b"x" * 2000, 60.0)
    assert (await store.admit(AdmitRequest(request_id="2", holder="t", cache_key="a"))).cached


async def test_memory_for_answers_can_be_changed_at_any_time() -> None:
    store = LocalStore(cache_bytes=3 * (30 + ENTRY_BYTES))
    for key in "abc":
        await store.put("t", key, b"x" * 30, 60.0)
    store.hold_at_most(2 * (30 + ENTRY_BYTES))
    look = [AdmitRequest(request_id=key, holder="t", cache_key=key) for key in "abc"]
    assert [(await store.admit(one)).cached is not None for one in look] == [False, True, True]


@pytest.fixture
def own_redis() -> Iterator[Server]:
    """A Redis that the test may kill."""
    server = start_redis()
    yield server
    server.close()


@pytest.mark.alone
@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_while_redis_is_away_serving_goes_on_and_nothing_used_is_lost(
    own_redis: Server, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    clock = Clock()
    clock.now_s = time.time()
    changes: list[bool] = []
    store = FallbackStore(
        RedisStore(own_redis.url, timeout_s=0.2, clock=clock),
        LocalStore(clock=clock, degraded=True),
        probe_s=0.02,
        changed=changes.append,
    )
    desk = Desk(store, clock)
    rule = desk.rule(limit=100.0)
    before, during = desk.ask([rule]), desk.ask([rule])
    assert not (await store.admit(before)).degraded

    own_redis.pause() if how == "pause" else own_redis.kill()
    start_s = time.monotonic()
    assert (await store.admit(during)).degraded
    assert time.monotonic() - start_s < 2.0
    start_s = time.monotonic()
    for _ in range(20):
        assert (await desk.admit([rule])).allowed
    assert time.monotonic() - start_s < 2.0, "of 4 s: only the first request waits"
    await desk.settle(before, Amounts(energy_j=5.0))
    await store.put(desk.holder, "k", b"answer", 60.0)
    assert (await desk.admit([], cache_key="k")).cached == b"answer"

    own_redis.resume() if how == "pause" else own_redis.start()
    await until_in_loop(lambda: not store.down)
    await desk.settle(during, Amounts(energy_j=7.0))
    seen = await desk.admit([rule], amounts=Amounts(requests=0))
    assert not seen.degraded
    assert seen.spent[0].used / 1e6 == 12.0
    assert changes == [True, False]
    told = [r.getMessage() for r in caplog.records]
    assert len([m for m in told if "does not answer" in m]) == 1
    await store.close()


async def test_a_flushed_redis_is_told_again_what_the_ledger_knows(own_redis: Server) -> None:
    async def seed(rule: Rule, at: Period) -> int:
        return 4_000_000

    clock = Clock()
    clock.now_s = time.time()
    redis = RedisStore(own_redis.url, timeout_s=5.0, seed=seed, clock=clock)
    desk = Desk(redis, clock)
    rule = desk.rule(limit=10.0)
    request = desk.ask([rule])
    await redis.admit(request)
    await redis.client.flushall()
    await desk.settle(request, Amounts(energy_j=1.0))  # what it settles is in the ledger as well
    assert await desk.used(rule) == 4.0
    await redis.close()
