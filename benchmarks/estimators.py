"""How good the estimators are: held-out errors, feedback, speed, and published against predicted.

``make bench-estimators`` or ``python -m benchmarks.estimators ../shared/data``. Held-out figures
are those that the fit wrote into estimators/energy_prior.json, unless ``--refit`` makes them
again (ten minutes).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.energy_rows import Row, fingerprint, read_rows
from benchmarks.fit_energy_prior import TIERS, table
from benchmarks.grey_fit import fit
from benchmarks.holdouts import Held, hold_out, relative
from benchmarks.seed_findings import findings
from benchmarks.seeds import lines, rice_of
from estimators.artefacts import load_prior
from estimators.checks import backends
from estimators.correction import Correction
from estimators.energy import EnergyEstimator
from estimators.prior import Prior
from estimators.rice import Rice
from estimators.roofline import roofline_of
from estimators.types import Features, Load

# EcoLogits 0.11: energy per output token and GPU in Wh, α e^(βB) P + γ, batch 64 assumed
# (its documentation, "LLM inference"); GPUs of 80 GB to a power of two.
_ALPHA, _BETA, _GAMMA = 1.1665273170451914e-06, -0.011205921025579175, 4.052928146734005e-05
_ECO_BATCH = 64.0


def main(argv: Sequence[str] | None = None) -> int:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", type=Path, default=Path("../shared/data"))
    parser.add_argument("--refit", action="store_true", help="make the held-out figures again")
    args = parser.parse_args(argv)
    with threadpool_limits(1):
        prior = load_prior()
        rows = read_rows(args.data)
        held: dict[str, list[Held]] = {}
        start = prior.constants
        if args.refit:
            start = fit(rows, None, 60, 0).constants
            held = hold_out(rows, start, TIERS, 26, lambda text: print(text, file=sys.stderr))
            print(table(held), end="\n\n")
        else:
            print(stored(prior, fingerprint(args.data)), end="\n\n")
        print(first_token_floor(rows), end="\n\n")
        print(baselines(rows, rice_of(args.data)), end="\n\n")
        unseen = held.get("new_model") or hold_out(rows, start, ("new_model",), 0)["new_model"]
        curves = curves_of(unseen)
        print(feedback(curves), end="\n\n")
        print(of_siblings(curves), end="\n\n")
        print(speed(), end="\n\n")
        for line in published(args.data, prior):
            print(line)
    return 0


def stored(prior: Prior, data: str) -> str:
    """What the fit wrote of itself."""
    same = "the same data" if prior.about["data_sha256"] == data else "OTHER DATA than given here"
    text = [f"held out, as fitted on {same}; rows with a load, each fold fitted without its like"]
    text.append(
        f"{'tier':10} {'rows':>5} {'energy MAPE':>12} {'median':>7} {'physics alone':>14} "
        f"{'step MAPE':>10} {'median':>7} {'pairs':>6} {'first token':>12} {'latency':>8} "
        f"{'80 % band holds':>16}"
    )
    for tier, found in prior.about["held_out"].items():
        text.append(
            f"{tier:10} {found['rows']:5.0f} {found['energy_mape']:12.1%} "
            f"{found['energy_median']:7.1%} {found['physics_mape']:14.1%} "
            f"{found['step_mape']:10.1%} {found['step_median']:7.1%} {found['pairs_right']:6.1%} "
            f"{found.get('first_token_mape', math.nan):12.1%} "
            f"{found.get('latency_mape', math.nan):8.1%} "
            f"{found.get('band_holds', math.nan):16.1%}"
        )
    return "\n".join(text)


def first_token_floor(rows: Sequence[Row]) -> str:
    """How far a run's mean time to the first token is from its own median, which no estimate knows
    before it, times the factor usual in the other runs."""
    known = [row for row in rows if math.isfinite(row.ttft_s)]
    factors = np.log([row.ttft_s / row.ttft_median_s for row in known])
    usual = [np.median(np.delete(factors, i)) for i in range(len(factors))]
    missed = relative(factors - np.array(usual))
    return (
        f"first token, from the same run's measured median: {missed.mean():.1%} off the mean "
        f"({len(missed)} runs)"
    )


def baselines(rows: Sequence[Row], rice: Rice) -> str:
    """What needs no fit on these rows: the data sheets alone, EcoLogits' formula, R-ICE."""
    text = [f"{'not fitted':34} {'rows':>5} {'energy MAPE':>12} {'median':>7}"]
    for name in ("roofline", "ecologits, batch 64", "ecologits, true batch and GPUs", "r-ice"):
        errors = [
            math.log(row.energy_j / _baseline(name, row, rice))
            for row in rows
            if row.source in ("v3", "v2") and math.isfinite(row.energy_j)
        ]
        missed = relative(np.array(errors))
        text.append(f"{name:34} {len(missed):5} {missed.mean():12.1%} {np.median(missed):7.1%}")
    return "\n".join(text)


