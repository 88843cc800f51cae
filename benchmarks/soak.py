"""Whether memory stays where it was under hours of traffic.

``python -m benchmarks.soak --minutes 30``: mixed load through Joulegate at a steady rate: small
chats, streams, some that the client leaves in the middle, refused keys, unknown models, bodies that
are no JSON, long prompts. Prints resident memory, open files and threads as time goes on. What is
kept on purpose (cached answers, what windows may still charge) fills in the first half and is
bounded; growth is told over the second half.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import uvloop

from benchmarks.contestants import CONTESTANTS, KEY, MOCK, Running, started
from benchmarks.load import template

# What is sent, and how often: shares of all requests.
MIX = (
    ("chat", 0.729),
    ("stream", 0.15),
    ("left stream", 0.05),
    ("wrong key", 0.001),
    ("unknown model", 0.03),
    ("not JSON", 0.03),
    ("long prompt", 0.01),
)


def body_of(kind: str, number: int) -> bytes:
    """A body like no other."""
    scenario = {"stream": "stream", "left stream": "stream", "long prompt": "100k tokens"}
    if kind == "not JSON":
        return b'{"model": "bench", ' + b"%08x" % number
    model = f"none-{number % 7}" if kind == "unknown model" else "bench"
    before, after = template(scenario.get(kind, "1 KB"), model)
    return before + b"%08x" % number + after


async def ask(session: aiohttp.ClientSession, url: str, kind: str, number: int) -> int:
    """One request; its status."""
    key = "sk-wrong" if kind == "wrong key" else KEY
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    address = f"{url}/v1/chat/completions"
    async with session.post(address, data=body_of(kind, number), headers=headers) as answer:
        if kind == "left stream":
            await answer.content.readany()
            answer.close()
        else:
            await answer.read()
        return answer.status


async def load(url: str, per_s: float, until_s: float, seen: dict[str, int]) -> None:
    """Keep the rate until the clock says stop; count statuses."""
    tasks: set[asyncio.Task[None]] = set()
    kinds, shares = zip(*MIX, strict=True)

    async def one(number: int) -> None:
        kind = random.choices(kinds, shares)[0]
        try:
            outcome = f"{kind}: {await ask(session, url, kind, number)}"
        except (aiohttp.ClientError, TimeoutError) as error:
            outcome = f"{kind}: {type(error).__name__}"
        seen[outcome] = seen.get(outcome, 0) + 1

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        number = int.from_bytes(os.urandom(4), "big")
        while time.monotonic() < until_s:
            number = (number + 1) % 2**32
            task = asyncio.create_task(one(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await asyncio.sleep(random.expovariate(per_s))
        await asyncio.gather(*tasks)


def row_of(running: Running, began_s: float) -> dict[str, float]:
    """What the gateway holds now."""
    return {
        "minute": (time.monotonic() - began_s) / 60,
        "rss_mb": running.rss_bytes() / 1e6,
        "files": sum(process.num_fds() for process in running.processes),
        "threads": sum(process.num_threads() for process in running.processes),
    }


async def soak(
    running: Running, minutes: float, per_s: float
) -> tuple[list[dict[str, float]], dict[str, int]]:
    """The rows, and how often each outcome was seen."""
    began_s = time.monotonic()
    until_s = began_s + 60 * minutes
    seen: dict[str, int] = {}
    rows = [row_of(running, began_s)]
    working = asyncio.create_task(load(running.url, per_s, until_s, seen))
    while not working.done():
        await asyncio.wait({working}, timeout=60 * minutes / 30)
        rows.append(row_of(running, began_s))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    await working
    return rows, seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (30)")
    parser.add_argument("--per-second", type=float, default=60.0, help="requests a second (60)")
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        mock = stack.enter_context(started(MOCK, folder / "mock", ""))
        starting = started(CONTESTANTS["joulegate"], folder / "joulegate", mock.url)
        running = stack.enter_context(starting)
        rows, seen = uvloop.run(soak(running, given.minutes, given.per_second))
    print("| minute | memory MB | open files | threads |\n|--:|--:|--:|--:|")
    for row in rows:
        print(f"| {row['minute']:.0f} | {row['rss_mb']:.1f} | {row['files']} | {row['threads']} |")
    half = rows[len(rows) // 2 :]
    grew = half[-1]["rss_mb"] - half[0]["rss_mb"]
    print(f"\nsecond half: {grew:+.1f} MB\n")
    for outcome, count in sorted(seen.items()):
        print(f"{count:8,} {outcome}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
