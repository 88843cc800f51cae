"""Clocks that are handed to what needs one, so that tests and replays set the pace."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds, and a way to wait for them to pass."""

    def now_s(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class MonotonicClock:
    """This process's monotonic clock."""

    def now_s(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


class ScaledClock:
    """Runs ``speed`` times as fast as the monotonic clock, and starts where it stands."""

    def __init__(self, speed: float) -> None:
        if not speed > 0:
            raise ValueError(f"speed must be above 0, not {speed}")
        self.speed = speed
        self._origin_s = time.monotonic()

    def now_s(self) -> float:
        return self._origin_s + (time.monotonic() - self._origin_s) * self.speed

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds) / self.speed)
