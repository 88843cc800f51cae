"""Whether large requests hold up small streams.

``python -m benchmarks.stalls``: 100 streams of one event every 5 ms go through a gateway while
prompts of 100k tokens and bodies of 20 MB come in one after another. Prints how late events were,
beside the same streams alone, for the engine called directly, the bare relay and Joulegate. On a
busy machine the upstream and the generator are late too: read the rows against each other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httptools
import uvloop

from benchmarks.contestants import CONTESTANTS, KEY, MOCK, started
from benchmarks.load import template
from benchmarks.mock_upstream import PACE_S

STREAMS = 100


class Reader(asyncio.Protocol):
    """One connection: sends a body, notes when each event came."""

    def __init__(self, request: bytes, late_s: list[float]) -> None:
        self._request = request
        self._late_s = late_s
        self._parser = httptools.HttpResponseParser(self)
        self._last_s = 0.0
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        now_s = time.perf_counter()
        if self._last_s:
            self._late_s.append(now_s - self._last_s - PACE_S)
        self._last_s = now_s

    def on_message_complete(self) -> None:
        if not self.finished.done():
            self.finished.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.finished.done():
            self.finished.set_result(None)


def request(url: str, body: bytes) -> bytes:
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {urlsplit(url).netloc}\r\n"
        f"authorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def body_of(scenario: str) -> bytes:
    before, after = template(scenario, "bench")
    return before + os.urandom(4).hex().encode() + after


def image() -> bytes:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 20_000_000}}
    message = {"role": "user", "content": [part]}
    return json.dumps({"model": "bench", "messages": [message], "max_tokens": 1}).encode()


async def run(url: str, large: bool, rounds: int) -> list[float]:
    """How late each event of the small streams was, in seconds."""
    loop = asyncio.get_running_loop()
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    late_s: list[float] = []

    async def send(body: bytes, into: list[float]) -> None:
        raw = request(url, body)
        transport, reader = await loop.create_connection(lambda: Reader(raw, into), host, port)
        await reader.finished
        transport.close()

    async def large_ones(stop: asyncio.Event) -> None:
        bodies = [image(), body_of("100k tokens")]
        while not stop.is_set():
            for body in bodies:
                await send(body, [])

    for _ in range(rounds):
        stop = asyncio.Event()
        beside = [asyncio.ensure_future(large_ones(stop))] if large else []
        await asyncio.gather(*(send(body_of("stream"), late_s) for _ in range(STREAMS)))
        stop.set()
        await asyncio.gather(*beside)
    return late_s


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stalls", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="times 100 streams (5)")
    arguments = parser.parse_args()
    print(f"{STREAMS} streams, events every {PACE_S * 1e3:g} ms; how late events came, ms")
    print("| gateway | beside | p50 | p99 | p99.9 | most |\n|---|---|--:|--:|--:|--:|")
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-stalls-")))
        engine = stack.enter_context(started(MOCK, scratch / "mock", ""))
        gateways = [engine]
        for name in ("relay", "joulegate"):
            one = started(CONTESTANTS[name], scratch / name, engine.url)
            gateways.append(stack.enter_context(one))
        for gateway in gateways:
            for large in (False, True):
                late_s = uvloop.run(run(gateway.url, large, arguments.rounds))
                cuts = statistics.quantiles(late_s, n=1000, method="inclusive")
                shown = [cuts[499], cuts[989], cuts[998], max(late_s)]
                figures = " | ".join(f"{value * 1e3:.1f}" for value in shown)
                beside = "100k tokens, 20 MB" if large else "nothing"
                print(f"| {gateway.name} | {beside} | {figures} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
