"""One request on its way: what the steps note about it, and the watch over its time limits."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable

import msgspec
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from estimators.types import Estimate, Features, Load
from meters.prefixes import Sent, characters
from meters.types import Activity, Evidence
from policies.answer_budget import AnswerBudget
from policies.types import Candidate, Decision
from proxy.auth import Caller
from proxy.backends import Engine
from proxy.background import ended
from proxy.budgets import Charge
from proxy.conversations import Turn, called
from proxy.errors import ApiError
from proxy.forms import Form
from proxy.routing import Routed
from proxy.similar import Question
from proxy.sse import TokenUsage
from proxy.store import Admission

log = logging.getLogger("joulegate.flight")


class Admitted(msgspec.Struct, frozen=True):
    """A request's place in the store: what to settle, and which answer it may keep."""

    holder: str
    charges: tuple[Charge, ...]
    admission: Admission
    cache_key: str | None
    claims: bool = False  # others wait for its answer


class Sample(msgspec.Struct, gc=False):
    """A chat that is to be judged: its body, and the answer as it comes. Forgotten once judged."""

    body: bytes
    parts: list[bytes]
    room: int  # bytes of answer that are still taken

    def hear(self, part: bytes) -> None:
        self.room -= len(part)
        if self.room >= 0:
            self.parts.append(part)


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that was asked for along the way and did not go to the client; monotonic times."""

    kind: str  # answer | judge | given up
    backend: str
    node: str
    sent_s: float
    end_s: float
    first_token_s: float | None
    prompt_tokens: int | None
    output_tokens: int | None
    estimate: Estimate | None
    against: str = ""  # what its checks found
    hosted: bool = False  # another's API, which no meter reads
    answer_budget: str | None = None  # that it was asked for under


class Flight:
    """Everything known of one request while it is served; becomes its usage record."""

    __slots__ = (
        "admitted",
        "asked",
        "attempts",
        "begins",
        "blocks",
        "body_sent",
        "booked",
        "budget",
        "cache",
        "cache_group",
        "caller",
        "candidates",
        "context_tokens",
        "cycle",
        "deadline_s",
        "decision",
        "earlier",
        "end_s",
        "endpoint",
        "engine",
        "error",
        "estimate",
        "events",
        "features",
        "first_token_s",
        "form",
        "gone",
        "headers_sent",
        "hit",
        "instead",
        "kept",
        "late",
        "loads",
        "opaque",
        "outcome",
        "policy",
        "prefix",
        "probes",
        "progress",
        "question",
        "request_id",
        "routed",
        "sample",
        "sending",
        "sent_s",
        "session",
        "start_s",
        "start_wall_s",
        "status",
        "stream",
        "tags",
        "task",
        "traceparent",
        "tried",
        "turn",
        "typed_events",
        "usage",
        "user_hash",
        "wait_s",
    )

    def __init__(self, endpoint: str) -> None:
        self.start_s = time.monotonic()
        self.start_wall_s = time.time()
        self.request_id = new_request_id(self.start_wall_s)
        self.endpoint = endpoint
        self.caller: Caller | None = None
        self.asked = ""
        self.policy = ""
        self.tags: tuple[str, ...] = ()
        self.session: str | None = None
        self.user_hash: str | None = None
        self.turn: Turn | None = None  # the conversation's turn before
        self.prefix: int | None = None  # what tells its messages from all others
        self.traceparent: bytes | None = None  # the client's own trace
        self.blocks: tuple[int, ...] = ()  # of its prompt, where engines' caches are followed
        self.begins: Sent | None = None  # its prompt among others that the engine was sent
        self.features: Features | None = None
        self.candidates: tuple[Candidate, ...] = ()
        self.decision: Decision | None = None
        self.routed: Routed | None = None  # what the decision was made from
        self.engine: Engine | None = None
        self.budget: AnswerBudget | None = None  # under which the engine answers
        self.estimate: Estimate | None = None
        self.form: Form | None = None  # what was uploaded instead of JSON
        self.opaque = False  # neither prompt nor answer is text that could be counted
        self.stream = False
        self.cache = "off"
        self.cache_group = ""  # the backend group that its cache key names
        self.question: Question | None = None  # where near-copies of it may be answered alike
        self.attempts = 0
        self.earlier: list[Attempt] = []  # answers that did not go to the client
        self.tried = 0  # attempts that those took
        self.status = 0
        self.error: ApiError | None = None
        self.outcome = "ok"
        self.headers_sent = False
        # What to do once all that was chosen has failed.
        self.instead: Callable[[Flight], Routed | None] | None = None
        self.body_sent = False
        self.booked = False
        self.usage: TokenUsage | None = None
        self.events = 0  # events with content so far
        self.typed_events = 0  # events of any kind, of an API that names them
        self.progress: list[tuple[float, float]] = []
        self.sent_s: float | None = None
        self.first_token_s: float | None = None
        self.end_s: float | None = None
        self.wait_s = 0.0  # spent waiting for upstreams, not ours
        self.loads: Engine | None = None  # the engine that it counts in the load of
        self.context_tokens = 0  # what that load was raised by
        self.probes = False  # it tries whether that engine answers again
        self.sending = False  # waits for the client to read, not for the engine
        self.gone = False  # the client went away
        self.cycle: RequestResponseCycle | None = None  # the server's own, which knows first
        self.kept = False  # the answer went into the cache
        self.hit: Evidence | None = None  # of the answer that came out of it
        self.sample: Sample | None = None  # what judging hears of it
        self.late: str | None = None  # which time limit was broken
        self.deadline_s: float | None = None
        self.task: asyncio.Task[object] | None = None
        self.admitted: Admitted | None = None  # its place in the store, until it is settled

    @property
    def conversation(self) -> str:
        """What its conversation is called in records; a new one is called as its first request."""
        if self.session is not None and self.caller is not None:
            return called(self.caller.team, self.session)
        return self.request_id if self.turn is None else self.turn.session

    @property
    def served_by(self) -> str:
        """The candidate that answers: the engine, under its answer budget where there is one."""
        name = self.engine.name if self.engine is not None else ""
        return name if self.budget is None else f"{name}+{self.budget.name}"

    def load_of(self, backend: str) -> Load:
        """A backend's load when the decision was made."""
        return next((c.load for c in self.candidates if c.backend.name == backend), Load())

    def follow(self, routed: Routed) -> None:
        """Go where that decision says."""
        self.decision = routed.decision
        self.policy = routed.decision.policy
        self.candidates = routed.candidates
        self.routed = routed
        self.estimate = routed.estimate(routed.decision.chosen)

    def wall(self, monotonic_s: float) -> float:
        """Unix time of a monotonic time of this process."""
        return self.start_wall_s + (monotonic_s - self.start_s)

    def activity(self) -> Activity | None:
        """What it did on its node so far, for attribution; None while nothing was sent."""
        if self.engine is None or self.sent_s is None:
            return None
        usage, features = self.usage, self.features
        prompt = usage.prompt_tokens if usage and usage.prompt_tokens is not None else None
        output = usage.completion_tokens if usage and usage.completion_tokens is not None else None
        guessed = features.prompt_tokens if features else 0
        told = usage is not None and usage.cached_tokens is not None
        return Activity(
            request_id=self.request_id,
            node=self.engine.node,
            engine=self.engine.name,
            start_s=self.wall(self.sent_s),
            first_token_s=None if self.first_token_s is None else self.wall(self.first_token_s),
            end_s=None if self.end_s is None else self.wall(self.end_s),
            prompt_tokens=float(guessed if prompt is None else prompt),
            cached_prompt_tokens=float((usage.cached_tokens if usage else None) or 0),
            output_tokens=float(output) if output is not None else self._so_far(),
            progress=tuple((self.wall(at), tokens) for at, tokens in self.progress),
            likely_cached_tokens=None
            if told
            else self._likely(guessed if prompt is None else prompt),
        )

    def _likely(self, prompt_tokens: int) -> float | None:
        """Tokens of its prompt that the engine most likely had; None where nobody knows."""
        begins = self.begins
        if begins is None or not begins.blocks:
            return None
        return prompt_tokens * characters(begins.cached()) / characters(begins.blocks)

    def activities(self) -> list[Activity]:
        """What it did on every node so far."""
        now = self.activity()
        found = [] if now is None else [now]
        for attempt in self.earlier:
            first_s = attempt.first_token_s
            found.append(
                Activity(
                    request_id=self.request_id,
                    node=attempt.node,
                    engine=attempt.backend,
                    start_s=self.wall(attempt.sent_s),
                    first_token_s=None if first_s is None else self.wall(first_s),
                    end_s=self.wall(attempt.end_s),
                    prompt_tokens=float(attempt.prompt_tokens or 0),
                    output_tokens=float(attempt.output_tokens or 0),
                )
            )
        return found

    def _so_far(self) -> float:
        """Output tokens until now: those seen; of an answer that is not streamed, as many as were
        expected by this time, since it shows none before its end."""
        estimate = self.estimate
        if self.stream or self.end_s is not None or self.sent_s is None or estimate is None:
            return float(self.events)
        if estimate.output_tokens is None or estimate.latency_s is None or estimate.ttft_s is None:
            return 0.0
        since_s = time.monotonic() - self.sent_s - estimate.ttft_s.mid
        whole_s = max(estimate.latency_s.mid - estimate.ttft_s.mid, 1e-3)
        return estimate.output_tokens.mean * min(max(since_s / whole_s, 0.0), 1.0)


