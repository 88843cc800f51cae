"""The books behind the request path: finished requests to the journal, windows of energy divided
among requests, lengths and times of answers to the estimators.

`Accounts.finished` is called at the end of each request and puts its record into the journal's
file. Everything else happens in one background task. What answers took, estimators learn from the
ledger (proxy/outcomes.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from estimators.types import Estimator, Features, Outcome
from meters.types import (
    Activity,
    Around,
    Attribution,
    StepPhysics,
    UsageRecord,
    Window,
)
from proxy.attempts import Recount
from proxy.flight import Flight
from proxy.usage_records import record_of

log = logging.getLogger("joulegate.accounts")

# A window waits this long for answers that are not streamed, which show their tokens at the end,
# and for other replicas to tell what they did.
HOLD_S = 15.0
# A window is divided among its neighbours: those that began so long before it, and so many ahead.
BEHIND_S = 10.0
AHEAD = 3
AHEAD_S = 6.0  # they are waited for, so long after its end: an agent may be away
LAG_S = 1.5  # a window waits this long after its end for the records of requests in it
KEEP_S = 900.0  # how long a finished request can still be charged by a late window
UNMETERED_S = 30.0  # likewise on a node that sends none
SLACK_S = 60.0  # requests are kept in the order they finished, but for this much
MOST_KEPT = 200_000  # finished requests of a node that are kept at most
PUBLISHED_S = 20.0  # how long a finished request is told to other replicas
DISK_S = 0.5  # how long an answer's last bytes wait for its record to be in the journal's file
HANGS_S = 10.0  # where that was not enough, others do not wait for so long
STRANGER = "too_many_failed_keys"
RECENT = 5_000  # records that receipts find before the ledger has them

Divide = Callable[[Window, Sequence[Activity], StepPhysics | None, Around], Attribution]


class Journal(Protocol):
    def write(self, entry: UsageRecord | Window) -> None: ...

    def record(self, entry: UsageRecord) -> asyncio.Future[bool] | None: ...

    def append(self, entry: Attribution) -> None: ...


class Learner(Protocol):
    """Learns an engine's physics from windows, off the request path."""

    def physics(self, node: str) -> StepPhysics | None: ...

    def observe(self, window: Window, activities: Sequence[Activity]) -> None: ...


class Observer(Protocol):
    """Counts for /metrics."""

    def request(self, flight: Flight, record: UsageRecord) -> None: ...

    def divided(self, attribution: Attribution) -> None: ...


class Others(Protocol):
    """What other replicas did on a node between two Unix times."""

    until_s: float  # Unix: as far as that is known

    def __call__(self, node: str, start_s: float, end_s: float) -> Iterable[Activity]: ...


