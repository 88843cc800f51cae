"""Made-up outcomes with a known pattern: who is good at what, and how long answers are."""

from __future__ import annotations

import random

from estimators.quality_fit import Scored

WORDS = {
    "code": "python function list sort class return loop array string parse json",
    "cooking": "recipe oven butter flour bake salt onion garlic stir boil dinner",
    "law": "court contract liability statute plaintiff clause appeal judge ruling",
}
# how often each backend is right, per kind of task
RIGHT = {
    "small": {"code": 0.2, "cooking": 0.8, "law": 0.5},
    "large": {"code": 0.9, "cooking": 0.8, "law": 0.6},
}
TOKENS = {"code": 400.0, "cooking": 120.0, "law": 250.0}


def prompt(task: str, rng: random.Random) -> str:
    return f"Please {' '.join(rng.choices(WORDS[task].split(), k=12))}?"


def outcomes(
    prompts: int,
    seed: int = 0,
    labels: bool = True,
    tasks: tuple[str, ...] = ("code", "cooking", "law"),
    backends: tuple[str, ...] = ("small", "large"),
) -> list[Scored]:
    rng = random.Random(seed)
    rows = []
    for number in range(prompts):
        task = tasks[number % len(tasks)]
        text = prompt(task, rng)
        size = rng.lognormvariate(0, 0.3)
        for backend in backends:
            factor = 0.7 if backend == "small" else 1.0
            rows.append(
                Scored(
                    text,
                    backend,
                    float(rng.random() < RIGHT[backend][task]),
                    round(TOKENS[task] * factor * size * rng.lognormvariate(0, 0.2)),
                    task if labels else None,
                )
            )
    return rows
