"""Fit the energy prior from published measurements and write it as a file.

``python -m benchmarks.fit_energy_prior ../shared/data --out estimators/energy_prior.json``

Takes some minutes: the bands of each tier come from fits that did not see the rows they are
judged on. Only measurements with a licence are read (energy_rows.SOURCES).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.energy_rows import SOURCES, Row, fingerprint, read_rows
from benchmarks.grey_fit import Fitted, fit, to_cases
from benchmarks.holdouts import Held, hold_out, pairwise, relative
from estimators.artefacts import save_prior
from estimators.prior import Prior, Tier

TIERS = ("seen", "new_model", "new_gpu", "both_new")


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, judge, save; prints what each tier's held-out rows say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("estimators/energy_prior.json"))
    parser.add_argument(
        "--search", action="store_true", help="search the kernel's lengths anew in every fold"
    )
    args = parser.parse_args(argv)
    began = time.monotonic()
    rows = read_rows(args.data)
    start = fit(rows, None, 60, 0).constants
    tunings = 26 if args.search else 0
    held = hold_out(rows, start, TIERS, tunings, lambda text: print(text, file=sys.stderr))
    final = fit(rows, start, 40, 52 if args.search else 0)
    prior = build(rows, final, held, fingerprint(args.data))
    save_prior(prior, args.out)
    print(table(held))
    print(f"{args.out}: {args.out.stat().st_size} bytes, {time.monotonic() - began:.0f} s")
    return 0


def build(rows: Sequence[Row], final: Fitted, held: dict[str, list[Held]], data: str) -> Prior:
    """The prior with the bands that held-out rows ask for, and where it comes from."""
    models: set[tuple[float, float, float, float]] = set()
    given = to_cases(rows)
    for i in range(len(rows)):
        models.add(
            (
                round(math.log(given.params[i]), 3),
                round(math.log(given.active[i]), 3),
                round(math.log(given.weight_bytes[i]), 3),
                round(float(given.old[i] - given.plain[i]), 3),
            )
        )
    return Prior(
        constants=final.constants,
        energy=final.energy,
        time=final.time,
        step=final.step,
        tiers={name: _tier(held[name]) for name in TIERS},
        known_gpus=sorted({row.gpu for row in rows}),
        known_models=sorted(models),
        ttft=_first_token(held),
        about={
            "version": f"prior-{data[:8]}",
            "built_by": "python -m benchmarks.fit_energy_prior ../shared/data",
            "data_sha256": data,
            "rows": len(rows),
            "sources": [
                {"file": name, "from": source, "licence": licence}
                for name, (source, licence) in SOURCES.items()
            ],
            "held_out": {
                name: {
                    key: round(value, 4)
                    for key, value in figures(held[name]).items()
                    if math.isfinite(value)
                }
                for name in TIERS
            },
        },
    )


def figures(held: Sequence[Held]) -> dict[str, float]:
    """What is quoted of one tier: errors as shares, not logarithms. Sources with a mean batch."""
    judged = [one for one in held if one.row.source != "v1"]
    energy = relative(np.array([one.energy_error for one in judged]))
    step = relative(np.array([one.step_error for one in judged]))
    first = relative(np.array([one.first_error for one in judged]))
    latency = relative(np.array([one.latency_error for one in judged]))
    physics_only = relative(np.array([one.physics_error for one in judged]))
    return {
        "rows": float(len(energy)),
        "energy_mape": float(energy.mean()),
        "energy_median": float(np.median(energy)),
        "physics_mape": float(physics_only.mean()),
        "step_mape": float(step.mean()) if len(step) else math.nan,
        "step_median": float(np.median(step)) if len(step) else math.nan,
        "first_token_mape": float(first.mean()) if len(first) else math.nan,
        "latency_mape": float(latency.mean()) if len(latency) else math.nan,
        "pairs_right": pairwise(judged),
        "band_holds": coverage(held),
    }


def coverage(held: Sequence[Held]) -> float:
    """Share of rows within their 80 % band, when its width comes from other architectures only."""
    names = sorted({one.row.architecture for one in held})
    inside = total = 0
    for part in range(4):
        mine = set(names[part::4])
        others = [one for one in held if one.row.architecture not in mine]
        if not others:
            continue
        low, high = _quantiles([(one.energy_error, one.energy_spread, one.row) for one in others])
        for one in held:
            if one.row.architecture in mine and math.isfinite(one.energy_error):
                total += 1
                inside += low <= one.energy_error / one.energy_spread <= high
    return inside / total if total else math.nan


def table(held: dict[str, list[Held]]) -> str:
    """The held-out errors by tier and source, as text."""
    lines = [
        f"{'tier':10} {'source':10} {'rows':>5} {'energy MAPE':>12} {'median':>7} "
        f"{'physics':>8} {'step MAPE':>10} {'median':>7} {'pairs':>6}"
    ]
    for tier, found in held.items():
        for source in ("v3", "v2", "argonne", "consumer", "long", "v1", "all"):
            some = [one for one in found if source in (one.row.source, "all")]
            if source == "long":  # of those on consumer cards, which alone have such prompts
                some = [o for o in found if o.row.source == "consumer" and o.row.prompt >= 2000.0]
            if not some:
                continue
            energy = relative(np.array([one.energy_error for one in some]))
            bare = relative(np.array([one.physics_error for one in some]))
            step = relative(np.array([one.step_error for one in some]))
            lines.append(
                f"{tier:10} {source:10} {len(energy):5} {energy.mean():12.1%} "
                f"{np.median(energy):7.1%} {bare.mean():8.1%} "
                + (
                    f"{step.mean():10.1%} {np.median(step):7.1%} "
                    if len(step)
                    else f"{'-':>10} {'-':>7} "
                )
                + f"{pairwise(some):6.1%}"
            )
    return "\n".join(lines)


def _tier(held: Sequence[Held]) -> Tier:
    return Tier(
        energy=_quantiles([(one.energy_error, one.energy_spread, one.row) for one in held]),
        step=_quantiles([(one.step_error, one.step_spread, one.row) for one in held]),
        rows=len(held),
    )


def _quantiles(errors: Sequence[tuple[float, float, Row]]) -> tuple[float, float]:
    """10 % and 90 % of error over spread; a model measured many times counts no more for it."""
    known = [(error / spread, row) for error, spread, row in errors if math.isfinite(error)]
    crowd: dict[tuple[str, str], int] = {}
    for _, row in known:
        key = (row.source, row.architecture)
        crowd[key] = crowd.get(key, 0) + 1
    known.sort(key=lambda pair: pair[0])
    weights = np.array([crowd[row.source, row.architecture] ** -0.5 for _, row in known])
    reached = (np.cumsum(weights) - 0.5 * weights) / weights.sum()
    values = np.array([value for value, _ in known])
    low, high = np.interp([0.1, 0.9], reached, values)
    return min(float(low), -0.1), max(float(high), 0.1)


def _first_token(held: dict[str, list[Held]]) -> tuple[float, float]:
    """An 80 % band around the time to the first token, as factors, from cards held back."""
    missed = [one.first_error for one in held["new_gpu"] if math.isfinite(one.first_error)]
    low, high = np.quantile(missed, [0.1, 0.9])
    return float(np.exp(min(low, 0.0))), float(np.exp(max(high, 0.0)))


if __name__ == "__main__":
    sys.exit(main())
