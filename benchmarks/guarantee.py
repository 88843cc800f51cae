"""Whether "at least this quality on average, least energy" keeps its promise on recorded outcomes.

    make bench-guarantee

GreenServ's published outcomes of 16 open models (accuracy and joules per token decoded, 44 % of the
cells; an evaluation only). Half of the prompts, drawn at random, teach each model's mean score and
joules per task; the other half is replayed in random order. Candidates of a prompt are the models
whose outcome is known. `observed` repays the debt with the score each answer really had, as with
feedback on every answer; `expected` with the taught mean, as without any. A promise is kept when
the average is not more than one standard error below it.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from math import sqrt
from statistics import mean

from estimators.types import Backend, Band, Estimate, Features, Load
from meters.types import Evidence
from policies.best_quality import BestQuality
from policies.guarantee import Guarantee, first_debt
from policies.least_energy import LeastEnergy
from policies.types import Candidate, Limits, Policy, Request

FOLDER = "../shared/data/routing"
Outcomes = dict[str, tuple[float, float]]  # model -> score, joules per token


def outcomes(folder: str) -> list[tuple[str, Outcomes]]:
    """Per prompt its task and what each model made of it."""
    import pandas as pd  # heavy, and used here alone

    prompts = pd.read_parquet(f"{folder}/greenserv_prompts.parquet").set_index("prompt_id")
    scores = pd.read_parquet(f"{folder}/greenserv_scores_decoded.parquet")
    found: dict[str, Outcomes] = defaultdict(dict)
    for row in scores.itertuples():
        if row.score == row.score and row.energy_per_token_J_derived > 0:
            joules = float(row.energy_per_token_J_derived)
            found[row.prompt_id][row.model] = (float(row.score), joules)
    return [(prompts.loc[name, "dataset"], models) for name, models in sorted(found.items())]


def taught(rows: list[tuple[str, Outcomes]]) -> dict[tuple[str, str], tuple[float, float]]:
    """Mean score and joules of each task and model; scores shrunk towards the model's own mean."""
    cells: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    models: dict[str, list[float]] = defaultdict(list)
    for task, found in rows:
        for model, outcome in found.items():
            cells[(task, model)].append(outcome)
            models[model].append(outcome[0])
    return {
        (task, model): (
            (sum(s for s, _ in cell) + 10 * mean(models[model])) / (len(cell) + 10),
            mean(j for _, j in cell),
        )
        for (task, model), cell in cells.items()
    }


def candidates(
    task: str, found: Outcomes, known: dict[tuple[str, str], tuple[float, float]]
) -> list[Candidate]:
    made = []
    for model in found:
        if (task, model) not in known:
            continue
        score, joules = known[(task, model)]
        band = Band(joules, joules, joules)
        estimate = Estimate(
            backend=model,
            energy_j=band,
            marginal_energy_j=band,
            ttft_s=None,
            latency_s=None,
            carbon_g=None,
            money_usd=None,
            quality=Band(score, score, score),
            output_tokens=None,
            evidence=Evidence.BENCHMARK,
        )
        made.append(Candidate(Backend(name=model, group=model), estimate, Load(known=True)))
    return made


def replayed(
    rows: list[tuple[str, Outcomes]],
    known: dict[tuple[str, str], tuple[float, float]],
    policy: Policy,
    observed: bool,
) -> tuple[float, float, float]:
    """Mean score, its standard error, mean joules per token."""
    promise = policy if isinstance(policy, Guarantee) else None
    debt: float | None = None
    scores, joules = [], []
    for task, found in rows:
        options = candidates(task, found, known)
        if not options:
            continue
        features = Features(prompt_tokens=100, task=task)
        if debt is None:
            debt = first_debt(promise.promised, options) if promise is not None else 0.0
        request = Request(features=features, asked="auto", quality_debt=debt)
        chosen = policy.choose(request, options, Limits()).chosen
        score, energy_j = found[chosen]
        scores.append(score)
        joules.append(energy_j)
        if promise is not None:
            debt = promise.owe(debt, score if observed else known[(task, chosen)][0])
    average = mean(scores)
    spread = sqrt(sum((s - average) ** 2 for s in scores) / (len(scores) - 1) / len(scores))
    return average, spread, mean(joules)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=FOLDER)
    parser.add_argument("--promises", type=float, nargs="+", default=[0.55, 0.6, 0.65, 0.7])
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    try:
        rows = outcomes(args.data)
    except OSError as error:
        print(f"{error}. Name the folder of the routing data with --data.", file=sys.stderr)
        return 1
    print(f"{'rule':24} {'kept':>8} {'score':>7} {'error':>7} {'J/token':>8}")
    rules: list[tuple[str, float | None, Policy, bool]] = [
        ("least energy", None, LeastEnergy(), True)
    ]
    for promise in args.promises:
        rules.append((f"at least {promise:g}, observed", promise, Guarantee(promise), True))
        rules.append((f"at least {promise:g}, expected", promise, Guarantee(promise), False))
    rules.append(("best quality", None, BestQuality(), True))
    for name, promise, policy, observed in rules:
        results = []
        for seed in range(args.repeats):
            shuffled = random.Random(seed).sample(rows, len(rows))
            half = len(rows) // 2
            results.append(replayed(shuffled[half:], taught(shuffled[:half]), policy, observed))
        kept = "-"
        if promise is not None:
            held = sum(score >= promise - error for score, error, _ in results)
            kept = f"{held}/{args.repeats}"
        print(
            f"{name:24} {kept:>8} {mean(r[0] for r in results):7.3f}"
            f" {mean(r[1] for r in results):7.3f} {mean(r[2] for r in results):8.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
