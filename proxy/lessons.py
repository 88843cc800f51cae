"""What windows taught one replica, told to the others: a window comes to one of them only.

A replica takes over what another knows of an engine when that one learnt from more windows, or saw
it last serve something else. Passed on by the same boards as requests in flight.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

import msgspec
from redis.exceptions import RedisError

from meters.unreadable import UNREADABLE
from proxy.background import ended
from proxy.siblings import Board

log = logging.getLogger("joulegate.lessons")

EVERY_S = 10.0  # well below siblings.STALE_S, after which a silent replica is forgotten
_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(dict[str, dict[str, Any]])


class Pupil(Protocol):
    """What learns: ``measuring.Learning`` is one."""

    def taught(self) -> dict[str, dict[str, Any]]: ...

    def take(self, taught: dict[str, dict[str, Any]]) -> int: ...


class Lessons:
    """Tells what this replica learnt, and takes what others did, every ten seconds."""

    def __init__(self, replica: str, board: Board, pupil: Pupil) -> None:
        self.replica = replica
        self.board = board
        self.pupil = pupil
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        await ended(self._task)
        try:
            await self.board.close()
        except (OSError, RedisError):
            pass  # it was gone already

    async def exchange(self) -> None:
        """Tell once, and take what others told. Raises what the board raises."""
        if taught := self.pupil.taught():
            await self.board.publish(self.replica, _encode(taught))
        for value in await self.board.others(self.replica):
            try:
                self.pupil.take(_decoder.decode(value))
            except UNREADABLE:
                continue  # another version's

    async def _run(self) -> None:
        while True:
            try:
                await self.exchange()
            except (OSError, RedisError):
                pass  # the siblings' task says so; what is known here stays in use
            except Exception:
                log.exception("what windows taught could not be told to other replicas")
            await asyncio.sleep(EVERY_S)
