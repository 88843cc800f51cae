"""Load, kills, and the comparison of what was answered with what is on the books."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from meters.ledger import Ledger
from meters.schema import requests, window_totals, windows
from tests.chaos.cluster import KEY, NODE, Cluster, Part

DOUBT_S = 0.02  # an answer that ended this shortly before its replica's death may be unfinished
READ_LATER_S = 0.5  # and its last bytes may be read this long after it
SETTLE_S = 90.0


@dataclass
class Answered:
    """A request whose whole answer a client has."""

    request_id: str
    replica: int
    end_s: float  # monotonic


@dataclass
class Findings:
    """What a run found; ``lost`` and ``problems`` are empty when all is well."""

    killed: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    failed: int = 0  # requests that got an error, or no answer
    in_doubt: int = 0  # answered within DOUBT_S of the kill of their replica, and not recorded
    recorded: int = 0
    windows: int = 0
    windows_missing: list[str] = field(default_factory=list)
    undivided: int = 0
    metered_j: float = 0.0
    pending_j: float = 0.0
    lost: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def well(self) -> bool:
        return not (self.lost or self.problems or self.windows_missing or self.undivided)

    def __str__(self) -> str:
        killed = ", ".join(f"{name} {count}" for name, count in sorted(self.killed.items()))
        return "\n".join(
            [
                f"killed              {killed or 'nothing'}",
                f"answered in full    {self.answered}",
                f"failed or cut off   {self.failed}",
                f"in the ledger       {self.recorded}",
                f"lost                {len(self.lost)} {self.lost[:5] or ''}",
                f"in doubt            {self.in_doubt} (answered {DOUBT_S * 1e3:.0f} ms or less "
                "before their replica was killed, and not recorded)",
                f"windows             {self.windows}, missing {len(self.windows_missing)} "
                f"{self.windows_missing[:5] or ''}",
                f"windows undivided   {self.undivided}",
                f"metered             {self.metered_j:.3f} J",
                f"pending             {self.pending_j:.3f} J (of requests killed in flight)",
                f"books               {'balanced' if not self.problems else self.problems}",
            ]
        )


async def run(seconds: float, seed: int, clients: int = 6, every_s: float = 1.0) -> Findings:
    """Everything, once. ``every_s``: the mean time between two kills."""
    cluster = await asyncio.to_thread(Cluster)
    try:
        return await _Chaos(cluster, seed).run(seconds, clients, every_s)
    finally:
        await asyncio.to_thread(cluster.close)


class _Chaos:
    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.dice = random.Random(seed)
        self.found = Findings()
        self.answered: list[Answered] = []
        self.kills: dict[int, list[float]] = {n: [] for n in range(len(cluster.replicas))}
        self.stopping = asyncio.Event()

    async def run(self, seconds: float, clients: int, every_s: float) -> Findings:
        timeout = aiohttp.ClientTimeout(total=20)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            workers = [
                asyncio.create_task(self.client(session, random.Random(n))) for n in range(clients)
            ]
            try:
                await self.kill_for(seconds, every_s)
            finally:
                self.stopping.set()
                await asyncio.gather(*workers)
        await asyncio.to_thread(self.settle)
        return self.found

    async def client(self, session: aiohttp.ClientSession, dice: random.Random) -> None:
        """One request after another, to any replica, streamed or not."""
        while not self.stopping.is_set():
            replica = dice.randrange(len(self.cluster.ports))
            body = {
                "model": "llama-3.1-8b",
                "messages": [{"role": "user", "content": f"chaos {dice.random()}"}],
                "max_tokens": dice.choice([1, 4, 40]),
                "stream": dice.random() < 0.5,
            }
            url = f"http://127.0.0.1:{self.cluster.ports[replica]}/v1/chat/completions"
            try:
                headers = {"authorization": f"Bearer {KEY}"}
                async with session.post(url, json=body, headers=headers) as response:
                    text = await response.read()
                    whole = text.rstrip().endswith(b"data: [DONE]") if body["stream"] else True
                    if response.status == 200 and whole and b'"error"' not in text:
                        request_id = response.headers["x-request-id"]
                        self.answered.append(Answered(request_id, replica, time.monotonic()))
                    else:
                        self.found.failed += 1
            except (aiohttp.ClientError, TimeoutError, OSError):
                self.found.failed += 1
                await asyncio.sleep(0.05)

    async def kill_for(self, seconds: float, every_s: float) -> None:
        """Kill parts and start them again, over and over; several may be dead at once. However
        short it is told to be, each part is killed once."""
        end_s = time.monotonic() + seconds
        names: list[str] = []
        returning: dict[str, asyncio.Task[None]] = {}
        while time.monotonic() < end_s or self.found.killed.keys() != self.cluster.parts.keys():
            await asyncio.sleep(self.dice.uniform(0.2, 1.8) * every_s)
            if not names:  # each once before any twice
                names = self.dice.sample(sorted(self.cluster.parts), len(self.cluster.parts))
            name = names.pop()
            if name in returning:
                await returning.pop(name)
            part = self.cluster.parts[name]
            if name.startswith("replica"):
                # before the kill: what is answered after this moment is in doubt
                self.kills[int(name.split()[1])].append(time.monotonic())
            await asyncio.to_thread(part.kill)
            self.found.killed[name] += 1
            returning[name] = asyncio.create_task(self._return(part, every_s))
        await asyncio.gather(*returning.values())

    async def _return(self, part: Part, every_s: float) -> None:
        await asyncio.sleep(self.dice.uniform(0.1, 1.0) * every_s)
        await asyncio.to_thread(part.start)

    def settle(self) -> None:
        """Let everything end in order, and compare."""
        self.cluster.stop_replicas()
        self._drain_leftovers()
        ledger = Ledger(self.cluster.ledger_url)
        try:
            self._compare(ledger)
        finally:
            ledger.close()

    def _drain_leftovers(self) -> None:
        """As a replica that starts later: one takes over journals and undivided windows."""
        end_s = time.monotonic() + SETTLE_S
        self.cluster.replicas[0].start()
        self.cluster.agent.start()  # what it could not send to a dead replica
        ledger = Ledger(self.cluster.ledger_url)
        try:
            while time.monotonic() < end_s:
                time.sleep(0.5)
                try:
                    # What a dead replica left in its journal is drained some time after the start;
                    # what is really lost stays away until the end of the wait.
                    waiting = (
                        self._missing(ledger)
                        or self._undivided(ledger, 5.0)
                        or missing_numbers(self._divided(ledger))
                    )
                    if not waiting:
                        break
                except SQLAlchemyError:
                    continue
        finally:
            ledger.close()
        self.cluster.stop_replicas()

    def _missing(self, ledger: Ledger) -> list[Answered]:
        with ledger.database.read() as connection:
            there = set(connection.scalars(select(requests.c.request_id)))
        return [a for a in self.answered if a.request_id not in there]

    def _undivided(self, ledger: Ledger, younger_s: float) -> int:
        with ledger.database.read() as connection:
            last_s = connection.scalar(select(func.max(windows.c.end_s))) or 0.0
        return len(ledger.undivided(NODE, 0.0, last_s - younger_s))

    def _divided(self, ledger: Ledger) -> list[str]:
        with ledger.database.read() as connection:
            return list(connection.scalars(select(window_totals.c.window_id)))

    def _compare(self, ledger: Ledger) -> None:
        found = self.found
        found.answered = len(self.answered)
        for answer in self._missing(ledger):
            # bytes that were under way when it was killed may be read a little later
            ages = [answer.end_s - kill_s for kill_s in self.kills[answer.replica]]
            if any(-DOUBT_S <= age_s <= READ_LATER_S for age_s in ages):
                found.in_doubt += 1
            else:
                found.lost.append(answer.request_id)
        balance = ledger.check()
        found.recorded = balance.requests
        found.metered_j = balance.metered_uj / 1e6
        found.pending_j = balance.pending_uj / 1e6
        found.problems = list(balance.problems)
        if balance.imbalance_uj:
            found.problems.append(f"{balance.imbalance_uj} µJ are nowhere")
        found.undivided = self._undivided(ledger, 0.0)
        ids = self._divided(ledger)
        found.windows = len(ids)
        found.windows_missing = missing_numbers(ids)


def missing_numbers(ids: list[str]) -> list[str]:
    """Window ids end in a number that a meter's run counts up: those that are not there."""
    runs: dict[str, set[int]] = {}
    for window_id in ids:
        if match := re.fullmatch(r"(.*):(\d+)", window_id):
            runs.setdefault(match[1], set()).add(int(match[2]))
    return [
        f"{run}:{number}"
        for run, numbers in sorted(runs.items())
        for number in range(min(numbers), max(numbers))
        if number not in numbers
    ]


def as_json(found: Findings) -> str:
    return json.dumps({**found.__dict__, "well": found.well})
