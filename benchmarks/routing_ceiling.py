"""How much there is to win from a prompt at all, for two models, and how many tasks are named.

    python -m benchmarks.routing_ceiling

An APGR needs something to be held against. Beside what is learnt from the text stand three that no
prompt tells: its task, with as many labels and with all of them; and what dozens of other models
made of the very same question, taken as the gap between the stronger and the weaker third of them
(nothing is fitted), or regressed on the pair's gap. Whoever knows a question only by its text will
hardly judge it better than by what twenty-five models answered.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.routing import learnt_from, ours, task_known
from benchmarks.routing_scores import recovered
from benchmarks.routing_sets import OutcomeSet, load, passages, split
from estimators.text import read

Matrix = NDArray[np.float64]
Index = NDArray[np.int64]

_RIDGE = 100.0  # of the regression on other models' outcomes; from 10 to 300 gives much the same
_NAMED = 600  # prompts whose task is to be named


def same_questions(data: OutcomeSet, other: OutcomeSet) -> Index:
    """For each prompt, the one row of the other set that shares a passage with it, or -1."""
    groups = passages([*data.texts, *other.texts])
    rows_of: dict[int, list[int]] = {}
    for row, group in enumerate(groups[len(data.texts) :]):
        rows_of.setdefault(int(group), []).append(row)
    found = [rows_of.get(int(group), []) for group in groups[: len(data.texts)]]
    return np.array([rows[0] if len(rows) == 1 else -1 for rows in found])


def by_others(data: OutcomeSet, other: OutcomeSet, repeats: int) -> dict[str, list[float]]:
    """APGR on the questions that the other set's models answered too."""
    row = same_questions(data, other)
    both = np.flatnonzero(row >= 0)
    means = np.nanmean(other.scores, axis=0)
    answers = np.nan_to_num(other.scores[row[both]] - means)
    order = np.argsort(means)
    third = len(order) // 3
    apart = answers[:, order[-third:]].mean(1) - answers[:, order[:third]].mean(1)
    gap = data.scores[both, 1] - data.scores[both, 0]
    found: dict[str, list[float]] = {}
    for seed in range(repeats):
        learnt, judged = split(data.groups[both], 0.67, seed)
        scores = data.scores[both[judged]]
        seen = answers[learnt]
        weights = np.linalg.solve(
            seen.T @ seen + _RIDGE * np.eye(seen.shape[1]),
            seen.T @ (gap[learnt] - gap[learnt].mean()),
        )
        text = ours(data, both[learnt], both[judged])
        for name, order_by in (
            ("from the text", text[:, 1] - text[:, 0]),
            ("gap between their thirds", apart[judged]),
            ("regressed on their answers", answers[judged] @ weights),
        ):
            found.setdefault(name, []).append(recovered(order_by, scores))
    return found


def by_task(data: OutcomeSet, labels: int, repeats: int) -> dict[str, list[float]]:
    """APGR with so many labels, and where each prompt's task is told, with as many and all."""
    found: dict[str, list[float]] = {}
    for seed in range(repeats):
        every, judged = split(data.groups, 0.67, seed)
        some = np.random.default_rng(seed).permutation(every)[:labels]
        for title, router, rows in (
            (f"{labels} labels, from the text", ours, some),
            (f"{labels} labels, task told", task_known, some),
            ("all labels, task told", task_known, every),
        ):
            guesses = router(data, rows, judged)
            found.setdefault(title, []).append(
                recovered(guesses[:, 1] - guesses[:, 0], data.scores[judged])
            )
    return found


def named(data: OutcomeSet, labels: int) -> tuple[float, float]:
    """Which share of unseen prompts of known tasks gets its task's name, and another task's."""
    learnt, judged = split(data.groups, 0.67, 0)
    learnt = np.random.default_rng(0).permutation(learnt)[:labels]
    judged = judged[:_NAMED]
    said = learnt_from(data, learnt).predict_all([read(data.texts[row]) for row in judged])
    tasks = set(data.tasks)
    right = [each.task == data.tasks[row] for each, row in zip(said, judged, strict=True)]
    wrong = [each.task in tasks for each in said]
    return float(np.mean(right)), float(np.mean(wrong) - np.mean(right))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/routing"))
    parser.add_argument("--repeats", type=int, default=8, help="splits to judge on")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    sets = {
        name: load(args.data, name)
        for name in ("gsm8k", "zeroeval", "mmlu", "mmlupro", "llmrouter")
    }

    print("Tasks named by predict-quality, learnt from 1,500 prompts: right, another's name")
    for name in ("mmlu", "mmlupro", "llmrouter"):
        right, wrong = named(sets[name], 1500)
        print(f"  {name:12} {right:.2f} {wrong:.2f}", flush=True)

    print("APGR of two models, mean and its standard error over splits")
    for name, other in (("gsm8k", "zeroeval"), ("mmlu", "mmlupro")):
        models = len(sets[other].models)
        print(f"  {name}, questions that {models} models of {other} answered too")
        _print(by_others(sets[name], sets[other], args.repeats))
    print("  mmlu, all questions")
    _print(by_task(sets["mmlu"], 1500, args.repeats))


def _print(found: dict[str, list[float]]) -> None:
    for title, values in found.items():
        error = float(np.std(values)) / len(values) ** 0.5
        print(f"    {title:28} {np.mean(values):.3f} +- {error:.3f}", flush=True)


if __name__ == "__main__":
    main()
