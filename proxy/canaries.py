"""The roll-outs of new backends: what canaries showed, added up over replicas and restarts.

policies/canary.py says what share a canary gets and when it is rolled back. Here every replica
keeps sums of what its own requests showed and publishes them: as a file in the state folder, and
where it is configured in Redis, which is told again what it forgot. The verdict follows from the
sums of all, so replicas agree without asking each other, and one that was rolled back stays so
after a restart. Another ``attempt`` in the config forgets what was seen before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
from redis.exceptions import RedisError

from meters.unreadable import UNREADABLE
from meters.whole_file import write_whole
from policies.canary import Arm, Canary, Duels
from policies.language import RollOut
from proxy.background import ended
from proxy.redis_scripts import anew_if_damaged

log = logging.getLogger("joulegate.canaries")

PUBLISH_S = 1.0
STEPS = (0.1, 0.5)  # shares after the first


class Seen(msgspec.Struct, frozen=True):
    """What one replica saw of one roll-out."""

    canary: Arm = Arm()
    control: Arm = Arm()
    against: str = ""  # why it was rolled back, once it was
    duels: Duels = Duels()


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(dict[str, Seen])


class Board(Protocol):
    """Where replicas publish what they saw. Methods may raise OSError or RedisError."""

    async def publish(self, replica: str, value: bytes) -> None: ...

    async def all(self) -> dict[str, bytes]: ...

    async def close(self) -> None: ...


class FileBoard:
    """For the workers of one machine, and for the next start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def publish(self, replica: str, value: bytes) -> None:
        await asyncio.to_thread(self._write, replica, value)

    async def all(self) -> dict[str, bytes]:
        return await asyncio.to_thread(self._read)

    async def close(self) -> None:
        """Nothing is held open."""

    def _write(self, replica: str, value: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / f"{replica}.json", value)

    def _read(self) -> dict[str, bytes]:
        return {path.stem: path.read_bytes() for path in self.folder.glob("*.json")}

    def begun(self, name: str) -> str | None:
        """What was published before under a name that begins so."""
        return next((path.stem for path in sorted(self.folder.glob(f"{name}*.json"))), None)


class RedisBoard:
    """For replicas anywhere that share a Redis."""

    def __init__(self, client: Any, key: str = "joulegate:canaries") -> None:
        self._client = client
        self._key = key

    async def publish(self, replica: str, value: bytes) -> None:
        await anew_if_damaged(
            self._client, [self._key], lambda: self._client.hset(self._key, replica, value)
        )

    async def all(self) -> dict[str, bytes]:
        kept = await anew_if_damaged(
            self._client, [self._key], lambda: self._client.hgetall(self._key)
        )
        return {k.decode() if isinstance(k, bytes) else str(k): v for k, v in kept.items()}

    async def close(self) -> None:
        await self._client.aclose()


class KeptBoard:
    """A board of which this machine's part is in its state folder, too."""

    def __init__(self, board: Board, kept: FileBoard) -> None:
        self.board, self.kept = board, kept

    async def publish(self, replica: str, value: bytes) -> None:
        await self.kept.publish(replica, value)
        await self.board.publish(replica, value)

    async def all(self) -> dict[str, bytes]:
        told = await self.board.all()
        for replica, value in (await self.kept.all()).items():
            if replica not in told:  # it was emptied
                await self.board.publish(replica, value)
                told[replica] = value
        return told

    async def close(self) -> None:
        await self.board.close()


