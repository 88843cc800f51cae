"""The simulated engine's physics: continuous batching as pure discrete events.

No clock and no I/O: whoever drives it says what time it is. The HTTP server drives it at the pace
of a clock; ``meters.simulated_traffic`` drives it as fast as Python goes. One scheduler step reads
all weights once, gives one token to every decoding sequence, and spends what is left of its token
budget on prompts (chunked prefill). A step's time and energy above idle are linear in its work,
with the coefficients of ``StepPhysics``; the energy of each sequence is known exactly:

- a step's own energy is shared equally by the sequences in it, decoding or prefilling;
- a generated token, a cached token read and a prompt token computed are their sequence's own.

Everything a sequence causes is kept in running sums, so that a step costs the same whatever its
batch: thousands of times real time on one core.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence

import msgspec

from meters.types import StepPhysics

BLOCK_TOKENS = 16  # tokens a prefix-cache block holds; vLLM's default block size

# Llama-3.1-8B on one H100. Chosen so that energy per output token, idle included, is near the
# published .455 J at batch 8, .119 at 64, .070 at 512 (ML.ENERGY v3, vLLM 0.11.1, bf16).
LLAMA_8B_BF16 = StepPhysics(
    idle_power_w=100.0,
    step_j=2.9,
    token_j=0.035,
    context_j=2.0e-5,
    prefill_j=0.014,
    step_s=0.0062,
    token_s=6.0e-5,
    context_s=6.0e-8,
    prefill_s=2.5e-5,
)
# The same with weight-only int4: about .45 of the weight traffic, a little more arithmetic.
LLAMA_8B_INT4 = StepPhysics(
    idle_power_w=100.0,
    step_j=1.3,
    token_j=0.040,
    context_j=2.0e-5,
    prefill_j=0.016,
    step_s=0.0031,
    token_s=6.5e-5,
    context_s=6.0e-8,
    prefill_s=2.9e-5,
)


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One simulated engine."""

    model: str = "llama-3.1-8b"
    physics: StepPhysics = LLAMA_8B_BF16
    max_num_seqs: int = 256
    max_batched_tokens: int = 8192  # scheduled in one step, prompts and decodes together
    kv_tokens: int = 400_000  # what the KV cache holds
    max_model_len: int = 32_768
    prefix_cache: bool = True
    energy_noise: float = 0.02  # relative deviation of one step's energy
    time_noise: float = 0.02  # relative deviation of one step's time
    energy_drift: float = 0.01  # slow relative deviation of energy, as of heat and clocks
    drift_s: float = 60.0  # how long that takes to change
    counter_period_s: float = 0.02  # how often the energy counter is updated; NVML: .02-.1
    mean_output_tokens: float = 220.0  # of answers whose length the caller leaves open
    sigma_output_tokens: float = 0.7  # of the logarithm of that length
    version: str = "0.33.0+joulegate.simulated"
    seed: int = 0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One request as the engine sees it."""

    request_id: str
    prompt_tokens: int
    output_tokens: int  # what it will produce if nobody cancels it
    arrival_s: float = 0.0
    blocks: tuple[Hashable, ...] = ()  # one key for each whole block of the prompt, in order
    cancel_s: float | None = None  # used by meters.simulated_traffic
    team: str = ""
    external: bool = False  # did not come through the proxy


def prefix_blocks(key: Hashable, shared_tokens: int) -> tuple[Hashable, ...]:
    """Block keys of a prompt whose first ``shared_tokens`` are the same for all with ``key``."""
    return tuple((key, i) for i in range(shared_tokens // BLOCK_TOKENS))


class Running:
    """One request inside the engine. ``energy_j`` is final once ``end_s`` is set."""

    __slots__ = (
        "base",
        "cached_tokens",
        "decoding",
        "direct_j",
        "end_s",
        "energy_j",
        "first_token_s",
        "gone",
        "job",
        "joined_step",
        "output_tokens",
        "prefill_done",
        "scheduled_s",
    )

    def __init__(self, job: Job) -> None:
        self.job = job
        self.cached_tokens = 0
        self.prefill_done = 0  # prompt tokens ready, cached ones included
        self.decoding = False
        self.gone = False
        self.joined_step = 0
        self.base = (0.0, 0.0, 0.0, 0.0)
        self.direct_j = 0.0  # prefill, first token, and shares of the steps they were in
        self.energy_j = 0.0
        self.output_tokens = 0  # final; use Engine.produced() while it runs
        self.scheduled_s: float | None = None
        self.first_token_s: float | None = None
        self.end_s: float | None = None

    @property
    def outcome(self) -> str:
        return "length" if self.output_tokens >= self.job.output_tokens else "abort"


class Totals(msgspec.Struct):
    """Cumulative counters of an engine, as its metrics page shows them."""

    active_energy_j: float = 0.0  # above idle
    steps: int = 0
    prompt_tokens: int = 0  # cached ones included; counted when the prompt is done, as vLLM does
    cached_prompt_tokens: int = 0
    generated_tokens: int = 0
    prefilled_tokens: int = 0  # computed, counted chunk by chunk
    context_steps: float = 0.0
    busy_s: float = 0.0
    finished: int = 0
    aborted: int = 0


class Step(msgspec.Struct):
    """One step under way: what it will have done at ``end_s``."""

    start_s: float
    end_s: float
    energy_j: float
    context_tokens: int
    decodes: int
    prefilled: int
    sums: tuple[float, float, float, float]  # added to the running sums by this step
    direct: list[tuple[Running, int, float]]  # sequence, prompt tokens computed, joules
    first_tokens: list[Running]


class Engine:
    """One engine. Call ``begin`` with the time, then ``finish`` when the step's end has come."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.totals = Totals()
        self.step: Step | None = None
        self.waiting: deque[Running] = deque()
        self.prefilling: list[Running] = []
        self.decoding: dict[str, Running] = {}
        self._ends: dict[int, list[Running]] = {}
        self._context = 0  # sum over decoding sequences of tokens in the cache
        self._reserved = 0  # cache tokens promised to admitted sequences
        self.dropped: list[Running] = []  # cancelled ones that have left; whoever drives empties it
        self._blocks: OrderedDict[Hashable, None] = OrderedDict()
        self._index = 0  # steps finished
        self._leaving = False
        # step shares, own tokens, context reads, context reads x step index
        self._sums = (0.0, 0.0, 0.0, 0.0)
        self._random = random.Random(config.seed)
        self._drift = 0.0
        self._drift_at_s = 0.0

    # -- what is in it ---------------------------------------------------------------------

    @property
    def running(self) -> int:
        return len(self.decoding) + len(self.prefilling)

    @property
    def kv_usage(self) -> float:
        used = self._context + sum(seq.prefill_done for seq in self.prefilling)
        return min(1.0, used / self.config.kv_tokens)

    @property
    def context_tokens(self) -> int:
        return self._context

    def produced(self, seq: Running) -> int:
        """Output tokens of a sequence so far."""
        if seq.end_s is not None or not seq.decoding:
            return seq.output_tokens
        return 1 + self._index - seq.joined_step

    def energy_at(self, now_s: float) -> float:
        """Joules above idle until ``now_s``; a step under way counts in proportion."""
        if self.step is None:
            return self.totals.active_energy_j
        return self.totals.active_energy_j + self.step.energy_j * self._part(now_s)

    def energy_of(self, seq: Running, now_s: float) -> float:
        """Joules above idle that one sequence has caused until ``now_s``: the truth."""
        if seq.end_s is not None:
            return seq.energy_j
        energy_j = self._own(seq, self._sums)
        if self.step is not None:
            part = self._part(now_s)
            if seq.decoding:
                after = _add(self._sums, self.step.sums)
                energy_j += part * (self._own(seq, after) - energy_j)
            else:
                energy_j += part * sum(j for s, _, j in self.step.direct if s is seq)
        return energy_j

    # -- requests come and go --------------------------------------------------------------

    def submit(self, job: Job) -> Running:
        """Queue a request. It joins at the next step that has room."""
        seq = Running(job)
        self.waiting.append(seq)
        return seq

    def cancel(self, seq: Running, now_s: float) -> None:
        """The client has gone: no further step will have this sequence in it.

        What a step under way spends on it is still its own.
        """
        if seq.end_s is not None or seq.gone:
            return
        seq.gone = True
        self._leaving = True
        self._drop_gone(now_s)

    # -- steps -----------------------------------------------------------------------------

    def begin(self, now_s: float) -> float | None:
        """Compose the next step; the time it ends, or None when there is nothing to do."""
        self._drop_gone(now_s)
        config = self.config
        budget = config.max_batched_tokens - len(self.decoding)
        chunks: list[tuple[Running, int]] = []
        for seq in self.prefilling:
            if budget <= 0:
                break
            chunk = min(budget, seq.job.prompt_tokens - seq.prefill_done)
            chunks.append((seq, chunk))
            budget -= chunk
        while self.waiting and budget > 0 and self.running < config.max_num_seqs:
            seq = self.waiting[0]
            needed = seq.job.prompt_tokens + seq.job.output_tokens
            if self._reserved + needed > config.kv_tokens and self.running:
                break
            self.waiting.popleft()
            self._admit(seq, now_s, needed)
            chunk = min(budget, seq.job.prompt_tokens - seq.prefill_done)
            chunks.append((seq, chunk))
            budget -= chunk
        if not chunks and not self.decoding:
            return None
        self.step = self._compose(chunks, now_s)
        return self.step.end_s

    def finish(self) -> list[Running]:
        """Commit the step under way; those that ended in it. Raises RuntimeError without one."""
        step = self.step
        if step is None:
            raise RuntimeError("finish() without begin()")
        totals = self.totals
        totals.active_energy_j += step.energy_j
        totals.steps += 1
        totals.generated_tokens += step.decodes + len(step.first_tokens)
        totals.prefilled_tokens += step.prefilled
        totals.context_steps += step.context_tokens
        totals.busy_s += step.end_s - step.start_s
        self._sums = _add(self._sums, step.sums)
        self._index += 1
        self._context += step.decodes
        self.step = None
        for seq, chunk, joules in step.direct:
            seq.prefill_done += chunk
            seq.direct_j += joules
        ended = []
        for seq in self._ends.pop(self._index, ()):
            if seq.end_s is None:
                self._end(seq, step.end_s, seq.job.output_tokens)
                ended.append(seq)
        for seq in step.first_tokens:
            self._first_token(seq, step.end_s)
            if seq.job.output_tokens <= 1:
                self._end(seq, step.end_s, 1)
                ended.append(seq)
        self._drop_gone(step.end_s)
        return ended

    def _part(self, now_s: float) -> float:
        step = self.step
        assert step is not None
        length_s = step.end_s - step.start_s
        return min(1.0, max(0.0, (now_s - step.start_s) / length_s)) if length_s > 0 else 1.0

    def _admit(self, seq: Running, now_s: float, needed: int) -> None:
        seq.scheduled_s = now_s
        job = seq.job
        if self.config.prefix_cache:
            hits = 0
            for key in job.blocks:
                if key not in self._blocks:
                    break
                self._blocks.move_to_end(key)
                hits += 1
            # The last prompt token is always computed: its output is the first answer token.
            seq.cached_tokens = min(hits * BLOCK_TOKENS, max(0, job.prompt_tokens - 1))
        seq.prefill_done = seq.cached_tokens
        self._reserved += needed
        self.prefilling.append(seq)

    def _compose(self, chunks: list[tuple[Running, int]], now_s: float) -> Step:
        physics = self.config.physics
        decodes = len(self.decoding)
        context = self._context
        prefilled = sum(chunk for _, chunk in chunks)
        first = [s for s, chunk in chunks if s.prefill_done + chunk >= s.job.prompt_tokens]
        generated = decodes + len(first)
        factor = self._energy_factor(now_s)
        share_j = factor * physics.step_j / (decodes + len(chunks))
        token_j = factor * physics.token_j
        context_j = factor * physics.context_j
        finishing = {id(seq) for seq in first}
        direct = [
            (
                seq,
                chunk,
                share_j
                + factor * physics.prefill_j * chunk
                + (token_j if id(seq) in finishing else 0.0),
            )
            for seq, chunk in chunks
        ]
        energy_j = (
            sum(joules for _, _, joules in direct)
            + decodes * (share_j + token_j)
            + context_j * context
        )
        length_s = (
            physics.step_s
            + physics.token_s * generated
            + physics.context_s * context
            + physics.prefill_s * prefilled
        ) * self._factor(self.config.time_noise)
        return Step(
            start_s=now_s,
            end_s=now_s + length_s,
            energy_j=energy_j,
            context_tokens=context,
            decodes=decodes,
            prefilled=prefilled,
            sums=(share_j, token_j, context_j, context_j * self._index),
            direct=direct,
            first_tokens=first,
        )

    def _first_token(self, seq: Running, at_s: float) -> None:
        job = seq.job
        self.prefilling.remove(seq)
        self.decoding[job.request_id] = seq
        seq.decoding = True
        seq.first_token_s = at_s
        seq.joined_step = self._index
        seq.base = self._sums
        seq.output_tokens = 1
        self._context += job.prompt_tokens + 1
        self._ends.setdefault(self._index + job.output_tokens - 1, []).append(seq)
        self.totals.prompt_tokens += job.prompt_tokens
        self.totals.cached_prompt_tokens += seq.cached_tokens
        if self.config.prefix_cache:
            self._remember(job.blocks)

    def _remember(self, blocks: Sequence[Hashable]) -> None:
        for key in blocks:
            self._blocks[key] = None
            self._blocks.move_to_end(key)
        while len(self._blocks) > self.config.kv_tokens // BLOCK_TOKENS:
            self._blocks.popitem(last=False)

    def _own(self, seq: Running, sums: tuple[float, float, float, float]) -> float:
        """What a sequence has caused when the running sums stand at ``sums``."""
        if not seq.decoding:
            return seq.direct_j
        shares, tokens, reads, indexed = (
            now - then for now, then in zip(sums, seq.base, strict=True)
        )
        # In the step of index i this sequence reads prompt + 1 + (i - joined) cached tokens.
        offset = seq.job.prompt_tokens + 1 - seq.joined_step
        return seq.direct_j + shares + tokens + offset * reads + indexed

    def _end(self, seq: Running, at_s: float, output_tokens: int) -> None:
        seq.energy_j = self._own(seq, self._sums)
        if seq.decoding:
            self._context -= seq.job.prompt_tokens + self.produced(seq)
            del self.decoding[seq.job.request_id]
        elif seq.scheduled_s is not None:
            self.prefilling.remove(seq)
        if seq.scheduled_s is not None:
            self._reserved -= seq.job.prompt_tokens + seq.job.output_tokens
        seq.output_tokens = output_tokens
        seq.end_s = at_s
        if output_tokens >= seq.job.output_tokens:
            self.totals.finished += 1
        else:
            self.totals.aborted += 1

    def _drop_gone(self, now_s: float) -> None:
        if not self._leaving:
            return
        for seq in [s for s in self.waiting if s.gone]:
            self.waiting.remove(seq)
            self._end(seq, now_s, 0)
            self.dropped.append(seq)
        if self.step is not None:
            return
        self._leaving = False
        for seq in [s for s in (*self.prefilling, *self.decoding.values()) if s.gone]:
            self._end(seq, now_s, self.produced(seq))
            self.dropped.append(seq)

    def _energy_factor(self, now_s: float) -> float:
        config = self.config
        if config.energy_drift > 0:
            # A random walk pulled back to zero, in steps of a twentieth of its time.
            tick_s = config.drift_s / 20
            if now_s - self._drift_at_s > 20 * config.drift_s:
                self._drift_at_s = now_s - 20 * config.drift_s
            while now_s - self._drift_at_s >= tick_s:
                self._drift_at_s += tick_s
                kick = self._random.gauss(0.0, config.energy_drift * (2 / 20) ** 0.5)
                self._drift += -self._drift / 20 + kick
        return max(0.1, 1.0 + self._drift) * self._factor(config.energy_noise)

    def _factor(self, deviation: float) -> float:
        return max(0.1, self._random.gauss(1.0, deviation)) if deviation > 0 else 1.0


def _add(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    return (one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3])
