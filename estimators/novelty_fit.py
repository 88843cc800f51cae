"""Learn what a prompt of a kind never seen looks like. Off the request path.

Part of the prompts, and whole kinds, are left out of the map, words and directions included, and
seen through it as new prompts will be. A logistic regression on the signs of strangeness tells the
two apart; its score's levels among the left-out prompts of each known kind give a prompt's rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from estimators.kinds import RANKS, Judge, signs_of
from estimators.prompts_fit import (
    KIND_RIDGE,
    Index,
    Matrix,
    Prompts,
    Solver,
    Sorting,
    directions_of,
    f32,
    families_of,
    group_folds,
    onehot_of,
    random_folds,
)
from estimators.traffic import LOWEST_RANK

_CROWDING = 0.4  # of the ranks of new kinds, where none could be left out
_POOLED = 30.0  # prompts' worth of all kinds in the levels of one
_MANY = 600  # prompts from which fewer of them are left out
_FEWEST = 40  # prompts below which none is left out


class _Looks(NamedTuple):
    """How prompts look that were left out."""

    signs: Matrix  # (n, S)
    kind: Index  # the likeliest of the first system, 0 without one


def judge_of(prompts: Prompts, sortings: Sequence[Sorting], usual: float, seed: int) -> Judge:
    """The judge of these prompts' familiarity; ``usual`` is the share of new ones expected."""
    n = len(prompts.counts)
    kinds = sortings[0].size if sortings else 1
    signs = 2 * len(sortings) + 2
    if n < _FEWEST:
        plain = np.tile(np.arange(len(RANKS)) - len(RANKS) + 1.0, (kinds, 1))
        nothing = f32(np.zeros(signs))
        return Judge(nothing, nothing, f32(plain), _CROWDING, usual)
    rng = np.random.default_rng(seed)
    folds = random_folds(n, 5, rng)[: 5 if n < _MANY else 3]
    known = _all([_looks(prompts, sortings, fold, seed) for fold in folds])
    strange = None
    # of two tasks, leaving one out would leave nothing to tell it from
    families = families_of(prompts, sortings, seed, fewest=3)
    if families.size >= 2:
        groups = group_folds(families, min(8 if n < _MANY else 5, families.size), rng)
        kept = [fold for fold in groups if 0 < len(fold) <= n - 20]
        if kept:
            strange = _all([_looks(prompts, sortings, fold, seed) for fold in kept])
    mean, weights = _weights(known, strange, signs)
    scores = (known.signs - mean) @ weights
    # a kind with few prompts leans on the levels of all of them
    levels = [
        _levels(scores, np.where(known.kind == k, 1.0, _POOLED / len(scores))) for k in range(kinds)
    ]
    judge = Judge(f32(mean), f32(weights), f32(np.array(levels)), _CROWDING, usual)
    if strange is None:
        return judge
    ranks = [judge.rank(row, int(k)) for row, k in zip(strange.signs, strange.kind, strict=True)]
    crowding = 1.0 / max(float(-np.log(np.maximum(ranks, LOWEST_RANK)).mean()), 1e-6)
    return judge._replace(crowding=float(np.clip(crowding, 0.15, 0.8)))


def _weights(known: _Looks, strange: _Looks | None, signs: int) -> tuple[Matrix, Matrix]:
    if strange is None:
        mean, scale = known.signs.mean(0), known.signs.std(0) + 1e-6
        weights = np.ones(signs) / scale  # surer, better known and more ordinary: more familiar
        weights[-1] = -weights[-1]
        return mean, weights
    # scikit-learn is heavy and only fitting needs it
    from sklearn.linear_model import LogisticRegression

    every = np.concatenate([known.signs, strange.signs])
    mean, scale = every.mean(0), every.std(0) + 1e-6
    found = LogisticRegression(class_weight="balanced").fit(
        (every - mean) / scale, np.arange(len(every)) < len(known.signs)
    )
    return mean, found.coef_[0] / scale


def _levels(values: Matrix, weights: Matrix) -> Matrix:
    order = np.argsort(values)
    share = np.cumsum(weights[order])
    found = np.interp(RANKS, share / share[-1], values[order])
    return np.asarray(found + np.arange(len(RANKS)) * 1e-6)


def _looks(prompts: Prompts, sortings: Sequence[Sorting], test: Index, seed: int) -> _Looks:
    """As the serving side would see these prompts, had it learnt from the others only."""
    train = np.setdiff1d(np.arange(len(prompts.counts)), test)
    number = len(prompts.idf) - 1
    words = prompts.design[train][:, :number]
    taught = np.bincount(words.indices, minlength=number) >= 2
    design = prompts.design.multiply(np.concatenate([taught, np.ones(prompts.counts.shape[1])]))
    design = design.tocsr()
    directions, loadings = directions_of(design[train], seed)
    solver = Solver(directions, np.arange(len(train)))
    held = design[test] @ loadings
    tops = []
    kind = np.zeros(len(test), np.int64)
    for i, sorting in enumerate(sortings):
        onehot = onehot_of(sorting, train)
        scores = held @ solver.solve(onehot - onehot.mean(0), KIND_RIDGE)[0] + onehot.mean(0)
        scores[:, onehot.sum(0) < 1] = -1.0  # a kind that was left out cannot be named
        ranked = np.sort(scores, axis=1)
        tops.append((ranked[:, -1], ranked[:, -2]))
        if i == 0:
            kind = scores.argmax(1)
    known = np.asarray(design[test][:, :number].power(2).sum(1)).ravel()
    mean, deviation = prompts.counts[train].mean(0), prompts.counts[train].std(0)
    scale = np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0.0)
    squares = (np.clip((prompts.counts[test] - mean) * scale, -4, 4) ** 2).sum(1)
    signs = [
        signs_of([(best[i], second[i]) for best, second in tops], known[i], squares[i])
        for i in range(len(test))
    ]
    return _Looks(np.array(signs).reshape(len(test), 2 * len(tops) + 2), kind)


def _all(looks: Sequence[_Looks]) -> _Looks:
    return _Looks(
        np.concatenate([look.signs for look in looks]),
        np.concatenate([look.kind for look in looks]),
    )
