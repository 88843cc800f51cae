"""A fleet of engines as fluids: fast enough to replay a million requests, close enough to compare.

Between two events (a request joins or ends) a batch does the same steps over and over, so its time
and energy have a closed form: with B sequences and C cached tokens, n steps take

    n·(step_s + token_s·B) + context_s·(C·n + B·n²/2)

and joules likewise. Prompts are computed one after another and hold the batch up meanwhile, which
is what chunked prefill comes to. tests/policies/test_fleet.py holds this against the simulated
engine, which does every step.
"""

from __future__ import annotations

import heapq
from collections import deque
from math import inf, sqrt

import msgspec

from estimators.types import Load
from meters.types import StepPhysics


class Sleep(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine that nobody uses saves energy. Without it an engine idles at full memory."""

    after_s: float = 60.0  # idle for so long
    power_w: float = 60.0  # while it sleeps
    wake_s: float = 10.0  # until it serves again, at idle power


class Served(msgspec.Struct, frozen=True):
    """One request that an engine has finished; times on the trace's clock."""

    key: int
    arrival_s: float
    first_token_s: float
    end_s: float


class Queued(msgspec.Struct):
    key: int
    arrival_s: float
    prompt_tokens: float
    output_tokens: float
    left_s: float = 0.0  # of its prefill
    first_token_s: float = 0.0


class FluidEngine:
    """One engine; ``advance`` moves it on, ``submit`` gives it a request at its present time."""

    def __init__(
        self, physics: StepPhysics, max_num_seqs: int = 256, sleep: Sleep | None = None
    ) -> None:
        self.physics = physics
        self.max_num_seqs = max_num_seqs
        self.sleep = sleep
        self.now_s = 0.0
        self.active_j = 0.0  # above idle
        self.busy_s = 0.0
        self.asleep_s = 0.0
        self.next_event_s = inf
        self._steps = 0.0  # virtual count of decode steps since the beginning
        self._batch = 0
        self._context = 0.0
        self._ends: list[tuple[float, int, Queued]] = []
        self._prefills: deque[Queued] = deque()
        self._waiting: deque[Queued] = deque()
        self._idle_since_s: float | None = 0.0

    @property
    def load(self) -> Load:
        """Its load, as its metrics page would say."""
        return Load(
            running=float(self._batch + len(self._prefills)),
            waiting=float(len(self._waiting)),
            context_tokens=self._context,
            asleep=False,
            known=True,
        )

    def asleep_at(self, now_s: float) -> bool:
        """Whether it sleeps at that time."""
        since_s = self._idle_since_s
        return (
            self.sleep is not None
            and since_s is not None
            and (now_s - since_s > self.sleep.after_s)
        )

    def energy_j(self, until_s: float) -> float:
        """All joules until then, idle and asleep included."""
        asleep_s, low_w = self.asleep_s, self.physics.idle_power_w
        if self.sleep is not None:
            low_w = min(low_w, self.sleep.power_w)
            if self._idle_since_s is not None:
                asleep_s += max(0.0, until_s - self._idle_since_s - self.sleep.after_s)
        awake_s = until_s - asleep_s
        return self.active_j + self.physics.idle_power_w * awake_s + low_w * asleep_s

    def submit(self, key: int, prompt_tokens: float, output_tokens: float) -> None:
        """Give it a request now."""
        queued = Queued(key, self.now_s, prompt_tokens, max(1.0, output_tokens))
        if self._idle_since_s is not None:
            if self.sleep is not None and self.asleep_at(self.now_s):
                slept_s = self.now_s - self._idle_since_s - self.sleep.after_s
                self.asleep_s += slept_s
                queued.left_s += self.sleep.wake_s
            self._idle_since_s = None
        self._waiting.append(queued)
        self._admit()
        self._look_ahead()

    def advance(self, to_s: float) -> list[Served]:
        """Move on to that time; the requests that ended until then."""
        ended: list[Served] = []
        while self.now_s < to_s:
            if self._prefills:
                first = self._prefills[0]
                if self.now_s + first.left_s > to_s:
                    first.left_s -= to_s - self.now_s
                    self.busy_s += to_s - self.now_s
                    self.now_s = to_s
                    break
                self.now_s += first.left_s
                self.busy_s += first.left_s
                self._prefills.popleft()
                self._join(first, ended)
            elif self._ends:
                steps = self._ends[0][0] - self._steps
                length_s = self._length_s(steps)
                if self.now_s + length_s > to_s:
                    length_s = to_s - self.now_s
                    self._decode(self._steps_in(length_s), length_s)
                    self.now_s = to_s
                    break
                self._decode(steps, length_s)
                self.now_s += length_s
                _, _, queued = heapq.heappop(self._ends)
                self._batch -= 1
                self._context -= queued.prompt_tokens + queued.output_tokens
                ended.append(self._served(queued))
                self._admit()
            else:
                if self._idle_since_s is None:
                    self._idle_since_s = self.now_s
                self.now_s = to_s
        if not self._ends and not self._prefills and self._idle_since_s is None:
            self._idle_since_s = self.now_s
            self._context = 0.0
        self._look_ahead()
        return ended

    def _admit(self) -> None:
        while self._waiting and self._batch + len(self._prefills) < self.max_num_seqs:
            queued = self._waiting.popleft()
            queued.left_s += queued.prompt_tokens * self.physics.prefill_s
            self._prefills.append(queued)

    def _join(self, queued: Queued, ended: list[Served]) -> None:
        physics = self.physics
        alone = self._batch == 0
        # The step that ends a prefill gives the first token; others decode in it already.
        step_s = physics.step_s + physics.token_s * (self._batch + 1)
        queued.first_token_s = self.now_s + step_s
        self.active_j += queued.prompt_tokens * physics.prefill_j + physics.token_j
        if alone:
            self.active_j += physics.step_j
            self.now_s += step_s
            self.busy_s += step_s
        if queued.output_tokens <= 1.0:
            ended.append(self._served(queued))
            self._admit()
            return
        self._batch += 1
        self._context += queued.prompt_tokens + 1.0
        end = self._steps + queued.output_tokens - 1.0
        heapq.heappush(self._ends, (end, queued.key, queued))

    def _served(self, queued: Queued) -> Served:
        end_s = max(self.now_s, queued.first_token_s)
        return Served(queued.key, queued.arrival_s, queued.first_token_s, end_s)

    def _length_s(self, steps: float) -> float:
        physics, batch = self.physics, self._batch
        reads = self._context * steps + batch * steps * steps / 2.0
        return steps * (physics.step_s + physics.token_s * batch) + physics.context_s * reads

    def _steps_in(self, length_s: float) -> float:
        """The inverse of ``_length_s``."""
        physics, batch = self.physics, self._batch
        linear = physics.step_s + physics.token_s * batch + physics.context_s * self._context
        square = physics.context_s * batch / 2.0
        if square <= 0.0:
            return length_s / linear
        # The root that stays finite when the square term is small.
        return 2.0 * length_s / (linear + sqrt(linear * linear + 4.0 * square * length_s))

    def _decode(self, steps: float, length_s: float) -> None:
        physics, batch = self.physics, self._batch
        reads = self._context * steps + batch * steps * steps / 2.0
        self.active_j += steps * (physics.step_j + physics.token_j * batch)
        self.active_j += physics.context_j * reads
        self._steps += steps
        self._context += batch * steps
        self.busy_s += length_s

    def _look_ahead(self) -> None:
        if self._prefills:
            self.next_event_s = self.now_s + self._prefills[0].left_s
        elif self._ends:
            self.next_event_s = self.now_s + self._length_s(self._ends[0][0] - self._steps)
        else:
            self.next_event_s = inf
