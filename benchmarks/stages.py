"""Where the processor time of a request goes, stage by stage.

``python -m benchmarks.stages``: Joulegate as `bench-gateway` sets it up (keys, limits, budgets,
four candidates, cache, ledger), in this process and without sockets. Each stage is called over and
over with what a 1 KB chat gives it, and its CPU time is the best of many rounds; the whole path is
then taken with an upstream that answers at once. What is missing between the two and
`bench-gateway` is the server, the client, the kernel and the threads behind them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import uvloop

from benchmarks.contestants import KEY, joulegate
from benchmarks.load import template
from benchmarks.mock_upstream import CHAT
from estimators.text import coarse_task
from proxy import cache, features, serving, usage_records
from proxy.app import Proxy
from proxy.flight import Flight
from proxy.upstream import Upstream
from proxy.wishes import wishes_in

ANSWER = CHAT.partition(b"\r\n\r\n")[2]
HEADERS = [
    (b"host", b"127.0.0.1:4000"),
    (b"authorization", b"Bearer " + KEY.encode()),
    (b"content-type", b"application/json"),
]


class Canned:
    """An answer with what the request path uses of an aiohttp response."""

    status = 200
    closed = True
    headers: ClassVar = {"content-type": "application/json", "content-length": str(len(ANSWER))}
    raw_headers = ((b"content-type", b"application/json"),)

    async def read(self) -> bytes:
        return ANSWER

    def close(self) -> None:
        pass


class AtOnce(Upstream):
    """An upstream client that has the answer already."""

    async def post(self, *_: Any) -> Any:
        return Canned()


def proxy_of(folder: Path) -> Proxy:
    """Joulegate with everything on, and no upstream behind it."""
    (folder / "state").mkdir()
    config = joulegate(folder, 1, "http://127.0.0.1:9")[-1]
    prepared = serving.prepare(config)
    quiet = msgspec.structs.replace(prepared.settings.retries, health_check_s=0)
    settings = msgspec.structs.replace(prepared.settings, retries=quiet)
    proxy = Proxy(settings, prepared.facts)
    proxy.client = proxy.steps.forwarding.client = AtOnce(settings.time)
    return proxy


async def one(proxy: Proxy, body: bytes) -> None:
    """One request all the way."""
    parts = [body]

    async def receive() -> dict[str, Any]:
        if not parts:  # the client stays, and has no more to say
            await asyncio.get_running_loop().create_future()
        return {"type": "http.request", "body": parts.pop(), "more_body": False}

    async def send(_: Any) -> None:
        pass

    path = "/v1/chat/completions"
    scope = {"type": "http", "method": "POST", "path": path, "headers": HEADERS}
    await proxy({**scope, "client": ("127.0.0.1", 1)}, receive, send)


def best_us(work: Callable[[], object], calls: int = 300, rounds: int = 15) -> float:
    """CPU microseconds of a call in this thread, the best round's mean."""
    best = float("inf")
    for _ in range(rounds):
        began = time.thread_time_ns()
        for _ in range(calls):
            work()
        best = min(best, (time.thread_time_ns() - began) / calls / 1e3)
    return best


@contextmanager
def caught(proxy: Proxy) -> Iterator[list[Flight]]:
    """The flights that finish meanwhile."""
    found: list[Flight] = []
    finished = proxy.accounts.finished

    def noting(flight: Flight) -> None:
        found.append(flight)
        finished(flight)

    proxy.accounts.finished = noting  # type: ignore[method-assign]
    yield found
    proxy.accounts.finished = finished  # type: ignore[method-assign]


async def stages(proxy: Proxy, body_of: Callable[[int], bytes]) -> dict[str, float]:
    """CPU microseconds by stage."""
    for number in range(300):
        await one(proxy, body_of(number))
    with caught(proxy) as flights:
        await one(proxy, body_of(300))
    flight = flights[0]
    routed, told, caller, admitted = flight.routed, flight.features, flight.caller, flight.admitted
    assert routed is not None
    assert told is not None
    assert caller is not None
    assert admitted is not None
    steps, body = proxy.steps, body_of(0)
    facts = [candidate.backend for candidate in routed.candidates]
    loads = [candidate.load for candidate in routed.candidates]
    wishes = wishes_in({})
    request = features.peek(body)
    prompt = features.prompt_of(request)
    record = usage_records.record_of(flight, proxy.replica)

    def decide() -> object:
        now_s = time.monotonic()
        return proxy.router.decide(
            told, caller, flight.asked, wishes, now_s=now_s, unix_s=flight.start_wall_s
        )

    def gate() -> None:
        run(steps.gate.admit(flight, caller, None, read=False))
        run(steps.gate.settle(admitted, flight))

    return {
        "key and headers": best_us(lambda: (proxy.keys.caller(HEADERS, 0.0), wishes_in({}))),
        "reading the body": best_us(lambda: features.prompt_of(features.peek(body))),
        "counting tokens": best_us(lambda: steps.reading.counter.count(prompt.texts)),
        "kind of task": best_us(lambda: coarse_task(prompt.last)),
        "estimates, four candidates": best_us(lambda: proxy.estimator.estimate(told, facts, loads)),
        "decision, estimates apart": best_us(decide)
        - best_us(lambda: proxy.estimator.estimate(told, facts, loads)),
        "cache key": best_us(lambda: cache.key_of(body, "chat.completions", caller)),
        "limits and budgets": best_us(gate),
        "record": best_us(lambda: usage_records.record_of(flight, proxy.replica)),
        "journal": best_us(lambda: proxy.journal.write(record)),
        "metrics": best_us(lambda: proxy.carbon.request(flight, record)),
    }


def run(work: Awaitable[object]) -> None:
    """Take a coroutine that waits for nothing to its end."""
    try:
        work.__await__().send(None)
    except StopIteration:
        return
    raise AssertionError("it waited for something")


async def whole_us(proxy: Proxy, body_of: Callable[[int], bytes], rounds: int) -> float:
    """CPU microseconds of the path in the event loop's thread."""
    best = float("inf")
    for index in range(rounds):
        began = time.thread_time_ns()
        for number in range(1000):
            await one(proxy, body_of(1000 * (index + 1) + number))
        best = min(best, (time.thread_time_ns() - began) / 1e6)
        await asyncio.sleep(0.5)  # for the ledger to follow
    return best


async def measure(folder: Path, rounds: int) -> None:
    before, after = template("1 KB", "bench")

    def body_of(number: int) -> bytes:
        return before + b"%08x" % number + after

    proxy = proxy_of(folder)
    serving.spare_the_collector()
    async with proxy._lifespan(proxy.api):
        rows = await stages(proxy, body_of)
        whole = await whole_us(proxy, body_of, rounds)
        gc.enable()
    print("| stage | CPU µs |\n|---|--:|")
    for name, value in rows.items():
        print(f"| {name} | {value:.1f} |")
    accounted = sum(
        value
        for name, value in rows.items()
        if name.startswith(("estimates", "decision", "limits", "record", "journal", "metrics"))
    )
    print(f"| **estimating, deciding and accounting** | {accounted:.1f} |")
    print(f"| **the whole path, without sockets** | {whole:.1f} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="of 1,000 whole requests (8)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        uvloop.run(measure(Path(folder), given.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
