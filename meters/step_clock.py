"""The clock that all sequences of a batch run on: steps over time. Pure.

Every sequence that generates gets one token a step. ``StepClock`` finds the rate of steps,
constant between any two events, such that each request got its tokens between its first and its
last, and each window had the steps that the engine counted. While a prompt is computed a step
takes as long as that, so steps are few there: one for each ``budget`` prompt tokens.
"""

from __future__ import annotations

import math

import numpy as np

from meters.phases import SHORTEST_S, Booleans, Floats, Ints, Phases

PASSES = 5  # of fitting the rates; more changes nothing that matters
BUDGETS = (256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 32768.0)  # prompt tokens in one step
DEFAULT_BUDGET = 8192.0  # vLLM's for large GPUs
ENOUGH_COUNTS = 5


class StepClock:
    """``total`` and ``share`` at each event: steps so far, and steps divided by their batch."""

    def __init__(
        self,
        starts: Floats,
        ends: Floats,
        requests: Phases,
        counted: Floats,
        external_batch: Floats,
    ) -> None:
        """``counted``: steps by window, NaN where unknown; ``external_batch``: others in a step."""
        edges = [starts, ends, requests.prefill, requests.middle, requests.first, requests.end]
        self.times = np.unique(np.concatenate(edges))
        if len(self.times) < 2:
            self.times = np.array([0.0, 1.0])
        self._starts, self._ends, self._requests = starts, ends, requests
        self._counted, self._alone = counted, external_batch == 0
        n = len(self.times) - 1
        self._at_prefill = self.index(requests.prefill)
        self._at_first = self.index(requests.first)
        self._at_end = self.index(requests.end)
        self._length = np.diff(self.times)
        self._goes_on = requests.decoded > 0
        self._decoding = self._covering(
            self._at_first, self._at_end, self._goes_on.astype(np.float64)
        )
        self._prefilling = self._covering(
            self._at_prefill, self._at_first, np.ones(len(requests.first), dtype=np.float64)
        )
        window = np.searchsorted(starts, self.times[:-1], side="right") - 1
        inside = window >= 0
        if len(ends):
            inside &= self.times[:-1] < ends[np.maximum(window, 0)]
        self._window = np.where(inside, window, 0)
        self._inside = inside
        self._quiet = ~self._running_at(ends)

        budget = DEFAULT_BUDGET
        if (~np.isnan(counted) & self._alone).sum() >= ENOUGH_COUNTS and n > 1:
            budget = min(BUDGETS, key=lambda b: self._misses(self._rates(b, use_counts=False)))
        self.rate = self._rates(budget, use_counts=True)
        steps = self.rate * self._length
        self.total = np.concatenate([[0.0], np.cumsum(steps)])
        batch = self._decoding + self._prefilling
        external = external_batch[self._window] * inside if len(starts) else np.zeros(n)
        shares = np.where(batch > 0, steps / np.maximum(batch + external, 1.0), 0.0)
        self.share = np.concatenate([[0.0], np.cumsum(shares)])
        own = self._by_window(steps)
        # By window: ours, or all that the engine counted where others' steps are among them.
        self.steps = np.where(self._alone | np.isnan(counted), own, counted)
        self.busy_s = self._by_window(np.where(batch > 0, self._length, 0.0))
        self.peak = np.zeros(len(starts))  # by window: the largest batch of our requests
        np.maximum.at(self.peak, self._window[inside], batch[inside])

    def index(self, times: Floats) -> Ints:
        """Where these event times stand among all of them."""
        return np.asarray(np.searchsorted(self.times, times), dtype=np.int64)

    def _rates(self, budget: float, *, use_counts: bool) -> Floats:
        requests = self._requests
        decoding, prefilling = self._decoding, self._prefilling
        computing = prefilling > 0
        span = np.maximum(requests.first - requests.prefill, SHORTEST_S)
        spilt = requests.before > 0
        speed = (np.maximum(np.ceil(requests.together / budget), 1.0) + spilt) / span
        pace = requests.decoded / np.maximum(requests.end - requests.first, SHORTEST_S)
        with np.errstate(invalid="ignore", divide="ignore"):
            rate = np.where(
                computing,
                self._covering(self._at_prefill, self._at_first, speed) / prefilling,
                np.where(
                    decoding > 0,
                    self._covering(self._at_first, self._at_end, pace * self._goes_on) / decoding,
                    0.0,
                ),
            )
        for _ in range(PASSES):
            if use_counts and len(self._starts):
                rate = self._counted_rate(rate, computing)
            total = np.concatenate([[0.0], np.cumsum(rate * self._length)])
            got = total[self._at_end] - total[self._at_first]
            factor = np.clip(requests.decoded / np.maximum(got, SHORTEST_S), 0.2, 5.0)
            mean = self._covering(self._at_first, self._at_end, factor * self._goes_on)
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = np.where(decoding > 0, mean / decoding, 1.0)
            # Steps with a prompt in them are known better: their length was seen.
            rate = rate * np.where(computing, mean**0.25, mean)
        return self._counted_rate(rate, computing) if use_counts and len(self._starts) else rate

    def _counted_rate(self, rate: Floats, computing: Booleans) -> Floats:
        """The rate that gives each window the steps that were counted in it."""
        steps = rate * self._length
        found = self._by_window(steps)
        wanted = self._within_counts(found)
        # Steps without any of our requests in them are the external traffic's.
        wanted = np.where(self._alone, wanted, np.minimum(wanted, found))
        known = ~np.isnan(self._counted) & (found > 0)
        fixed = self._by_window(np.where(computing, steps, 0.0))
        with np.errstate(invalid="ignore", divide="ignore"):
            free = np.clip((wanted - fixed) / (found - fixed), 1 / 3, 3.0)
            free = np.where(known & (found - fixed > 1e-9), free, 1.0)
            rate = np.where(self._inside & ~computing, rate * free[self._window], rate)
            found = self._by_window(rate * self._length)
            whole = np.where(known & (found > 0), wanted / found, 1.0)
        return np.where(self._inside, rate * whole[self._window], rate)

    def _misses(self, rate: Floats) -> float:
        found = self._by_window(rate * self._length)
        off = np.where(self._alone, found - self._counted, np.nan)
        return float(np.nansum(np.abs(off)))

    def _by_window(self, values: Floats) -> Floats:
        n = len(self._starts)
        if not n:
            return np.zeros(0)
        kept = np.where(self._inside, values, 0.0)
        return np.bincount(self._window, kept, minlength=n).astype(np.float64)

    def _covering(self, from_: Ints, to: Ints, weight: Floats) -> Floats:
        """For each stretch, the summed weight of the intervals that cover it."""
        n = len(self.times)
        change = np.bincount(from_, weight, minlength=n) - np.bincount(to, weight, minlength=n)
        covered = np.cumsum(change)[: n - 1]
        return np.where(np.abs(covered) < 1e-9, 0.0, np.maximum(covered, 0.0))

    def _running_at(self, times: Floats) -> Booleans:
        """Whether a request was in the engine at each of these times."""
        begun = np.searchsorted(np.sort(self._requests.prefill), times, side="left")
        ended = np.searchsorted(np.sort(self._requests.end), times, side="right")
        return np.asarray(begun > ended)

    def _within_counts(self, found: Floats) -> Floats:
        """Steps by window, moved no further than the engine's counter asks for.

        The counter goes up when a step ends, so at a window's edge it is behind by the part of a
        step that is done by then: anything from nothing to one, and nothing where nothing runs.
        """
        wanted = found.copy()
        ahead = 0.0  # of the counter
        before_s = -math.inf
        rows = zip(found, self._counted, self._starts, self._ends, self._quiet, strict=True)
        for i, (steps, count, start_s, end_s, still) in enumerate(rows):
            if math.isnan(count):
                before_s = -math.inf
                continue
            if start_s > before_s + SHORTEST_S:
                # After a gap nobody knows how much of a step was done.
                ahead = 0.5 if steps > 0 and count > 0 else 0.0
            most = 0.0 if still else 1.0
            wanted[i] = min(max(ahead + steps, count), count + most) - ahead
            ahead += wanted[i] - count
            wanted[i] = max(wanted[i], 0.0)
            before_s = end_s
        return wanted
