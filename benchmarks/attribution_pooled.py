"""Whether attribution is biased, or one stretch of traffic only looked so: many, pooled.

    python -m benchmarks.attribution_pooled --taught --seeds 12 --seed 101
    python -m benchmarks.attribution_pooled --seeds 24 --seed 101 --only "256 in flight"

A bias is an error that is expected, not one that happened. One run of ``benchmarks.attribution``
shows both: a few hundred requests of a group, divided by coefficients that are a little off in
this hour and otherwise in the next. Here every scenario is run with many seeds; each has its own
traffic, noise, drift and, with --taught, its own half hour of learning from its own wrong prior.
The mean of a group's relative error over these is its bias, and their scatter says how well it is
known: printed is the worst group by length, team and place, with its interval of 95 % (Student).

A scenario is *within* when the interval of every group lies within 1 %, so that a bias of 1.5 %
does not pass, however few the seeds; *beyond* when that of any group lies outside; and *open* when
there were too few seeds to say. ``one run`` is the standard deviation of the worst group in a
single run, ``least`` (without --taught) what ``benchmarks.attribution_bound`` says that it is at
least under any rule that learns from the same minutes. Errors per request (median and 95th
percentile) are of all seeds' requests together, those of the simpler rules too. Simulated.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from scipy.stats import t as student

from benchmarks.attribution import (
    RULES,
    Compared,
    Scenario,
    Seen,
    before,
    biases,
    by_rule,
    compare,
    one_at_a_time,
    play,
    scenarios,
)
from benchmarks.attribution_bound import bound
from meters.attribution import attribute_all
from meters.types import StepPhysics

LIMIT = 1.0  # per cent
CONFIDENCE = 0.95


class Bias(NamedTuple):
    """A group's mean error over several runs, in per cent."""

    mean: float
    half_width: float  # of its interval; infinite with one run
    one_run: float  # standard deviation of a single run's

    @property
    def verdict(self) -> str:
        """``within``, ``beyond`` or ``open``: where the interval lies beside the limit."""
        if abs(self.mean) + self.half_width <= LIMIT:
            return "within"
        return "beyond" if abs(self.mean) - self.half_width > LIMIT else "open"


def pooled(runs: Sequence[float]) -> Bias:
    """The bias that single runs' errors tell of."""
    n = len(runs)
    if n < 2:
        return Bias(float(np.mean(runs)), math.inf, math.nan)
    spread = float(np.std(runs, ddof=1))
    times = float(student.ppf(0.5 + CONFIDENCE / 2, n - 1))
    return Bias(float(np.mean(runs)), times * spread / math.sqrt(n), spread)


def verdict(groups: Sequence[Bias]) -> str:
    """Of a scenario: within if every group is, beyond if any is."""
    found = {bias.verdict for bias in groups}
    return "beyond" if "beyond" in found else "open" if "open" in found else "within"


class Pool:
    """What several runs of one scenario come to."""

    def __init__(self) -> None:
        self._errors: dict[str, list[np.ndarray]] = {}  # by rule; "" is attribution
        self._biases: dict[str, dict[str, list[float]]] = {}  # by grouping, group
        self._least: list[float] = []

    def add(self, ours: Compared, rules: dict[str, Compared], least: float | None) -> None:
        """One more run."""
        for name, compared in ({"": ours} | rules).items():
            self._errors.setdefault(name, []).append(compared.errors)
        for name, group in ours.groups.items():
            groups = self._biases.setdefault(name, {})
            for one, bias in biases(ours, group).items():
                groups.setdefault(one, []).append(bias)
        if least is not None:
            self._least.append(least)

    def quantile(self, part: float, rule: str = "") -> float:
        """Of all runs' errors per request, in per cent."""
        return 100 * float(np.quantile(np.concatenate(self._errors[rule]), part))

    def groups(self, grouping: str) -> list[Bias]:
        """Biases of one grouping, the worst first."""
        found = [pooled(runs) for runs in self._biases[grouping].values()]
        return sorted(found, key=lambda bias: -abs(bias.mean))

    @property
    def all_groups(self) -> list[Bias]:
        return [bias for grouping in self._biases for bias in self.groups(grouping)]

    @property
    def accurate(self) -> bool:
        """Median and 95th percentile of the error per request are within 5 and 15 %."""
        return self.quantile(0.5) <= 5 and self.quantile(0.95) <= 15

    @property
    def least(self) -> float | None:
        """The least standard deviation of one run's worst bias, whatever the rule."""
        return float(np.median(self._least)) if self._least else None


