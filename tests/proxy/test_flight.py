"""The watch over time limits."""

from __future__ import annotations

import asyncio
import time

from proxy.flight import Flight, TimeWatch


async def test_the_watch_goes_on_when_what_is_looked_at_beside_it_fails() -> None:
    def broken(_: float) -> None:
        raise KeyError("zone")

    watch = TimeWatch(interval_s=0.001)
    watch.start(broken)
    flight = Flight("chat.completions")
    waiting = asyncio.ensure_future(asyncio.Event().wait())
    flight.task = waiting
    flight.deadline_s = time.monotonic() + 0.01
    watch.flights[flight.request_id] = flight
    await asyncio.wait([waiting], timeout=5)
    assert waiting.cancelled()
    assert flight.late is not None
    await watch.stop()
