"""A load generator in a process of its own, cheap enough not to be what is measured.

``python -m benchmarks.load URL SCENARIO IN_FLIGHT SECONDS [KEY]`` keeps that many requests in
flight on keep-alive connections and prints one JSON object: `Measured`. No two bodies are alike.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

import httptools
import uvloop

SCENARIOS = ("1 KB", "1 KB after 100 ms", "stream", "100k tokens")


@dataclass
class Measured:
    """What one run of the generator saw; times in seconds, None where nothing was answered."""

    requests: int = 0
    errors: int = 0
    first_error: str = ""
    events: int = 0
    elapsed_s: float = 0.0
    p50_s: float | None = None  # latency
    p99_s: float | None = None
    first_s: float | None = None  # median time to the first byte of the body


class Tally:
    """What the connections of one run write down."""

    def __init__(self) -> None:
        self.events = 0
        self.errors = 0
        self.first_error = ""
        self.latency_s: list[float] = []
        self.ttft_s: list[float] = []

    def error(self, text: str) -> None:
        self.errors += 1
        self.first_error = self.first_error or text

    def measured(self, elapsed_s: float) -> Measured:
        """The summary."""
        seen = Measured(len(self.latency_s), self.errors, self.first_error, self.events, elapsed_s)
        if len(self.latency_s) > 1:
            cuts = statistics.quantiles(self.latency_s, n=100, method="inclusive")
            seen.p50_s, seen.p99_s = cuts[49], cuts[98]
            seen.first_s = statistics.median(self.ttft_s)
        return seen


def template(scenario: str, model: str) -> tuple[bytes, bytes]:
    """A body in two halves; a number of eight digits goes between them, into the longest message:
    a count of its tokens that was remembered would be of no use."""
    words = "The quick brown fox jumps over the lazy dog and thinks of energy. "
    text = words * (7150 if scenario == "100k tokens" else 13)
    body = {
        "model": model,
        "messages": [
            {"role": "system", "content": "You answer in one sentence."},
            {"role": "user", "content": f"#{text}"},
        ],
        "max_tokens": 64,
        "temperature": 0,
        "seed": 100 if scenario == "1 KB after 100 ms" else 1,
        "stream": scenario == "stream",
    }
    raw = json.dumps(body, separators=(",", ":")).encode()
    before, _, after = raw.partition(b"#")
    return before, after


class Client(asyncio.Protocol):
    """One connection that sends the next request as soon as the last was answered."""

    transport: asyncio.Transport

    def __init__(self, head: bytes, halves: tuple[bytes, bytes], tally: Tally) -> None:
        self._head = head
        self._halves = halves
        self._tally = tally
        self._parser = httptools.HttpResponseParser(self)
        self._sent_s = 0.0
        self._first_s = 0.0
        self._status = 0
        self._body = b""
        self.stopping = False
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._send()

    def _send(self) -> None:
        before, after = self._halves
        number = b"%08x" % int.from_bytes(os.urandom(4), "big")
        self._first_s = 0.0
        self._body = b""
        self._sent_s = time.perf_counter()
        self.transport.write(self._head + before + number + after)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if not self._first_s:
            self._first_s = time.perf_counter()
        self._tally.events += body.count(b"data:")
        if self._status != 200:
            self._body += body

    def on_message_complete(self) -> None:
        now_s = time.perf_counter()
        if self._status != 200:
            self._tally.error(self._body[:500].decode("latin-1"))
        self._tally.latency_s.append(now_s - self._sent_s)
        self._tally.ttft_s.append((self._first_s or now_s) - self._sent_s)
        if self.stopping:
            self.transport.close()
        else:
            asyncio.get_running_loop().call_soon(self._send)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.stopping:
            self._tally.error(f"connection lost: {exc}")
        if not self.finished.done():
            self.finished.set_result(None)


async def run(
    url: str, scenario: str, in_flight: int, seconds: float, key: str, model: str = "bench"
) -> Measured:
    """Keep ``in_flight`` requests going for that long; what was seen."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    halves = template(scenario, model)
    length = len(halves[0]) + len(halves[1]) + 8
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {parts.netloc}\r\n"
        f"authorization: Bearer {key}\r\ncontent-type: application/json\r\n"
        f"content-length: {length}\r\n\r\n"
    ).encode()
    tally = Tally()
    loop = asyncio.get_running_loop()
    started_s = time.perf_counter()
    clients: list[Client] = []
    for _ in range(in_flight):
        _, client = await loop.create_connection(lambda: Client(head, halves, tally), host, port)
        clients.append(client)
    await asyncio.sleep(max(0.0, started_s + seconds - time.perf_counter()))
    for client in clients:
        client.stopping = True
    await asyncio.wait([client.finished for client in clients], timeout=30)
    return tally.measured(time.perf_counter() - started_s)


def main() -> None:
    """Run once and print what was seen."""
    url, scenario, in_flight, seconds = sys.argv[1:5]
    key = sys.argv[5] if len(sys.argv) > 5 else "none"
    seen = uvloop.run(run(url, scenario, int(in_flight), float(seconds), key))
    print(json.dumps(asdict(seen)))


if __name__ == "__main__":
    main()