def _baseline(name: str, row: Row, rice: Rice) -> float:
    model = row.backend.model
    assert model is not None
    active = model.active_params_b or model.params_b
    if name == "roofline":
        found = roofline_of(row.backend)
        assert found is not None
        return found.request(row.batch, row.prompt, row.output).energy_j
    if name == "r-ice":
        return rice.energy_j(active, row.prompt, row.output)
    true = name.endswith("GPUs")
    batch = row.batch if true else _ECO_BATCH
    needed = 1.2 * model.params_b * 2.0 / 80.0
    gpus = row.backend.num_gpus if true else 2 ** max(0, math.ceil(math.log2(max(1.0, needed))))
    per_token_wh = _ALPHA * math.exp(_BETA * batch) * active + _GAMMA
    return per_token_wh * 3600.0 * gpus * row.output


def curves_of(held: Sequence[Held]) -> list[list[Held]]:
    """The load curves of engines among rows of unseen architectures."""
    curves: dict[str, list[Held]] = {}
    for one in held:
        if one.row.source in ("v3", "v2") and math.isfinite(one.energy_error):
            curves.setdefault(one.row.curve, []).append(one)
    return list(curves.values())


def of_siblings(curves: Sequence[Sequence[Held]]) -> str:
    """An unseen architecture, corrected by a share of what its other backends (another precision,
    number of GPUs, card) taught on the average, and by nothing of its own."""
    taught = []
    for points in curves:
        correction = Correction()
        for one in points:
            correction.observe(one.row.batch, one.energy_error)
        taught.append((points[0].row, correction))
    errors: dict[float, list[float]] = {share: [] for share in (0.0, 0.25, 0.5, 0.75, 1.0)}
    for points in curves:
        own = points[0].row
        siblings = [c for row, c in taught if row.backend != own.backend and _same_model(row, own)]
        for one in points if siblings else ():
            said = sum(sibling.at(one.row.batch) for sibling in siblings) / len(siblings)
            for share, found in errors.items():
                found.append(abs(math.expm1(share * said - one.energy_error)))
    text = [f"{'share of what siblings teach':34} {'points':>6} {'MAPE':>7} {'median':>7}"]
    for share, found in errors.items():
        text.append(f"{share:<34} {len(found):6} {np.mean(found):7.1%} {np.median(found):7.1%}")
    return "\n".join(text)


def _same_model(left: Row, right: Row) -> bool:
    return left.architecture == right.architecture and left.backend.model == right.backend.model


def feedback(curves: Sequence[list[Held]]) -> str:
    """An unseen architecture, then 1, 3 or 200 of its own metered points, judged on the others.

    The 200 requests scatter by 15 % around the curve's points and come at loads between them.
    """
    random = np.random.default_rng(1)
    labels = ("0 observed", "1 observed", "3 observed", "200 requests")
    errors: dict[str, list[float]] = {label: [] for label in labels}
    for points in curves:
        if len(points) < 5:
            continue
        points.sort(key=lambda one: one.row.batch)
        order = [len(points) // 2, 0, len(points) - 1]
        for label, shown in (("0 observed", 0), ("1 observed", 1), ("3 observed", 3)):
            taught = Correction()
            for i in order[:shown]:
                taught.observe(points[i].row.batch, points[i].energy_error)
            for i, one in enumerate(points):
                if i not in order:
                    missed = one.energy_error - taught.at(one.row.batch)
                    errors[label].append(abs(math.expm1(-missed)))
        taught = Correction()
        for _ in range(200):
            one = points[int(random.integers(len(points)))]
            taught.observe(one.row.batch, one.energy_error + random.normal(0.0, 0.15))
        for one in points:
            missed = one.energy_error - taught.at(one.row.batch)
            errors["200 requests"].append(abs(math.expm1(-missed)))
    text = [f"{'feedback, unseen architecture':34} {'points':>6} {'MAPE':>7} {'median':>7}"]
    for label, values in errors.items():
        text.append(f"{label:34} {len(values):6} {np.mean(values):7.1%} {np.median(values):7.1%}")
    return "\n".join(text)


def speed() -> str:
    """Ten candidates on the request path, beside a yardstick in the same process."""
    estimator = EnergyEstimator()
    some = backends()[:9]
    some.append(some[0])
    loads = [Load(running=float(i), known=True) for i in range(len(some))]
    features = Features(prompt_tokens=300, max_tokens=500)
    estimator.prepare(some)
    best = math.inf
    for _ in range(500):
        began = time.perf_counter()
        estimator.estimate(features, some, loads)
        best = min(best, time.perf_counter() - began)
    return f"estimates for ten candidates: {best * 1e6:.0f} µs (best of 500)"


def published(data: Path, prior: Prior) -> Iterator[str]:
    """Every row of the seed publications beside ours."""
    yield f"{'table':13} {'row':62} {'published':>10} {'ours':>10} {'off':>8}"
    by_table: dict[str, list[float]] = {}
    for line in (*lines(data, prior), *findings(data, prior)):
        off = f"{'-':>8}"
        if math.isfinite(line.off):
            by_table.setdefault(line.table, []).append(abs(line.off))
            off = f"{line.off:8.0%}"
        yield (
            f"{line.table:13} {line.what:62} {line.published:10.3g} {line.predicted:10.3g} "
            f"{off} {line.unit}"
        )
    yield ""
    for name, missed in by_table.items():
        yield f"{name:13} mean |off| {np.mean(missed):.0%} over {len(missed)} rows"


if __name__ == "__main__":
    sys.exit(main())
