"""Runs jobs through the simulated engine as fast as Python goes, and keeps the truth.

What comes back is what a proxy and a meter would have seen (activities, windows), and beside it
what they cannot see: the energy above idle that each request really caused, in each window.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable

import msgspec

from meters.simulated_metrics import CONTEXT_BYTES, PARAMETERS, WEIGHT_BYTES
from meters.simulated_physics import Engine, EngineConfig, Job, Running
from meters.types import Activity, Evidence, Window

# Multiplications and additions of one token with one cached token: 4 · 32 layers · 4,096 wide
# (Llama-3.1-8B's config.json).
CONTEXT_FLOPS = 4.0 * 32 * 4096
OnEnd = Callable[[Running], Iterable[Job]]


class Run(msgspec.Struct):
    """One simulated stretch of traffic. ``truth_j`` is by window id, then by request id."""

    windows: list[Window]
    activities: list[Activity]  # of requests that came through the proxy, in order of start
    truth_j: dict[str, dict[str, float]]
    jobs: dict[str, Job]
    mean_running: float  # sequences in the batch, averaged over busy time

    def request_j(self, windows: Iterable[Window] | None = None) -> dict[str, float]:
        """The true energy of each request in ``windows`` (default: in all of them)."""
        total: dict[str, float] = dict.fromkeys(self.jobs, 0.0)
        for window in self.windows if windows is None else windows:
            for request_id, joules in self.truth_j[window.window_id].items():
                total[request_id] += joules
        return total


def simulate(
    config: EngineConfig,
    jobs: Iterable[Job],
    *,
    window_s: float = 1.0,
    node: str = "simulated",
    idle_tail_s: float = 0.0,
    on_end: OnEnd | None = None,
    progress_tokens: int = 0,
    keep_truth: bool = True,
    counts_work: bool = False,
) -> Run:
    """Serve ``jobs`` to the end; ``on_end`` may send another when one ends (closed loop).

    ``progress_tokens`` > 0 notes the time of every so many tokens in the activities. Times start
    at 0; the last window is closed ``idle_tail_s`` after the last request, or a little later.
    ``counts_work``: the engine counts FLOPs and bytes, as vLLM does with --enable-mfu-metrics.
    """
    driver = _Driver(config, window_s, node, on_end, progress_tokens, keep_truth)
    driver.counts_work = counts_work
    return driver.run(jobs, idle_tail_s)


class _Driver:
    def __init__(
        self,
        config: EngineConfig,
        window_s: float,
        node: str,
        on_end: OnEnd | None,
        progress_tokens: int,
        keep_truth: bool,
    ) -> None:
        self.engine = Engine(config)
        self.config = config
        self.window_s = window_s
        self.node = node
        self.on_end = on_end
        self.progress_tokens = progress_tokens
        self.keep_truth = keep_truth
        self.arrivals: list[tuple[float, int, Job]] = []
        self.cancels: list[tuple[float, int, Running]] = []
        self.counts_work = False
        self.order = itertools.count()
        self.seqs: list[Running] = []
        self.open: dict[str, tuple[Running, float]] = {}  # with what was booked of it so far
        self.progress: dict[str, list[tuple[float, float]]] = {}
        self.run_ = Run([], [], {}, {}, 0.0)
        self.boundary = 1
        self.before = (0.0,) * 7
        self.running_s = 0.0
        self.running_in_window_s = 0.0

    def run(self, jobs: Iterable[Job], idle_tail_s: float) -> Run:
        for job in jobs:
            self._expect(job)
        now_s = 0.0
        while True:
            self._arrive(now_s)
            self._cancel(now_s)
            end_s = self.engine.begin(now_s)
            if end_s is not None:
                self._close_windows(end_s)
                step = self.engine.step
                assert step is not None
                members = self.engine.running
                self.running_s += members * (end_s - now_s)
                self.running_in_window_s += members * (end_s - max(now_s, self._opened_s()))
                self._cancel(end_s)
                ended = self.engine.finish()
                if self.progress_tokens:
                    self._note_progress(end_s)
                now_s = end_s
                if self.on_end is not None:
                    for seq in (*ended, *self.engine.dropped):
                        for job in self.on_end(seq):
                            self._expect(job)
                self.engine.dropped.clear()
            elif self.arrivals:
                self._close_windows(self.arrivals[0][0])
                now_s = self.arrivals[0][0]
            else:
                break
        self._close_windows(now_s + idle_tail_s + self.window_s)
        return self._result()

    def _opened_s(self) -> float:
        return (self.boundary - 1) * self.window_s

    def _expect(self, job: Job) -> None:
        heapq.heappush(self.arrivals, (job.arrival_s, next(self.order), job))

    def _arrive(self, now_s: float) -> None:
        while self.arrivals and self.arrivals[0][0] <= now_s:
            job = heapq.heappop(self.arrivals)[2]
            seq = self.engine.submit(job)
            self.seqs.append(seq)
            self.open[job.request_id] = (seq, 0.0)
            self.run_.jobs[job.request_id] = job
            if job.cancel_s is not None:
                heapq.heappush(self.cancels, (job.cancel_s, next(self.order), seq))

    def _cancel(self, now_s: float) -> None:
        while self.cancels and self.cancels[0][0] <= now_s:
            at_s, _, seq = heapq.heappop(self.cancels)
            self.engine.cancel(seq, at_s)

    def _note_progress(self, now_s: float) -> None:
        for seq in self.engine.decoding.values():
            done = self.engine.produced(seq)
            if done % self.progress_tokens == 0:
                self.progress.setdefault(seq.job.request_id, []).append((now_s, float(done)))

    def _close_windows(self, until_s: float) -> None:
        """Close every window that ends by ``until_s``, a step under way in proportion."""
        while self.boundary * self.window_s <= until_s:
            at_s = self.boundary * self.window_s
            self._close_window(at_s)
            self.boundary += 1

    def _close_window(self, at_s: float) -> None:
        totals = self.engine.totals
        start_s = self._opened_s()
        idle_w = self.config.physics.idle_power_w
        after = (
            self.engine.energy_at(at_s) + idle_w * at_s,
            float(totals.prompt_tokens),
            float(totals.cached_prompt_tokens),
            float(totals.generated_tokens),
            float(totals.steps),
            2.0 * PARAMETERS * (totals.prefilled_tokens + totals.generated_tokens)
            + CONTEXT_FLOPS * totals.context_steps,
            WEIGHT_BYTES * float(totals.steps) + CONTEXT_BYTES * totals.context_steps,
        )
        gained = [now - then for now, then in zip(after, self.before, strict=True)]
        self.before = after
        step = self.engine.step
        running_s = self.running_in_window_s
        if step is not None:
            running_s += self.engine.running * (at_s - max(step.start_s, start_s))
        self.running_in_window_s = 0.0
        window_id = f"{self.node}/{self.boundary}"
        self.run_.windows.append(
            Window(
                window_id=window_id,
                node=self.node,
                start_s=start_s,
                end_s=at_s,
                energy_j=gained[0],
                idle_power_w=idle_w,
                prompt_tokens=gained[1],
                cached_prompt_tokens=gained[2],
                generated_tokens=gained[3],
                steps=gained[4],
                flops=gained[5] if self.counts_work else None,
                read_bytes=gained[6] if self.counts_work else None,
                running=running_s / self.window_s,
                evidence=Evidence.SIMULATED,
                meter="simulated",
            )
        )
        if not self.keep_truth:
            return
        truth: dict[str, float] = {}
        for request_id, (seq, booked_j) in list(self.open.items()):
            energy_j = self.engine.energy_of(seq, at_s)
            if energy_j != booked_j:
                truth[request_id] = energy_j - booked_j
            if seq.end_s is not None:
                del self.open[request_id]
            else:
                self.open[request_id] = (seq, energy_j)
        self.run_.truth_j[window_id] = truth

    def _result(self) -> Run:
        busy_s = self.engine.totals.busy_s
        self.run_.mean_running = self.running_s / busy_s if busy_s > 0 else 0.0
        self.run_.activities = [
            Activity(
                request_id=seq.job.request_id,
                node=self.node,
                start_s=seq.job.arrival_s,
                first_token_s=seq.first_token_s,
                end_s=seq.end_s,
                prompt_tokens=float(seq.job.prompt_tokens),
                cached_prompt_tokens=float(seq.cached_tokens),
                output_tokens=float(seq.output_tokens),
                progress=tuple(self.progress.get(seq.job.request_id, ())),
            )
            for seq in self.seqs
            if not seq.job.external
        ]
        return self.run_