class Canaries:
    """All roll-outs as this replica knows them. Used from the event loop only."""

    def __init__(self, replica: str, board: Board) -> None:
        self.replica = replica  # the same after a restart where the state folder is
        self.board = board
        self.roll_outs: dict[str, Canary] = {}  # policy -> its roll-out now
        self._mine: dict[str, Seen] = {}  # roll-out -> what was seen here
        self._others: dict[str, dict[str, Seen]] = {}  # replica -> the same
        self._written: dict[str, RollOut] = {}
        self._told = b""
        self._failing = False
        self._task: asyncio.Task[None] | None = None

    def take(self, written: Mapping[str, RollOut]) -> None:
        """Have these roll-outs from now on, by policy."""
        self._written = dict(written)
        self.roll_outs = {}
        for policy in written:
            self._judge(policy)

    def share(self, policy: str) -> float | None:
        """The share of requests that the policy's canary gets now."""
        roll_out = self.roll_outs.get(policy)
        return None if roll_out is None else roll_out.share

    def finished(self, policy: str, arm: str | None, ok: bool, latency_s: float | None) -> None:
        """One request of a policy with a canary has ended."""
        if arm in ("canary", "control") and policy in self._written:
            self._add(policy, arm, lambda seen: seen.with_request(ok, latency_s if ok else None))

    def scored(self, policy: str, arm: str | None, score: float) -> None:
        """An answer of a policy with a canary has been scored."""
        if arm in ("canary", "control") and policy in self._written:
            self._add(policy, arm, lambda seen: seen.with_score(score))

    def compared(self, policy: str, points: float) -> None:
        """A judge gave the canary's answer so many points, 0 to 1, against the control's."""
        if policy in self._written:
            self._add(policy, "duels", lambda duels: duels.with_points(points))

    def _add(self, policy: str, part: str, change: Any) -> None:
        name = named(policy, self._written[policy])
        mine = self._mine.get(name, Seen())
        changed = {part: change(getattr(mine, part))}
        self._mine[name] = msgspec.structs.replace(mine, **changed)
        self._judge(policy)

    def _judge(self, policy: str) -> None:
        """Work out from everybody's sums where a roll-out stands."""
        written = self._written[policy]
        name = named(policy, written)
        mine = self._mine.get(name, Seen())
        seen = [mine, *(other[name] for other in self._others.values() if name in other)]
        against = next((one.against for one in seen if one.against), "")
        steps = (written.share, *(step for step in STEPS if step > written.share))
        canary = Canary(
            backend=written.backend,
            steps=steps,
            canary=Arm(*together([one.canary for one in seen])),
            control=Arm(*together([one.control for one in seen])),
            duels=Duels(*together([one.duels for one in seen])),
        ).judged(against)
        before = self.roll_outs.get(policy)
        self.roll_outs[policy] = canary
        if canary.state == "rolled_back" and not mine.against:
            self._mine[name] = msgspec.structs.replace(mine, against=canary.why)
        if before is not None and (before.state, before.step) != (canary.state, canary.step):
            say = log.warning if canary.state == "rolled_back" else log.info
            said = canary.why or f"it gets {canary.share:.0%} of requests"
            say("canary %s of policy %s: %s (%s)", canary.backend, policy, canary.state, said)

    # -- with other replicas ---------------------------------------------------------------------

    async def exchange(self) -> None:
        """Publish what is new here, and read what the others published."""
        told = _encode(self._mine)
        if told != self._told and self._mine:
            await self.board.publish(self.replica, told)
            self._told = told
        others: dict[str, dict[str, Seen]] = {}
        for replica, value in (await self.board.all()).items():
            try:
                seen = _decoder.decode(value)
            except UNREADABLE:
                continue  # another version's
            if replica != self.replica:
                others[replica] = seen
            elif not self._told and not self._mine:
                self._mine = seen  # of this replica's life before
        if others != self._others or not self._told:
            self._others = others
            for policy in self._written:
                self._judge(policy)

    async def start(self) -> None:
        """Take what was kept, and go on exchanging."""
        await self._try()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Publish the last of it and end."""
        await ended(self._task)
        await self._try()
        try:
            await self.board.close()
        except (OSError, RedisError):
            pass  # it was gone already

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(PUBLISH_S)
            await self._try()

    async def _try(self) -> None:
        if not self._written:
            return
        try:
            await self.exchange()
            self._failing = False
        except (OSError, RedisError) as error:
            if not self._failing:
                log.warning(
                    "What canaries showed is known to this replica alone (%s) until the store "
                    "answers again.",
                    type(error).__name__,
                )
            self._failing = True
        except Exception:
            log.exception("what canaries showed could not be shared")


def named(policy: str, written: RollOut) -> str:
    """The name under which a roll-out's sums are kept."""
    return f"{policy}/{written.backend}/{written.attempt}"


def together(sums: Sequence[Arm] | Sequence[Duels]) -> list[Any]:
    """The sums of all, field by field."""
    return [sum(column) for column in zip(*map(msgspec.structs.astuple, sums), strict=True)]