class Accounts:
    """Keeps the books of one replica."""

    def __init__(
        self,
        *,
        journal: Journal,
        estimator: Estimator,
        live: dict[str, Flight],
        divide: Divide,
        learner: Learner,
        observer: Observer,
        replica: str,
        on_record: Callable[[UsageRecord], None] | None = None,
        on_flight: Callable[[Flight, UsageRecord], None] | None = None,
        recount: Recount | None = None,
    ) -> None:
        self.journal = journal
        self.estimator = estimator
        self.live = live
        self.divide = divide
        self.learner = learner
        self.observer = observer
        self.replica = replica
        self.others: Others | None = None  # what other replicas have in flight
        self.on_record = on_record
        self.on_flight = on_flight
        self.recount = recount
        # Takes windows of a time that only the ledger knows all requests of; None: there is nobody.
        self.late: Callable[[Window], None] | None = None
        self.recent: OrderedDict[str, UsageRecord] = OrderedDict()
        self.windows: deque[Window] = deque()
        self._settled: dict[str, deque[Activity]] = {}  # by node, in the order they finished
        self._untaught: deque[Outcome] = deque(maxlen=MOST_KEPT)
        self._metered_s: dict[str, float] = {}  # by node: the end of its last window
        self._began_s = time.monotonic()
        self._forgotten_s: dict[str, float] = {}  # by node: the end of what was let go last
        self._past: dict[str, deque[Window]] = {}  # by node: those divided last
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._hangs_until_s = 0.0
        self.imbalance_j = 0.0  # what the books are off by; reads zero

    # -- requests ------------------------------------------------------------------------------

    def finished(self, flight: Flight) -> asyncio.Future[bool] | None:
        """Put a finished request on the books. Never raises into serving.

        Gives None when its record is in the journal's file, else what ``on_disk`` waits for.
        """
        written: asyncio.Future[bool] | None = None
        try:
            record = record_of(flight, self.replica, self.recount)
            if flight.error is not None and flight.error.code == STRANGER:
                # Counted and kept by nobody: what comes on top of the minute's wrong keys.
                self.observer.request(flight, record)
                if self.on_record is not None:
                    self.on_record(record)
                return None
            self.recent[record.request_id] = record
            if len(self.recent) > RECENT:
                self.recent.popitem(last=False)
            written = self.journal.record(record)
            self._keep(flight, record)
            self.observer.request(flight, record)
            if self.on_record is not None:
                self.on_record(record)
            if self.on_flight is not None:
                self.on_flight(flight, record)
        except Exception:
            log.exception("%s could not be put on the books", flight.request_id)
        return written

    async def on_disk(self, written: asyncio.Future[bool]) -> None:
        """Wait until a record is in the journal's file; not for long, and not again for a while
        where that was too long: a disk that hangs must not hold up answers."""
        if time.monotonic() < self._hangs_until_s:
            return
        done, _ = await asyncio.wait([written], timeout=DISK_S)
        if not done:
            self._hangs_until_s = time.monotonic() + HANGS_S
            log.warning("The journal's disk hangs: answers do not wait for their records for now")

    def _keep(self, flight: Flight, record: UsageRecord) -> None:
        """Remember what windows may charge, and what the answer teaches."""
        for activity in reversed(flight.activities()):
            kept = self._settled.setdefault(activity.node, deque(maxlen=MOST_KEPT))
            kept.append(activity)
        for attempt in flight.earlier:
            if attempt.kind == "answer" and flight.features is not None:
                self._untaught.append(
                    Outcome(
                        backend=attempt.backend,
                        features=flight.features,
                        load=flight.load_of(attempt.backend),
                        latency_s=attempt.end_s - attempt.sent_s,
                        output_tokens=attempt.output_tokens,
                        answer_budget=attempt.answer_budget,
                    )
                )
        if flight.engine is None or flight.sent_s is None or flight.features is None:
            return
        ok = record.outcome == "ok"
        self._untaught.append(
            Outcome(
                backend=flight.engine.name,
                features=_as_served(flight.features, record),
                load=flight.load_of(flight.engine.name),
                ttft_s=record.ttft_s,
                latency_s=record.latency_s if ok else None,
                output_tokens=record.output_tokens if ok else None,
                answer_budget=record.answer_budget,
            )
        )

    # -- windows -------------------------------------------------------------------------------

    def window(self, window: Window) -> None:
        """Take a closed window in; from any thread. It is journalled first, divided later."""
        self.journal.write(window)
        self.windows.append(window)

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Divide what is there and end."""
        if self._task is not None:
            self._stopping.set()
            await self._task
        await self.divide_due(time.time() + HOLD_S + AHEAD_S)

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                await asyncio.wait_for(self._stopping.wait(), 0.25)
            except TimeoutError:
                pass
            try:
                self.teach()
                await self.divide_due(time.time())
            except Exception:
                log.exception("a window could not be divided; its figures stay estimated")

    def teach(self) -> None:
        """Tell the estimator how long the answers were that ended since the last time."""
        while self._untaught:
            try:
                self.estimator.learn(self._untaught.popleft())
            except Exception:
                log.exception("nothing could be learnt from an answer")

    async def divide_due(self, now_s: float) -> None:
        """Divide the windows that ended at least LAG_S before this Unix time, each node's in
        order: once AHEAD more came or AHEAD_S went by, and up to HOLD_S later where an answer in
        them has not shown what it is or another replica what it did."""
        came = [self.windows.popleft() for _ in range(len(self.windows))]
        by_node: dict[str, list[Window]] = {}
        for window in came:
            by_node.setdefault(window.node, []).append(window)
        waiting: set[str] = set()  # windows
        for windows in by_node.values():
            for place, window in enumerate(windows):
                if self.late is not None and self._is_late(window):
                    self.late(window)
                    continue
                after = tuple(windows[place + 1 : place + 1 + AHEAD])
                if not self._due(window, len(after), now_s):
                    waiting.update(w.window_id for w in windows[place:])
                    break
                try:
                    await self._divide(window, after)
                except Exception:
                    log.exception("nothing could be learnt from window %s", window.window_id)
        self.windows.extendleft(w for w in reversed(came) if w.window_id in waiting)
        self._forget(now_s)

    def _due(self, window: Window, ahead: int, now_s: float) -> bool:
        age_s = now_s - window.end_s
        if age_s < -SLACK_S:
            return True  # of before the clock was set back: nothing is to be waited for
        if age_s < LAG_S or (ahead < AHEAD and age_s < AHEAD_S):
            return False
        if age_s >= HOLD_S:
            return True
        told = self.others is None or self.others.until_s >= window.end_s
        return told and not self._hides_work(window)

    def _is_late(self, window: Window) -> bool:
        """Whether it comes so late that requests in it may not be remembered any more: its agent
        was cut off, or this process had not begun."""
        now_s = time.time()
        if self.others is not None and now_s - window.end_s > PUBLISHED_S:
            return True
        began_s = now_s - (time.monotonic() - self._began_s)
        return window.start_s < max(began_s, self._forgotten_s.get(window.node, 0.0))

    def _hides_work(self, window: Window) -> bool:
        """Whether an answer that is not streamed was on its way then, and is yet."""
        for flight in list(self.live.values()):
            engine, sent_s = flight.engine, flight.sent_s
            if engine is None or engine.node != window.node or flight.stream or sent_s is None:
                continue
            if flight.end_s is None and flight.wall(sent_s) < window.end_s:
                return True
        return False

    async def _divide(self, window: Window, after: tuple[Window, ...]) -> None:
        self._metered_s[window.node] = window.end_s
        past = self._past.setdefault(window.node, deque())
        # What was done before that, other replicas no longer tell.
        known_s = max(window.start_s - BEHIND_S, time.time() - PUBLISHED_S + LAG_S)
        while past and past[0].start_s < known_s:
            past.popleft()
        while past and past[-1].start_s >= window.end_s:
            past.pop()  # of before the clock was set back
        around = Around(tuple(past), after)
        past.append(window)
        since_s = min((w.start_s for w in around.before), default=window.start_s)
        until_s = max((w.end_s for w in after), default=window.end_s)
        activities = self.activities(window.node, since_s, until_s)
        # Milliseconds with hundreds of requests in flight: too long for the event loop.
        attribution = await asyncio.to_thread(self._work_out, window, activities, around)
        self._enter(attribution)  # once, whatever becomes of what it could teach

    def _work_out(self, window: Window, activities: list[Activity], around: Around) -> Attribution:
        try:
            physics = self.learner.physics(window.node)
            attribution = self.divide(window, activities, physics, around)
        except Exception:
            log.exception("window %s could not be divided", window.window_id)
            return undivided(window)
        try:
            self.learner.observe(window, activities)
        except Exception:
            log.exception("nothing could be learnt from window %s", window.window_id)
        return attribution

    def _enter(self, attribution: Attribution) -> None:
        self.journal.append(attribution)
        self.observer.divided(attribution)
        self.imbalance_j += attribution.metered_j - (
            sum(share.energy_j for share in attribution.shares)
            + attribution.idle_j
            + attribution.external_j
            + attribution.unattributed_j
        )

    def activities(self, node: str, start_s: float, end_s: float) -> list[Activity]:
        """What this node did for anyone between two Unix times."""
        found: list[Activity] = []
        for settled in reversed(self._settled.get(node, ())):
            ended_s = settled.end_s or end_s
            if ended_s < start_s - SLACK_S:
                break
            if settled.start_s < end_s and ended_s >= start_s:
                found.append(settled)
        found.reverse()
        known = {activity.request_id for activity in found}
        for flight in list(self.live.values()):
            if flight.request_id in known:
                continue
            if flight.earlier:
                found += [a for a in flight.activities() if a.node == node]
            elif flight.engine is not None and flight.engine.node == node:
                activity = flight.activity()
                if activity is not None:
                    found.append(activity)
            known.add(flight.request_id)
        if self.others is not None:
            found += [a for a in self.others(node, start_s, end_s) if a.request_id not in known]
        return found

    def in_flight(self, node: str) -> list[Activity]:
        """What goes on here on a node; from any thread."""
        live = [flight for flight in list(self.live.values()) if not flight.booked]
        return [a for flight in live for a in flight.activities() if a.node == node]

    def published(self) -> list[Activity]:
        """What other replicas must know: requests in flight, and those of the last seconds."""
        since_s = time.time() - PUBLISHED_S
        live = [flight for flight in list(self.live.values()) if not flight.booked]
        found = [a for flight in live for a in flight.activities()]
        for kept in self._settled.values():
            for settled in reversed(kept):
                if (settled.end_s or 0.0) < since_s:
                    break
                found.append(settled)
        return found

    def _forget(self, now_s: float) -> None:
        """Let go of requests that no window will charge any more."""
        for node, kept in self._settled.items():
            metered = now_s - self._metered_s.get(node, 0.0) < KEEP_S
            oldest_s = now_s - (KEEP_S if metered else UNMETERED_S)
            while kept and (kept[0].end_s or 0.0) < oldest_s:
                gone_s = kept.popleft().end_s or 0.0
                self._forgotten_s[node] = max(gone_s, self._forgotten_s.get(node, 0.0))


def undivided(window: Window) -> Attribution:
    """A window nobody is charged for: all of it unattributed."""
    return Attribution(
        window_id=window.window_id,
        node=window.node,
        start_s=window.start_s,
        end_s=window.end_s,
        metered_j=window.energy_j,
        idle_j=0.0,
        external_j=0.0,
        unattributed_j=window.energy_j,
        shares=(),
        evidence=window.evidence,
        meter=window.meter,
    )


def _as_served(told: Features, record: UsageRecord) -> Features:
    """The request's features with the part of its prompt that was cached."""
    cached = record.cached_prompt_tokens
    if cached is None:
        cached = record.likely_cached_tokens or 0
    return msgspec.structs.replace(told, cached_prompt_tokens=min(cached, told.prompt_tokens))
