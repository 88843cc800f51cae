"""Whole tasks left out: is choosing by prediction ever worse than not looking at the prompt?

What does not look at the prompt reaches the hull of the single models as known when learning, so
every figure here is mean quality over budgets less that hull's, in points of score: 0 is the hull
itself. Each task is judged twice: on its own, as a file that holds nothing else, and among as many
prompts of tasks that were learnt from, where it is hardest to tell. Standard errors are over
prompts of a task (bootstrap, the same model), and over tasks for a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.routing_scores import area_of, area_of_hull, hull_of, recovered
from benchmarks.routing_sets import OutcomeSet
from estimators.quality_model import QualityModel
from estimators.text import read

Matrix = NDArray[np.float64]
Index = NDArray[np.int64]

_FEWEST = 30  # prompts of a task that say anything
_DRAWS = 40
_MANY = 12  # tasks from which several are left out at once
_FOLDS = 5
_MIXED = 300  # prompts of a task, and of known ones, that come in one file


class Gain(NamedTuple):
    """Mean quality over budgets less the hull's, and its standard error."""

    value: float
    error: float

    @property
    def below(self) -> bool:
        """By more than two standard errors, which chance alone does once in forty times."""
        return self.value < -2.0 * self.error - 1e-9


class LeftOut(NamedTuple):
    """One task that was left out whole."""

    task: str
    prompts: int
    alone: Gain
    mixed: Gain
    known: Gain  # of the prompts of known tasks that came with it
    ridge: Gain  # plain TF-IDF ridge


def tasks_left_out(
    data: OutcomeSet,
    most: int,
    learn: Callable[[OutcomeSet, Index], QualityModel],
    ridge: Callable[[OutcomeSet, Index, Index], Matrix],
) -> Iterator[LeftOut]:
    """Every task of the set with enough prompts; at most ``most`` prompts are learnt from."""
    tasks = np.array(data.tasks)
    names = sorted(set(data.tasks))
    folds = [[name] for name in names]
    if len(names) > _MANY:
        shuffled = np.random.default_rng(1).permutation(names).tolist()
        folds = [shuffled[k::_FOLDS] for k in range(_FOLDS)]
    for fold in folds:
        out = np.isin(tasks, fold)
        rest = np.flatnonzero(~out & ~np.isin(data.groups, np.unique(data.groups[out])))
        rest = np.random.default_rng(0).permutation(rest)
        learnt, spare = np.split(rest, [min(most, round(0.85 * len(rest)))])
        if len(learnt) < 50:
            continue
        model = learn(data, learnt)
        plain = ridge(data, learnt, np.flatnonzero(out))
        place = {int(row): number for number, row in enumerate(np.flatnonzero(out))}
        for task in fold:
            judged = np.flatnonzero(tasks == task)
            if len(judged) < _FEWEST:
                continue
            some = np.random.default_rng(0).permutation(judged)[:_MIXED]
            known = spare[:_MIXED]
            both = guesses_of(model, data, np.concatenate([some, known]))
            yield LeftOut(
                task,
                len(judged),
                gain(data, guesses_of(model, data, judged), learnt, judged),
                gain(data, both[: len(some)], learnt, some),
                gain(data, both[len(some) :], learnt, known),
                gain(data, plain[[place[int(row)] for row in judged]], learnt, judged),
            )


def guesses_of(model: QualityModel, data: OutcomeSet, judged: Index) -> Matrix:
    """What the model says of these prompts, taken as one stretch of traffic."""
    order = [model.backends.index(name) for name in data.models]
    said = model.predict_all([read(data.texts[i]) for i in judged])
    return np.array([each.quality[order, 1] for each in said if each.quality is not None], float)


def gain(data: OutcomeSet, guesses: Matrix, learnt: Index, judged: Index) -> Gain:
    """Choosing by these guesses, less the hull of the single models as known when learning."""
    hull = hull_of(data.costs, np.nanmean(data.scores[learnt], axis=0))

    def less_hull(rows: Index) -> float:
        scores = data.scores[judged[rows]]
        if len(data.models) == 2:
            strong = float((scores[:, 1] - scores[:, 0]).mean())
            return (recovered(guesses[rows, 1] - guesses[rows, 0], scores) - 0.5) * strong
        return area_of(guesses[rows], hull, data.costs, scores) - area_of_hull(
            hull, data.costs, scores
        )

    every = np.arange(len(judged))
    if (np.ptp(guesses, axis=0) < 1e-9).all():
        return Gain(0.0, 0.0)  # the same for every prompt: the hull itself
    rng = np.random.default_rng(0)
    drawn = [less_hull(rng.integers(0, len(every), len(every))) for _ in range(_DRAWS)]
    return Gain(less_hull(every), float(np.std(drawn)))


def line_of(one: LeftOut) -> str:
    """One task's figures."""
    gains = (("alone", one.alone), ("mixed", one.mixed), ("known", one.known), ("ridge", one.ridge))
    return f"{one.task[:28]:29}{one.prompts:5d}  " + "  ".join(
        f"{title} {each.value:+.4f}±{each.error:.4f}" for title, each in gains
    )


def summary(title: str, found: Sequence[LeftOut]) -> str:
    """Means over tasks with their standard errors between tasks, and how many are below."""
    cells = []
    for name, gains in (
        ("alone", [one.alone for one in found]),
        ("mixed", [one.mixed for one in found]),
        ("known beside", [one.known for one in found]),
        ("ridge", [one.ridge for one in found]),
    ):
        values = np.array([each.value for each in gains])
        error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
        below = sum(each.below for each in gains)
        cells.append(
            f"{name} {values.mean():+.4f}±{error:.4f}"
            f" (on it {int((values == 0).sum())}, below by two errors {below})"
        )
    return f"{title:12}{len(found):4d} tasks   " + "   ".join(cells)
