"""How far off a group of requests must be expected to be, whatever rule divides the windows.

    python -m benchmarks.attribution_bound --seed 7

Whoever is to learn an engine's four coefficients from a stretch of its windows, and to divide the
same windows by them, has no more than these windows. Here all work in them is taken as known, and
so are the sizes of what makes them stray (drift of 1 % that lasts a minute, noise of 2 % a step,
and the part of a step that is cut off at an edge, unless --edges 0); each coefficient is known
beforehand within 40 %. The inverse of the information that is then in the windows (Cramér and
Rao's bound, with a prior) is the least covariance that coefficients can have; through how each
group's energy depends on them follows the least standard deviation of its bias. Printed is that of
the worst quarter by length, of the worst team, and of the worst quarter by arrival. Where it is
1 %, no rule keeps within 1 % more than two times in three. Simulated, as the scenarios are.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from benchmarks.attribution import ENGINES, Seen, play, quarters, scenarios
from meters.fitting import PRIOR_DEVIATION, columns
from meters.work import rebuild

DRIFT, DRIFT_S, STEP_NOISE, EDGE = 0.01, 60.0, 0.02, 0.3


def bound(seen: Seen, engine: str, edge: float = EDGE) -> tuple[float, float, float]:
    """Least standard deviations of the bias, in per cent: by length, team and arrival."""
    true, windows = ENGINES[engine], seen.windows
    prices = np.array([true.step_j, true.token_j, true.context_j, true.prefill_j])
    work = rebuild(windows, seen.activities)
    joules = columns(work) * prices
    busy = joules.sum(axis=1) > 0
    whole, joules = joules.sum(axis=1)[busy], joules[busy]
    starts = np.array([w.start_s for w in windows])[busy]
    steps = np.maximum(work.steps[busy], 1.0)
    strays = DRIFT**2 * np.exp(-np.abs(starts[:, None] - starts[None, :]) / DRIFT_S)
    at = np.arange(len(steps))
    strays[at, at] += STEP_NOISE**2 / steps + 2 * (edge / steps) ** 2
    cut = edge**2 / (steps[1:] * steps[:-1])
    strays[at[1:], at[:-1]] -= cut
    strays[at[:-1], at[1:]] -= cut
    parts = joules / whole[:, None]
    known = parts.T @ np.linalg.solve(strays, parts) + np.eye(4) / PRIOR_DEVIATION**2
    least = np.linalg.inv(known)
    pairs = np.stack([work.shares, work.tokens, work.context, work.prefilled], axis=1) * prices
    jobs = [seen.run.jobs[a.request_id] for a in seen.activities]
    groups = (
        quarters([job.prompt_tokens + job.output_tokens for job in jobs]),
        np.unique([job.team for job in jobs], return_inverse=True)[1],
        quarters([job.arrival_s for job in jobs]),
    )
    found = []
    for group in groups:
        worst = 0.0
        for one in np.unique(group):
            its = group[work.request] == one
            used = [np.bincount(work.window[its], p[its], minlength=len(windows)) for p in pairs.T]
            theirs = np.stack(used, axis=1)[busy]
            share = theirs.sum(axis=1) / whole
            slope = (theirs - share[:, None] * joules).sum(axis=0) / theirs.sum()
            worst = max(worst, float(slope @ least @ slope) ** 0.5)
        found.append(100 * worst)
    return found[0], found[1], found[2]


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1_600, help="in each scenario")
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--edges", type=float, default=EDGE, help="of a step, unseen at an edge")
    args = parser.parse_args(argv)
    print(f"{'scenario':40s} length   team  place   (least standard deviation of the bias, %)")
    for scenario in scenarios(args.requests):
        if args.only not in scenario.name or scenario.beside is not None:
            continue
        least = bound(play(scenario, args.seed), scenario.engine, args.edges)
        print(f"{scenario.name:40s} " + " ".join(f"{one:6.2f}" for one in least), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
