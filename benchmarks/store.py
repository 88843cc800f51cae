"""What a request costs Redis: microseconds of its processor time for each script, by budgets.

Redis runs one script at a time, so its own time is what bounds requests a second.

    python -m benchmarks.store --requests 5000
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from proxy.budgets import Amounts, Metric, Rule, charges
from proxy.store import AdmitRequest, Settlement
from proxy.store_redis import RedisStore
from tests.servers import start_redis

METRICS: tuple[Metric, ...] = ("tokens", "energy_j", "carbon_g", "money_usd", "requests")
AMOUNTS = Amounts(requests=1, tokens=500, energy_j=20.0, carbon_g=0.01, money_usd=0.001)
MOST = Amounts(requests=1, tokens=4_000, energy_j=200.0, carbon_g=0.1, money_usd=0.01)


async def measure(url: str, budgets: int, count: int) -> tuple[float, float, float]:
    """Redis's µs to admit and to settle, and this process's µs of time for both."""
    store = RedisStore(url, timeout_s=10.0)
    names = [(metric, per) for per in ("month", "day") for metric in METRICS][:budgets]
    rules = [
        Rule(
            scope=f"team:b{budgets}",
            metric=metric,
            per=per,  # type: ignore[arg-type]
            limit=1e12,
            reserve_most=True,
        )
        for metric, per in names
    ]
    asked = [
        AdmitRequest(
            request_id=f"b{budgets}-{number}",
            holder=f"b{budgets}",
            charges=charges(rules, AMOUNTS, time.time(), MOST),
            cache_key=f"key-{number}",
            claim_s=60.0,
        )
        for number in range(count)
    ]
    began_s = time.perf_counter()
    await store.client.config_resetstat()
    for one in asked:
        await store.admit(one)
    admit_us = await _script_us(store.client)
    await store.client.config_resetstat()
    for one in asked:
        await store.settle(
            Settlement(
                request_id=one.request_id, holder=one.holder, charges=one.charges, took=AMOUNTS
            )
        )
    settle_us = await _script_us(store.client)
    took_us = (time.perf_counter() - began_s) / count * 1e6
    await store.close()
    return admit_us, settle_us, took_us


async def _script_us(client: Any) -> float:
    stats = await client.info("commandstats")
    return float(stats.get("cmdstat_evalsha", {}).get("usec_per_call", 0.0))


async def run(count: int) -> None:
    server = start_redis()
    try:
        for budgets in (0, 1, 4, 8):
            admit_us, settle_us, took_us = await measure(server.url, budgets, count)
            total_us = admit_us + settle_us
            print(
                f"{budgets} budgets: {admit_us:5.1f} µs of Redis to admit, {settle_us:5.1f} to "
                f"settle: {1e6 / total_us:8,.0f} requests/s of one Redis; one after the other "
                f"{took_us:5.0f} µs of time"
            )
    finally:
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=5_000)
    asyncio.run(run(parser.parse_args().requests))


if __name__ == "__main__":
    main()
