"""What the other replicas have in flight, so that a window of energy that only one of them gets
is divided among the requests of all, and every one knows how busy engines are.

Each replica publishes its requests of the last seconds a few times a second: in Redis when it is
configured, else in files beside the journal, for the workers of one machine. Nothing of a
request's content is in them but a hash, by which a conversation is known that goes on elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
from redis.exceptions import RedisError

from meters.types import Activity
from meters.unreadable import UNREADABLE
from meters.whole_file import write_whole
from proxy.background import ended
from proxy.conversations import Conversations, Went
from proxy.redis_scripts import anew_if_damaged

log = logging.getLogger("joulegate.siblings")

PUBLISH_S = 0.4  # well below the lag with which windows are divided
STALE_S = 30.0  # a replica that published nothing for so long is gone


class Published(msgspec.Struct, frozen=True, array_like=True):
    """What a replica tells the others: all it did on its nodes lately, until then."""

    until_s: float  # Unix; infinite from one that stopped, which does no more
    activities: list[Activity]
    turns: list[Went] = []  # where conversations went in the last seconds


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Published)


class Board(Protocol):
    """Where replicas publish. Methods may raise OSError or RedisError."""

    async def publish(self, replica: str, value: bytes) -> None: ...

    async def others(self, replica: str) -> list[bytes]: ...

    async def close(self) -> None: ...


class FileBoard:
    """For the workers of one machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def publish(self, replica: str, value: bytes) -> None:
        await asyncio.to_thread(self._write, replica, value)

    async def others(self, replica: str) -> list[bytes]:
        return await asyncio.to_thread(self._read, replica)

    async def close(self) -> None:
        """Nothing is held open."""

    def _write(self, replica: str, value: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / f"{replica}.activities", value)

    def _read(self, replica: str) -> list[bytes]:
        found = []
        for path in self.folder.glob("*.activities"):
            if path.stem == replica:
                continue
            try:
                if time.time() - path.stat().st_mtime > STALE_S:
                    path.unlink(missing_ok=True)
                    continue
                found.append(path.read_bytes())
            except OSError:
                continue  # replaced or removed just now
        return found


# KEYS: what replicas published, when they did. ARGV: who, what, now
_PUBLISH = """
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
"""
# KEYS: the same. ARGV: who published last before this is gone
_OTHERS = """
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[1])) do
  redis.call('HDEL', KEYS[1], name)
  redis.call('ZREM', KEYS[2], name)
end
return redis.call('HGETALL', KEYS[1])
"""


class RedisBoard:
    """For replicas anywhere that share a Redis; each question is one script, so atomic."""

    def __init__(self, client: Any, prefix: str = "joulegate:activities") -> None:
        self._client = client
        self._keys = [f"{{{prefix}}}", f"{{{prefix}}}:seen"]  # together in a cluster
        self._publish = client.register_script(_PUBLISH)
        self._others = client.register_script(_OTHERS)

    async def publish(self, replica: str, value: bytes) -> None:
        args = [replica, value, time.time()]
        await anew_if_damaged(
            self._client, self._keys, lambda: self._publish(keys=self._keys, args=args)
        )

    async def others(self, replica: str) -> list[bytes]:
        args = [time.time() - STALE_S]
        found = await anew_if_damaged(
            self._client, self._keys, lambda: self._others(keys=self._keys, args=args)
        )
        pairs = zip(found[::2], found[1::2], strict=True)
        return [value for name, value in pairs if _text(name) != replica]

    async def close(self) -> None:
        await self._client.aclose()


class Siblings:
    """Publishes this replica's activities and knows the others'."""

    def __init__(
        self,
        replica: str,
        board: Board,
        mine: Callable[[], Sequence[Activity]],
        heard: Callable[[Sequence[Activity]], None] = lambda known: None,
        conversations: Conversations | None = None,
    ) -> None:
        """``heard`` is told all that the others do, each time that was read; ``conversations`` are
        told to them, and learn where theirs went."""
        self.replica = replica
        self.board = board
        self.mine = mine
        self.heard = heard
        self.conversations = Conversations() if conversations is None else conversations
        self.known: list[Activity] = []
        self.until_s = 0.0  # Unix: what all the others did until then is known
        self._failing = False
        self._task: asyncio.Task[None] | None = None

    def __call__(self, node: str, start_s: float, end_s: float) -> Iterable[Activity]:
        """What others did on a node between two Unix times."""
        return [
            activity
            for activity in self.known
            if activity.node == node
            and activity.start_s < end_s
            and (activity.end_s is None or activity.end_s >= start_s)
        ]

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        await ended(self._task)
        try:
            await self._publish(math.inf)  # nobody need wait to hear more
            await self.board.close()
        except (OSError, RedisError):
            pass  # it was gone already

    async def exchange(self) -> None:
        """Publish once, and read the others."""
        now_s = time.time()
        await self._publish(now_s)
        found: list[Activity] = []
        until_s = now_s
        for value in await self.board.others(self.replica):
            try:
                published = _decoder.decode(value)
            except UNREADABLE:
                continue  # another version's
            found += published.activities
            self.conversations.heard(published.turns)
            until_s = min(until_s, published.until_s)
            await asyncio.sleep(0)  # thousands of turns take a millisecond, of each replica
        self.known = found
        self.until_s = until_s
        self.heard(found)

    async def _publish(self, until_s: float) -> None:
        published = Published(until_s, list(self.mine()), self.conversations.told())
        await self.board.publish(self.replica, _encode(published))

    async def _run(self) -> None:
        while True:
            try:
                await self.exchange()
                self._failing = False
            except (OSError, RedisError) as error:
                if not self._failing:
                    log.warning(
                        "Other replicas' requests are not known (%s): their energy counts as "
                        "external until they are.",
                        type(error).__name__,
                    )
                self._failing = True
                self.known = []  # what was in flight may have ended since
                self.heard(self.known)
            except Exception:
                log.exception("requests could not be told to other replicas")
            await asyncio.sleep(PUBLISH_S)


def _text(name: object) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
