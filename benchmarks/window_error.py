"""How far windows are from the truth, for counters that move as NVML's do.

``python -m benchmarks.window_error [--minutes 10]``. Pure simulation, no hardware: power jumps
between levels as prefill, decode and pauses make it; the counter is updated every so often, with
its own jitter; looks come late as on a busy machine. Printed for each update period and window
length: the error of single windows, of their sum, and how often the window's own ``resolution_j``
covered it. The last column is what taking the counter's face value at each boundary would give.
"""

from __future__ import annotations

import argparse
import bisect
import random
import sys
from collections.abc import Sequence

import numpy as np

from meters.types import Reading
from meters.windows import WindowCloser

PERIODS_S = (0.02, 0.05, 0.1)
WINDOWS_S = (0.5, 1.0, 5.0)
LOOK_S = 0.025


class Power:
    """Watts that jump; joules since the start, exactly."""

    def __init__(self, seconds: float, rng: random.Random) -> None:
        self.times, self.joules, self.watts = [0.0], [0.0], [100.0]
        while self.times[-1] < seconds:
            lasting_s = rng.choice((0.03, 0.1, 0.4, 2.0)) * rng.uniform(0.5, 1.5)
            self.joules.append(self.joules[-1] + self.watts[-1] * lasting_s)
            self.times.append(self.times[-1] + lasting_s)
            self.watts.append(rng.choice((95.0, 320.0, 450.0, 690.0)))

    def at(self, seconds: float) -> float:
        n = bisect.bisect_right(self.times, seconds) - 1
        return self.joules[n] + self.watts[n] * (seconds - self.times[n])


def windows_of(
    power: Power, period_s: float, window_s: float, seconds: float, rng: random.Random
) -> tuple[list[tuple[float, float, float]], list[float]]:
    """(measured, true, resolution) joules of each window, and face-value joules."""
    updates = [0.0]
    while updates[-1] < seconds:
        updates.append(updates[-1] + period_s * rng.uniform(0.9, 1.1))
    closer = WindowCloser(node="n", run="r", resolution_j=0.001)
    found: list[tuple[float, float, float]] = []
    face: dict[float, float] = {}
    naive: list[float] = []
    at_s, next_s = 0.0, window_s
    while at_s < seconds:
        counter_j = round(power.at(updates[bisect.bisect_right(updates, at_s) - 1]), 3)
        closer.read([Reading("gpu0", at_s, counter_j)])
        if at_s >= next_s:
            closer.mark(at_s)
            face[at_s] = counter_j
            next_s += window_s
        for window in closer.take(at_s):
            truth_j = power.at(window.end_s) - power.at(window.start_s)
            found.append((window.energy_j, truth_j, window.resolution_j or 0.0))
            naive.append(face[window.end_s] - face[window.start_s] - truth_j)
        # a busy machine wakes a thread late now and then
        at_s += LOOK_S + rng.expovariate(1 / 0.001) + (rng.random() < 0.01) * 0.02
    return found, naive


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    args = parser.parse_args(argv)
    seconds = args.minutes * 60
    print(
        "| update | window | median error | 95 % below | of their sum | covered | face value 95 % |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for period_s in PERIODS_S:
        for window_s in WINDOWS_S:
            rng = random.Random(4)
            power = Power(seconds, rng)
            found, naive = windows_of(power, period_s, window_s, seconds, rng)
            measured, truth, resolution = np.array(found).T
            error = np.abs(measured - truth)
            share = error / truth
            whole = abs(measured.sum() / truth.sum() - 1)
            face = np.quantile(np.abs(naive) / truth, 0.95)
            print(
                f"| {1000 * period_s:.0f} ms | {window_s:g} s | {np.median(share):.2%} "
                f"| {np.quantile(share, 0.95):.2%} | {whole:.4%} "
                f"| {np.mean(error <= resolution):.0%} | {face:.2%} |"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