def new_request_id(at_s: float) -> str:
    """A new request's id: its arrival in milliseconds since 1970, then 64 random bits.

    Ids that come one after the other lie together in the ledger's indexes: a batch then touches
    a few pages however many millions of requests are there already. The bits need not be secret:
    only a request's own team may ask for it. They come without a call of the system, and a forked
    process begins its own (the random module sees to that).
    """
    return f"req_{int(at_s * 1000):011x}{random.getrandbits(64):016x}"


def arrived_s(request_id: str) -> float | None:
    """When the request of an id arrived, Unix time; None for what is no such id."""
    found = re.fullmatch(r"req_([0-9a-f]{11})[0-9a-f]{16}", request_id)
    return None if found is None else int(found[1], 16) / 1000.0


class TimeWatch:
    """Cancels requests that are late and those whose client went away. One look at all of them
    many times a second costs less than a timer for each chunk and a task for each client."""

    def __init__(self, interval_s: float = 0.03) -> None:
        self.interval_s = interval_s
        self.flights: dict[str, Flight] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self, on_tick: Callable[[float], None] | None = None) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(on_tick))

    async def stop(self) -> None:
        await ended(self._task)

    async def _run(self, on_tick: Callable[[float], None] | None) -> None:
        while True:
            await asyncio.sleep(self.interval_s)
            now_s = time.monotonic()
            for flight in list(self.flights.values()):
                cycle = flight.cycle
                if cycle is not None and cycle.disconnected:
                    flight.cycle = None
                    if not flight.body_sent and flight.task is not None:
                        flight.gone = True
                        flight.task.cancel()
                elif flight.deadline_s is not None and now_s >= flight.deadline_s:
                    flight.deadline_s = None
                    if flight.task is None:
                        continue
                    if flight.sending:  # the client stopped reading: no fault of the engine
                        flight.gone = True
                        if cycle is not None:
                            cycle.transport.abort()
                    else:
                        flight.late = flight.late or "time"
                    flight.task.cancel()
            if on_tick is not None:
                try:
                    on_tick(now_s)
                except Exception:  # time limits go on whatever else fails
                    log.exception("what is looked at beside time limits failed")


def connection_of(receive: Callable[..., object]) -> RequestResponseCycle | None:
    """uvicorn's side of a request, which knows when the client is gone; None of other servers."""
    owner = getattr(receive, "__self__", None)
    return owner if isinstance(owner, RequestResponseCycle) else None