def given_j(seen: Seen, known: dict[str, StepPhysics], *, live: bool) -> dict[str, float]:
    """What attribution gives each request."""
    if live:
        return one_at_a_time(seen, known)
    # Progress is noted in the proxy only: files of requests do not tell it.
    seen.activities = [msgspec.structs.replace(a, progress=()) for a in seen.activities]
    books = attribute_all(seen.windows, seen.activities, known)
    return books.request_j([a.request_id for a in seen.activities])


def run(scenario: Scenario, seed: int, pool: Pool, learnt: dict[str, StepPhysics] | None,
        *, live: bool = False) -> None:  # fmt: skip
    """Play a scenario once more; ``learnt`` by engine with this seed, None: nothing was before."""
    seen = play(scenario, seed, live)
    known = {} if learnt is None else before(scenario, seen, learnt, seed)
    ours = compare(seen, given_j(seen, known, live=live))
    rules = {name: compare(seen, by_rule(seen, rule)) for name, rule in RULES.items()}
    least = None
    if learnt is None and scenario.beside is None:
        least = max(bound(seen, scenario.engine))
    pool.add(ours, rules, least)


def row(name: str, pool: Pool) -> str:
    """A scenario's line in the table."""
    cells = [f"{pool.quantile(0.5):6.2f} {pool.quantile(0.95):6.2f}"]
    for grouping in ("length", "team", "place"):
        worst = pool.groups(grouping)[0]
        cells.append(f"{worst.mean:+5.2f} ±{worst.half_width:4.2f}")
    widest = max(bias.one_run for bias in pool.all_groups)
    least = "" if pool.least is None else f"{pool.least:.2f}"
    cells.append(f"{widest:7.2f} {least:>5s}")
    cells.append(
        " ".join(f"{pool.quantile(0.5, r):4.0f} {pool.quantile(0.95, r):5.0f}" for r in RULES)
    )
    errors = "" if pool.accurate else "   errors!"
    return f"{name:42s} | " + " | ".join(cells) + f" | {verdict(pool.all_groups)}{errors}"


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1_600, help="in each run of a scenario")
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--seed", type=int, default=1, help="the first")
    parser.add_argument("--seeds", type=int, default=12, help="how many")
    parser.add_argument("--taught", action="store_true", help="with coefficients learnt before")
    parser.add_argument(
        "--live", action="store_true", help="likewise, and one window at a time, as in the proxy"
    )
    args = parser.parse_args(argv)
    began_s = time.monotonic()
    chosen = [s for s in scenarios(args.requests) if args.only in s.name]
    pools = {scenario.name: Pool() for scenario in chosen}
    for seed in range(args.seed, args.seed + args.seeds):
        learnt: dict[str, StepPhysics] | None = {} if args.taught or args.live else None
        for scenario in chosen:
            run(scenario, seed, pools[scenario.name], learnt, live=args.live)
        print(f"seed {seed}: {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)
    print(
        f"{'scenario':42s} | median    p95 | length      | team        | place       | one run "
        f"least | equal      tokens     time       | bias within 1 %"
    )
    for name, pool in pools.items():
        print(row(name, pool))
    found = Counter(verdict(pool.all_groups) for pool in pools.values())
    within = sum(pool.accurate for pool in pools.values())
    print(
        f"{within} of {len(pools)} within median 5, p95 15; bias: "
        + ", ".join(f"{found[word]} {word}" for word in ("within", "open", "beyond"))
        + f"; {args.seeds} seeds"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
