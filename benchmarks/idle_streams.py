"""What a stream costs that is open and silent, in the gateway's memory.

``python -m benchmarks.idle_streams``: opens 2,000 streams through the bare relay and through
Joulegate, each of which got its first event and waits for the next, and prints the resident memory
that a stream added. Then ends them, and prints what stayed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from benchmarks.contestants import CONTESTANTS, KEY, Running, started
from benchmarks.load import template
from benchmarks.mock_upstream import DONE, STREAM, STREAM_HEAD, USAGE_EVENT

SETTLES_S = 2.0  # for books to be written and garbage to be collected


class Holding:
    """An upstream that sends a stream's first event, and the rest when it is told to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.lower().split(b"\r\n")
                lengths = [line.split(b":")[1] for line in lines if b"content-length:" in line]
                body = await reader.readexactly(int(lengths[0])) if lengths else b""
                if b'"stream":true' not in body:
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                    continue
                writer.write(STREAM_HEAD + STREAM[0])
                await self.go_on.wait()
                writer.write(STREAM[-1] + USAGE_EVENT + DONE)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)


async def opened(url: str, number: int) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """That many streams, each with its first event read."""
    address = urlsplit(url)
    before, after = template("stream", "bench")
    found = []
    for index in range(number):
        body = before + b"%08x" % index + after
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {address.netloc}\r\n"
            f"authorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(head.encode() + body)
        await reader.readuntil(b"data: ")
        found.append((reader, writer))
    return found


async def measured(running: Running, upstream: Holding, number: int) -> dict[str, float]:
    """Memory a stream, in kilobytes: while all are open, and after their end."""
    for _ in range(2):  # what the first ones load is nobody's
        await ended(await opened(running.url, 50), upstream)
    await asyncio.sleep(SETTLES_S)
    before = running.rss_bytes()
    streams = await opened(running.url, number)
    await asyncio.sleep(SETTLES_S)
    open_ = running.rss_bytes()
    await ended(streams, upstream)
    await asyncio.sleep(SETTLES_S)
    after = running.rss_bytes()
    return {
        "open_kb": (open_ - before) / number / 1e3,
        "left_kb": (after - before) / number / 1e3,
    }


async def ended(
    streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]], upstream: Holding
) -> None:
    """Let them come to their end, and check that they did."""
    upstream.go_on.set()
    for reader, writer in streams:
        await reader.readuntil(b"[DONE]")
        writer.close()
    upstream.go_on.clear()


async def run(number: int) -> dict[str, dict[str, float]]:
    """The figures of each contestant."""
    upstream = Holding()
    server = await asyncio.start_server(upstream.answer, "127.0.0.1", 0, backlog=4096)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    rows = {}
    for name in ("relay", "joulegate"):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            starting = started(CONTESTANTS[name], folder, address)
            running = await asyncio.to_thread(stack.enter_context, starting)
            began_s = time.perf_counter()
            rows[CONTESTANTS[name].name] = await measured(running, upstream, number)
            took_s = time.perf_counter() - began_s
            print(f"{running.name}: {took_s:.0f} s", file=sys.stderr)
            await asyncio.to_thread(stack.close)
    server.close()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=2000, help="how many are open (2000)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    rows = uvloop.run(run(given.streams))
    print(f"\n{given.streams:,} open streams\n")
    print("| gateway | kB a stream while open | kB a stream left after |\n|---|--:|--:|")
    for name, row in rows.items():
        print(f"| {name} | {row['open_kb']:.1f} | {row['left_kb']:.1f} |")
    if given.json:
        Path(given.json).write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
