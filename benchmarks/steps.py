"""How well the step physics predicts the power of real engines, on windows left out.

    python -m benchmarks.steps [--data ../shared/data/energy/consumer_gpu_windows.csv]

The windows are ten seconds each, of vLLM 0.12 on an RTX 5060 Ti and an RTX 5090
(hholtmann/llm-consumer-gpu-benchmark at 59e35419, MIT). They say token rates, sequences running,
KV-cache use, board power and idle power, but neither steps nor context lengths: steps are taken as
generated tokens over sequences running, and cached tokens read as KV-cache use times steps, in
units of the whole cache. One learner for each GPU and model sees the windows of all its runs but
one, and predicts that one; beside it, as comparison, the mean power of the runs seen.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from estimators.steps import StepLearner
from meters.attribution import Regressors
from meters.types import StepPhysics, Window

WINDOW_S = 10.0


def prior(idle_w: float) -> StepPhysics:
    """Loose: an engine that draws 100 W above idle, whatever it does."""
    return StepPhysics(
        idle_power_w=idle_w,
        step_j=1.0,
        token_j=0.1,
        context_j=1.0,  # of reading the whole cache once
        prefill_j=0.02,
        step_s=0.01,
        token_s=1e-3,
        context_s=0.01,
        prefill_s=2e-4,
    )


def read(path: Path) -> dict[tuple[str, str], dict[str, list[tuple[Window, Regressors]]]]:
    """Windows with work, by GPU and model, then by run."""
    found: dict[tuple[str, str], dict[str, list[tuple[Window, Regressors]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    with path.open() as file:
        for number, row in enumerate(csv.DictReader(file)):
            try:
                generated = float(row["gen_tok_s"]) * WINDOW_S
                running = float(row["running"])
                energy_j = float(row["power_w"]) * WINDOW_S
                kv = float(row["kv_usage_pct"]) / 100
                hit = float(row["prefix_hit_pct"] or 0) / 100
                prefilled = float(row["prompt_tok_s"]) * WINDOW_S * (1 - hit)
                at_s = float(row["t_s"])
                idle_w = float(row["idle_w"])
            except ValueError:
                continue
            steps = generated / max(running, 1.0)
            window = Window(
                window_id=str(number),
                node=row["gpu_model"],
                start_s=at_s - WINDOW_S,
                end_s=at_s,
                energy_j=energy_j,
                idle_power_w=idle_w,
            )
            work = Regressors(WINDOW_S, WINDOW_S, steps, generated, kv * steps, prefilled, 0.0)
            engine = (row["gpu_model"] + " x" + row["num_gpus"], row["model_id"])
            found[engine][row["run"]].append((window, work))
    return found


def predicted_j(physics: StepPhysics, work: Regressors) -> float:
    return (
        physics.idle_power_w * work.seconds
        + physics.step_j * work.steps
        + physics.token_j * work.generated
        + physics.context_j * work.context_steps
        + physics.prefill_j * work.prefilled
    )


def left_out(runs: dict[str, list[tuple[Window, Regressors]]]) -> tuple[list[float], list[float]]:
    """Relative errors of the learner and of the mean, each run predicted from the others."""
    ours, means = [], []
    for out, windows in runs.items():
        seen = [pair for run, pairs in runs.items() if run != out for pair in pairs]
        random.Random(out).shuffle(seen)  # runs follow each other otherwise, and are forgotten
        learner = StepLearner(prior(windows[0][0].idle_power_w or 20.0), half_life_s=1e9)
        for i, (window, work) in enumerate(seen):
            at_s = i * 2 * WINDOW_S
            learner.observe(
                Window(
                    window_id=str(i),
                    node=window.node,
                    start_s=at_s,
                    end_s=at_s + WINDOW_S,
                    energy_j=window.energy_j,
                ),
                work,
            )
        mean_j = float(np.mean([window.energy_j for window, _ in seen]))
        physics = learner.physics()
        for window, work in windows:
            ours.append(abs(predicted_j(physics, work) / window.energy_j - 1))
            means.append(abs(mean_j / window.energy_j - 1))
    return ours, means


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path("..") / "shared" / "data" / "energy" / "consumer_gpu_windows.csv"
    parser.add_argument("--data", type=Path, default=default)
    args = parser.parse_args(argv)
    if not args.data.is_file():
        print(f"{args.data} is not there; name the file with --data", file=sys.stderr)
        return 1
    print(
        f"{'GPU':14s} {'model':44s} {'runs':>4s} {'windows':>7s}  learnt: median, p90   mean power"
    )
    every: tuple[list[float], list[float]] = ([], [])
    for (gpu, model), runs in sorted(read(args.data).items()):
        if len(runs) < 3:
            continue
        errors = left_out(runs)
        for total, some in zip(every, errors, strict=True):
            total.extend(some)
        print(f"{gpu:14s} {model[:44]:44s} {len(runs):4d} {len(errors[0]):7d}  {_row(errors)}")
    print(f"{'all':14s} {'':44s} {'':4s} {len(every[0]):7d}  {_row(every)}")
    return 0


def _row(errors: tuple[list[float], list[float]]) -> str:
    ours, means = (100 * np.quantile(values, [0.5, 0.9]) for values in errors)
    return f"{ours[0]:8.1f} % {ours[1]:6.1f} % {means[0]:8.1f} % {means[1]:6.1f} %"


if __name__ == "__main__":
    sys.exit(main())
