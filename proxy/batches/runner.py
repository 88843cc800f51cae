"""Works through the batches of this process, a few requests at a time, beside live traffic."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from proxy.auth import ANYONE, Caller, KeyRing
from proxy.background import ended
from proxy.batches import sending
from proxy.batches.files import PART_BYTES, Files, Row
from proxy.batches.lines import Checked, Line, Problem, lines_in, read, unanswered
from proxy.batches.sending import Answer
from proxy.batches.store import Batches, Lost, Result
from proxy.settings import BatchSettings, Settings
from proxy.steps import Steps

log = logging.getLogger("joulegate.batches")

LOOK_S = 2.0  # between two looks for batches that nobody works on
KEEP_S = 0.3  # how long results gather
SWEEP_S = 3600.0
AGAIN_S = 30  # after what was not foreseen
AT_ONCE = 4  # batches of one team, by each process: no team waits for another's to end
HELD_BYTES = 8 << 20  # lines of one batch in memory, where it is more than one line


class Runner:
    """One for each process. ``grid`` says how dirty the grid is now, g/kWh; None: unknown."""

    def __init__(
        self,
        *,
        name: str,
        settings: Settings,
        files: Files,
        batches: Batches,
        steps: Steps,
        keys: KeyRing,
        grid: Callable[[], float | None],
        counted: Callable[[str], None],
    ) -> None:
        self.name = name
        self.settings = settings
        self.files = files
        self.batches = batches
        self.steps = steps
        self.keys = keys
        self.grid = grid
        self.counted = counted
        self.statuses: dict[str, str] = {}  # of the batches that this process works on
        self.woken = asyncio.Event()
        self.stopping = asyncio.Event()
        self.slots = asyncio.Semaphore(settings.batches.in_flight)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._teams: dict[str, str] = {}  # whose they are
        self._task: asyncio.Task[None] | None = None
        self._away = False  # the database, which was said

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def take(self, settings: Settings) -> None:
        """Go by these settings from now on."""
        if settings.batches.in_flight != self.settings.batches.in_flight:
            self.slots = asyncio.Semaphore(settings.batches.in_flight)
        self.settings = settings

    def cancel(self, batch_id: str) -> None:
        """Send no more of a batch, if it is this process that works on it."""
        if batch_id in self.statuses:
            self.statuses[batch_id] = "cancelling"
        self.woken.set()

    async def stop(self) -> None:
        """Keep what is answered soon, and leave the rest to others, or to the next start."""
        self.stopping.set()
        self.woken.set()
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=min(5.0, self.settings.server.stop_deadline_s))
        for task in tasks:
            await ended(task)
        await ended(self._task)
        if tasks:
            try:
                await asyncio.to_thread(self.batches.release, self.name)
            except (SQLAlchemyError, OSError):
                log.warning("batches of this process are taken over when their time is up")

    async def _run(self) -> None:
        sweep_s = 0.0
        while not self.stopping.is_set():
            self.woken.clear()
            try:
                await self._look()
                if time.time() >= sweep_s:
                    sweep_s = time.time() + SWEEP_S
                    await asyncio.to_thread(self._sweep, time.time())
                self._away = False
            except (SQLAlchemyError, OSError) as error:
                if not self._away:
                    self._away = True
                    log.warning("Batches wait: their database fails (%s)", type(error).__name__)
            try:
                await asyncio.wait_for(self.woken.wait(), LOOK_S)
            except TimeoutError:
                continue

    async def _look(self) -> None:
        """Say again what is ours, and take what nobody works on."""
        if self._tasks:
            ids = list(self._tasks)
            self.statuses = await asyncio.to_thread(self.batches.hold, self.name, ids)
        held = Counter(self._teams.values())
        for row in await asyncio.to_thread(self.batches.take, self.name, AT_ONCE, held):
            self._teams[row["id"]] = row["team"]
            self.statuses[row["id"]] = row["status"]
            task = asyncio.create_task(self._work_on(row))
            self._tasks[row["id"]] = task
            task.add_done_callback(partial(self._ended, row["id"]))

    def _ended(self, batch_id: str, _: asyncio.Task[None]) -> None:
        self._tasks.pop(batch_id, None)
        self._teams.pop(batch_id, None)
        self.statuses.pop(batch_id, None)

    def _sweep(self, now_s: float) -> None:
        self.files.sweep(now_s)
        self.batches.sweep(now_s - self.settings.batches.keep_days * 86_400.0)

    async def _work_on(self, row: Row) -> None:
        try:
            await _Work(self, row).run()
        except Lost:
            log.info("batch %s is another process's, or somebody ended it", row["id"])
        except (SQLAlchemyError, OSError):
            await asyncio.sleep(LOOK_S)
        except Exception:
            log.exception("batch %s: trying again in %d s", row["id"], AGAIN_S)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), AGAIN_S)
        await self._let_go(row["id"])

    async def _let_go(self, batch_id: str) -> None:
        """Ended or not: it can be taken again where there is still something to do."""
        try:
            await asyncio.to_thread(self.batches.let_go, self.name, batch_id)
        except (SQLAlchemyError, OSError):
            log.warning("batch %s is taken up again when its time is up", batch_id)


class _Work:
    """One batch, worked on by one process."""

    def __init__(self, runner: Runner, row: Row) -> None:
        self.runner = runner
        self.row = row
        self.id: str = row["id"]
        self.headers = sending.headers_of(json.loads(row["headers"]))
        self.results: list[Result] = []

    @property
    def settings(self) -> BatchSettings:
        return self.runner.settings.batches

    @property
    def cancelled(self) -> bool:
        return self.runner.statuses.get(self.id) == "cancelling"

    @property
    def expired(self) -> bool:
        return bool(time.time() >= self.row["expires_s"])

    @property
    def over(self) -> bool:
        """Nothing more is to be sent from here."""
        known = self.id in self.runner.statuses
        return self.runner.stopping.is_set() or self.cancelled or self.expired or not known

    async def run(self) -> None:
        status = self.row["status"]
        if status == "validating" and not await self._checked():
            return
        if status in ("validating", "in_progress"):
            await self._send_all()
            if self.results or self.runner.stopping.is_set():
                return
        if self.id not in self.runner.statuses:
            raise Lost(self.id)
        if self.cancelled or status == "cancelling":
            await self._finish("cancelled")
        elif self.expired and status != "finalizing":
            await self._finish("expired", "batch_expired", "Its time was up before it was sent.")
        elif self.caller() is None and status != "finalizing":
            await self._finish("failed", "invalid_api_key", _REVOKED)
        else:
            if status != "finalizing":
                await self._turn("finalizing")
            await self._finish("completed")

    def caller(self) -> Caller | None:
        """In whose name its requests are sent, and within whose limits; None: in nobody's."""
        keys, key_id, team = self.runner.keys, self.row["key_id"], self.row["team"]
        if key_id is None:
            return ANYONE if keys.open and team == ANYONE.team else None
        now_s = time.time()
        found = keys.by_id(key_id, now_s)
        for one in keys.callers() if found is None else ():
            if key_id in one.earlier and one.key_id is not None:  # it was rotated
                found = keys.by_id(one.key_id, now_s)
        return found if found is not None and found.team == team else None

    # -- the file --------------------------------------------------------------------------------

    async def _checked(self) -> bool:
        """Whether its file is sound; the batch has failed where it is not."""
        found = await asyncio.to_thread(self._check)
        if not found.problems:
            await self._turn("in_progress", total=found.total)
            return True
        await self._turn("failed", errors=_told(found.problems), owner_after=None)
        return False

    def _check(self) -> Checked:
        longest = self.runner.settings.server.max_body_bytes
        found = Checked(self.row["endpoint"], self.settings.max_requests, longest)
        if self.runner.files.get(self.row["team"], self.row["input_file_id"]) is None:
            found.problems.append(Problem("file_deleted", "The input file is gone."))
            return found
        for number, line in self._lines(longest):
            found.take(number, line)
            if found.enough:
                break
        found.end()
        return found

    def _lines(self, most_bytes: int = sys.maxsize) -> Iterator[tuple[int, bytes]]:
        return lines_in(self.runner.files.content(self.row["input_file_id"]), most_bytes)

    async def _unsent(self) -> AsyncIterator[tuple[int, bytes]]:
        """The lines without results, in order; the file is read in a thread."""
        done = await asyncio.to_thread(self.runner.batches.done, self.id)
        lines = self._lines()
        while some := await asyncio.to_thread(_next, lines, 32):
            for number, line in some:
                if number not in done:
                    yield number, line

    # -- the requests ----------------------------------------------------------------------------

    async def _send_all(self) -> None:
        """Send what has no result, until all have or nothing more may be sent."""
        room = _Room(self.settings.in_flight)
        keeping = asyncio.create_task(self._keep_on())
        tasks: set[asyncio.Task[None]] = set()
        try:
            async for number, line in self._unsent():
                await room.enter(len(line))
                if await self._held():
                    break
                task = asyncio.create_task(self._send(number, read(line)))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                task.add_done_callback(partial(room.leave, len(line)))
            while tasks:
                await asyncio.wait(tasks)
        finally:
            for task in list(tasks):
                await ended(task)
            await ended(keeping)
        await self._keep()
        while self.results and await self._wait(1.0):
            await self._keep()

    async def _held(self) -> bool:
        """Wait for a cleaner grid, where that is wanted; whether there is nothing more to send."""
        while not self.over and self.caller() is not None:
            limit, now = self.settings.max_intensity_g_per_kwh, self.runner.grid()
            until_s = self.row["created_s"] + self.settings.wait_s
            if limit is None or now is None or now <= limit or time.time() >= until_s:
                return False
            await self._wait(min(5.0, until_s - time.time()))
        return True

    async def _wait(self, wait_s: float) -> bool:
        """False when it was over before that."""
        end_s = time.monotonic() + wait_s
        while not self.over:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return True
            try:
                await asyncio.wait_for(self.runner.stopping.wait(), min(left_s, 1.0))
            except TimeoutError:
                continue
        return False

    async def _send(self, number: int, line: Line) -> None:
        async def once() -> Answer | None:
            async with self.runner.slots:
                caller = self.caller()
                if self.over or caller is None:
                    return None
                return await sending.send(self.runner.steps, line, self.headers, caller)

        answer = await sending.sent(once, self._wait)
        if answer is not None:
            self.results.append(answer.result(number, line))

    async def _keep_on(self) -> None:
        while True:
            await asyncio.sleep(KEEP_S)
            try:
                await self._keep()
            except Lost:
                self.runner.statuses.pop(self.id, None)
                return

    async def _keep(self) -> None:
        """Keep the results so far; those that cannot be kept wait."""
        found = self.results[:]
        if not found:
            return
        try:
            await asyncio.to_thread(self.runner.batches.keep, self.runner.name, self.id, found)
        except (SQLAlchemyError, OSError):
            return
        del self.results[: len(found)]
        for one in found:
            self.runner.counted("completed" if one.ok else "failed")

    # -- the end ---------------------------------------------------------------------------------

    async def _turn(self, status: str, **more: object) -> None:
        await asyncio.to_thread(
            partial(self.runner.batches.turn, self.runner.name, self.id, status, **more)
        )

    async def _finish(self, status: str, code: str = "", why: str = "") -> None:
        expires_s = time.time() + self.settings.keep_days * 86_400.0
        finish = partial(
            self.runner.batches.finish,
            self.runner.name,
            self.row,
            status,
            expires_s,
            self._never_sent(code, why) if code else (),
            _told([Problem(code, why)]) if status == "failed" else None,
        )
        await asyncio.to_thread(finish)

    def _never_sent(self, code: str, why: str) -> Iterator[bytes]:
        done = self.runner.batches.done(self.id)
        for number, line in self._lines():
            if number not in done:
                yield unanswered(read(line).custom_id, number, code, why)


def _told(problems: list[Problem]) -> str:
    """What a batch that failed says of it, as OpenAI's do."""
    return msgspec.json.encode({"object": "list", "data": problems}).decode()


_REVOKED = "The key that made this batch is no longer good."


class _Room:
    """Holds the lines of a batch that are being sent, or wait to be: not too many, not too long."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lines = self._bytes = 0
        self._left = asyncio.Event()

    async def enter(self, size: int) -> None:
        """Wait for room; for one at a time."""
        while self._lines and (self._lines >= self._most or self._bytes + size > HELD_BYTES):
            self._left.clear()
            await self._left.wait()
        self._lines, self._bytes = self._lines + 1, self._bytes + size

    def leave(self, size: int, _: object) -> None:
        self._lines, self._bytes = self._lines - 1, self._bytes - size
        self._left.set()


def _next(found: Iterator[tuple[int, bytes]], most: int) -> list[tuple[int, bytes]]:
    """The next few lines, fewer where they are long."""
    some, size = [], 0
    for one in islice(found, most):
        some.append(one)
        size += len(one[1])
        if size >= PART_BYTES:
            break
    return some
