"""Learn which kind of prompt suits which backend, from outcomes. Off the request path.

Per-prompt quality is hardly predictable from a prompt, the kind of task nearly is; so everything
here shrinks: ridge regression on words, tables of kinds towards the backend's mean, and a mix of
these whose weights are chosen on prompts that no part of it had seen. How much of the result is
used where a prompt looks unfamiliar is decided on whole kinds left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from estimators.kinds import Gate, Head, Judge, Kinds, System
from estimators.novelty_fit import judge_of
from estimators.prompts_fit import (
    DENSE_WEIGHT,
    KIND_RIDGE,
    Index,
    Matrix,
    Prompts,
    Solver,
    Solvers,
    Sorting,
    balanced,
    f32,
    families_of,
    folds_of,
    group_folds,
    likelihoods,
    onehot_of,
    prompts_of,
    sortings_of,
)
from estimators.text import DENSE, TextFeatures

_RIDGES = (3.0, 10.0, 40.0)
# Of a score of 0 or 1 that is as often one as the other, and of the logarithm of lengths that
# mostly lie within a factor of two.
_PRIOR_VARIANCE = 0.25
_DOUBT = 2.0  # values that it weighs as much as
_MASSES = (5.0, 30.0)  # prompts' worth of the backend's mean in a kind's table
# How sharply a kind's scores decide: of a regression alone, and of words and a regression together.
_SHARPNESS = ((4.0,), (8.0,), (16.0,), (32.0,))
_SHARPNESS_OF_WORDS = tuple(product((0.25, 0.5, 0.75, 1.0, 1.5), (0.0, 1.0, 1.5, 2.0, 3.0, 4.0)))
_NEVER = -1000.0  # a score that no prompt of a kind has
_FEWEST = 20  # prompts below which only means are used
_MANY_KINDS = 15  # labelled tasks; fewer left out say little about the next one
_DOUBTFUL, _SURE = 0.25, 0.8  # slopes of what came on what was guessed
# Chances of being of a known kind between which trust grows: where enough kinds were left out to
# say what guesses are worth on new ones, and where too few were. A little trust changes the order
# of prompts as much as all of it does, so below the first there must be none.
_TESTED, _UNTESTED = (0.3, 0.7), (0.6, 0.8)
_KEPT_AXES = 12
# Of a mix in all. Guesses are shrunk, so that a mix may weigh more than 1; where backends left out
# had hardly another answer, guesses are next to nothing, and no factor makes them right.
_MOST_WEIGHT = 20.0


Sharpness = tuple[float, ...]  # one factor for each way in which a kind's scores are told


class Member(NamedTuple):
    """The mix's predictors on prompts that were left out of their training."""

    rows: Index
    guesses: Matrix  # (members, n, M)
    kinds: Matrix  # (n, K) probabilities


def means_of(outcomes: Matrix) -> tuple[Matrix, Matrix]:
    """Each backend's mean, corrected for which prompts it was asked, and each prompt's common
    deviation. A backend with few outcomes leans towards what the others got there."""
    seen = ~np.isnan(outcomes)
    number = seen.sum(0)
    filled = np.where(seen, outcomes, 0.0)
    mean = filled.sum(0) / np.maximum(number, 1)
    common = np.zeros(len(outcomes))
    partial = bool((~seen).any())
    for _ in range(10 if partial else 1):
        residual = np.where(seen, outcomes - mean, 0.0)
        common = residual.sum(1) / (seen.sum(1) + (3.0 if partial else 0.0))
        if partial:
            beyond = np.where(seen, outcomes - common[:, None], 0.0).sum(0)
            grand = beyond.sum() / max(number.sum(), 1)
            mean = (beyond + 2.0 * grand) / (number + 2.0)
    return mean, common


def _members(
    prompts: Prompts,
    solvers: Solvers,
    sortings: Sequence[Sorting],
    sharpness: Sequence[Sharpness],
    outcomes: Matrix,
    train: Index,
    test: Index,
) -> tuple[Member, Matrix]:
    solver = solvers(train)
    mean, deviations = _deviations(prompts, solver, outcomes, train)
    held = prompts.directions[test]
    guesses = [held @ solved for solved in solver.solve(deviations, *_RIDGES)]
    kinds: list[Matrix] = []
    for sorting, sharp in zip(sortings, sharpness, strict=True):
        onehot = onehot_of(sorting, train)
        scores = np.tensordot(sharp, _scores(prompts, solver, sorting, onehot, train, test), axes=1)
        odds = _odds(scores, onehot)
        kinds.append(odds)
        if sorting.tabled:
            guesses.extend(odds @ _table(onehot, deviations, mass) for mass in _MASSES)
    every = np.concatenate(kinds, axis=1) if kinds else np.zeros((len(test), 0))
    return Member(test, np.array(guesses), every), mean


def _scores(
    prompts: Prompts,
    solver: Solver,
    sorting: Sorting,
    onehot: Matrix,
    train: Index,
    test: Index,
) -> Matrix:
    """How far each prompt of ``test`` is of each kind, from those of ``train``: (1, n, K) by
    regression, (2, n, K) by words and by a regression that gives rare kinds their due."""
    if sorting.by_words:
        words, bias = likelihoods(prompts, onehot, train)
        by_words = np.asarray(prompts.design[test] @ words + bias)
        return np.array([by_words, prompts.directions[test] @ balanced(solver, onehot)])
    (solved,) = solver.solve(onehot - onehot.mean(0), KIND_RIDGE)
    return np.asarray(prompts.directions[test] @ solved + onehot.mean(0))[None]


def _odds(scores: Matrix, onehot: Matrix) -> Matrix:
    scores[:, onehot.sum(0) < 1] = _NEVER  # a kind that was left out cannot be named
    odds = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(odds / odds.sum(1, keepdims=True))


def _table(onehot: Matrix, deviations: Matrix, mass: float) -> Matrix:
    return np.asarray((onehot.T @ deviations) / (onehot.sum(0)[:, None] + mass))


def _mixed(
    sortings: Sequence[Sorting], tables: Sequence[Sequence[Matrix]], weights: Matrix
) -> list[Matrix]:
    """Each system's tables by their weights in the mix; nothing for one that is not in it."""
    left = iter(weights)
    return [
        np.tensordot([next(left) for _ in mine], np.array(mine), axes=1)
        if sorting.tabled
        else np.zeros_like(mine[0])
        for sorting, mine in zip(sortings, tables, strict=True)
    ]


def _deviations(
    prompts: Prompts, solver: Solver, outcomes: Matrix, rows: Index
) -> tuple[Matrix, Matrix]:
    """Backends' means and what every cell deviates from them by; cells never seen are filled
    with what the words predict, starting from the prompt's common deviation."""
    part = outcomes[rows]
    mean, common = means_of(part)
    seen = ~np.isnan(part)
    deviations = np.where(seen, part - mean, common[:, None])
    if not seen.all():
        directions = prompts.directions[rows]
        for _ in range(6):
            guess = directions @ solver.solve(deviations, _RIDGES[1])[0]
            deviations = np.where(seen, part - mean, guess)
    return mean, deviations


def _sharpness(
    prompts: Prompts, solvers: Solvers, sorting: Sorting, folds: Sequence[Index], n: int
) -> Sharpness:
    """How sharply scores decide: what has the best likelihood on prompts left out."""
    choices = _SHARPNESS_OF_WORDS if sorting.by_words else _SHARPNESS
    losses = np.zeros(len(choices))
    for test in folds[:3]:
        train = np.setdiff1d(np.arange(n), test)
        onehot = onehot_of(sorting, train)
        known = sorting.kind[test] >= 0
        scores = _scores(prompts, solvers(train), sorting, onehot, train, test[known])
        kind = sorting.kind[test[known]]
        for i, sharp in enumerate(choices):
            odds = _odds(np.tensordot(sharp, scores, axes=1), onehot)
            losses[i] -= np.log(odds[np.arange(len(kind)), kind] + 1e-6).sum()
    return choices[int(losses.argmin())]


def _weights(evidence: Evidence, effective: float) -> tuple[Matrix, Matrix]:
    """Non-negative weights of the mix for what is particular and what is common, by least
    squares on the cells that were seen, leaning to an even mix with the strength of
    ``effective`` extra prompts."""
    seen = ~np.isnan(evidence.truth)
    count = len(evidence.guesses)
    shared = np.broadcast_to(evidence.common[..., None], evidence.particular.shape)
    members = np.concatenate([evidence.particular[:, seen], shared[:, seen]])
    gram = members @ members.T
    lean = np.diag(np.diag(gram)) * effective + 1e-9 * np.eye(len(gram))
    even = np.full(len(gram), 1.0 / count)
    root = np.linalg.cholesky(gram + lean)
    right = np.linalg.solve(root, members @ evidence.truth[seen] + lean @ even)
    found, _ = nnls(root.T, right)
    found /= max(found.sum() / _MOST_WEIGHT, 1.0)
    return found[:count], found[count:]


def _variance(values: Matrix) -> float:
    """How much single values scatter. A few that are all alike do not show that they never differ,
    so the prior weighs as much as some values."""
    scatter = float(values.var()) if values.size else 0.0
    return (values.size * scatter + _DOUBT * _PRIOR_VARIANCE) / (values.size + _DOUBT)


def fit_head(
    prompts: Prompts,
    solvers: Solvers,
    sortings: Sequence[Sorting],
    sharpness: Sequence[Sharpness],
    outcomes: Matrix,
    alike: Index,
    seed: int = 0,
) -> HeadFit:
    """One target's mix and gates, from outcomes (N, M) with nan where nothing was seen. Prompts
    of the same number in ``alike`` are left out together."""
    rng = np.random.default_rng(seed)
    n, _ = outcomes.shape
    some = np.flatnonzero((~np.isnan(outcomes)).any(1))
    if len(some) < _FEWEST:
        members = len(_RIDGES) + sum(sorting.tabled for sorting in sortings) * len(_MASSES)
        closed = Gate(f32(np.array([0.0, 1.0])), f32(np.zeros(2)))
        return HeadFit(np.zeros(members), np.zeros(members), closed, closed, None, None)
    mine = [
        _members(prompts, solvers, sortings, sharpness, outcomes, np.setdiff1d(some, rows), rows)
        for _ in range(2 if len(some) < 1500 else 1)
        for rows in (some[fold] for fold in folds_of(alike[some], 5, rng))
    ]
    theirs = []
    families = families_of(prompts, sortings, seed)
    if families.size >= 2:
        for _ in range(2 if families.size > 8 and n < 3000 else 1):
            for rows in group_folds(families, min(8, families.size), rng):
                rows = np.intersect1d(rows, some)
                train = np.setdiff1d(some, rows)
                if len(rows) and len(train) >= 20:
                    theirs.append(
                        _members(prompts, solvers, sortings, sharpness, outcomes, train, rows)
                    )
    rules = _rules(families)
    familiar = _evidence(mine, outcomes)
    unfamiliar = _evidence(theirs, outcomes) if theirs else None
    lean = 20.0 / max(len(some), 1)
    weights, common_weights = _weights(familiar, lean)
    groups = families.kind
    mix = weights, common_weights
    gate = _gate(unfamiliar, mix, groups, True, rules)
    common_gate = _gate(unfamiliar, mix, groups, False, rules)
    return HeadFit(weights, common_weights, gate, common_gate, familiar, unfamiliar)


class Rules(NamedTuple):
    """How much is asked of evidence before the default is left."""

    novel_share: float  # prompts expected to be of a kind never seen
    caution: float  # standard errors by which an unseen kind's gain must clear zero
    fewest: int  # kinds left out below which they say nothing
    worth: float  # of what left-out kinds showed
    known: tuple[float, float]  # chances of being of a known kind between which trust grows


def _rules(families: Sorting) -> Rules:
    """Few labelled tasks are judged most sternly: the next may be like none of them. Clusters
    left out of one kind of traffic are less strange than a new task, so they count half."""
    if not families.names:
        return Rules(0.25, 1.0, 3, 0.5, _UNTESTED)
    if families.size < _MANY_KINDS:
        return Rules(0.5, 2.0, _MANY_KINDS, 1.0, _UNTESTED)
    return Rules(0.35, 1.0, _MANY_KINDS, 1.0, _TESTED)


class Evidence(NamedTuple):
    """Guesses on prompts left out, beside what came."""

    rows: Index
    guesses: Matrix  # (members, n, M) as they came
    common: Matrix  # (members, n)
    particular: Matrix  # (members, n, M)
    truth: Matrix  # (n, M) deviations from the mean without them, nan where nothing was seen
    kinds: Matrix  # (n, K) probabilities


class HeadFit(NamedTuple):
    """What fit_head found: the mix's weights and gates, and the evidence for them."""

    weights: Matrix
    common_weights: Matrix
    gate: Gate
    common_gate: Gate
    familiar: Evidence | None  # None: too few prompts to leave any out
    unfamiliar: Evidence | None


def _evidence(found: Sequence[tuple[Member, Matrix]], outcomes: Matrix) -> Evidence:
    rows = np.concatenate([member.rows for member, _ in found])
    guesses = np.concatenate([member.guesses for member, _ in found], axis=1)
    truth = np.concatenate([outcomes[member.rows] - mean for member, mean in found])
    common = guesses.mean(-1)
    return Evidence(
        rows,
        guesses,
        common,
        guesses - common[..., None],
        truth,
        np.concatenate([member.kinds for member, _ in found]),
    )


def _gate(
    unfamiliar: Evidence | None,
    mix: tuple[Matrix, Matrix],
    groups: Index,
    particular: bool,
    rules: Rules,
) -> Gate:
    """Trust by the chance that a prompt is of a known kind: all of it where that is likely, and
    else what the slope of what came on what was guessed allows, on kinds left out."""
    slope = 0.0
    if unfamiliar is not None:
        slope = rules.worth * _slope(unfamiliar, mix, groups, particular, rules)
    # a default that is left by half on weak evidence is left for nothing
    new = np.clip((slope - _DOUBTFUL) / (_SURE - _DOUBTFUL), 0.0, 1.0)
    return Gate(f32(np.array(rules.known)), f32(np.array([new, 1.0])))


def _slope(
    evidence: Evidence,
    mix: tuple[Matrix, Matrix],
    groups: Index,
    particular: bool,
    rules: Rules,
) -> float:
    """Less some standard errors between kinds; nothing where there are too few kinds to say."""
    own = np.tensordot(mix[0], evidence.particular, axes=1)
    shared = np.tensordot(mix[1], evidence.common, axes=1)[:, None]
    guess, rest = (own, shared) if particular else (shared, own)
    seen = ~np.isnan(evidence.truth)
    left = np.where(seen, evidence.truth - rest, 0.0)
    top, bottom = (guess * left).sum(1), (guess**2 * seen).sum(1)
    slope = top.sum() / (bottom.sum() + 1e-12)
    names, inverse = np.unique(groups[evidence.rows], return_inverse=True)
    if len(names) < rules.fewest:
        return 0.0
    off = np.bincount(inverse, top - slope * bottom, len(names))
    spare = len(names) / max(len(names) - 1, 1)
    error = float(np.sqrt((off**2).sum() * spare) / (bottom.sum() + 1e-12))
    return float(slope - rules.caution * error)


def fit(
    texts: Sequence[TextFeatures],
    tasks: Sequence[str | None],
    targets: Sequence[Matrix],
    alike: Index,
    seed: int = 0,
) -> tuple[Kinds, list[Head], list[HeadFit]]:
    """The map and one head per target; targets are (N, M) with nan where nothing was seen.

    Prompts of the same number in ``alike`` share a passage: what is chosen on prompts left out is
    not chosen on any whose twin was learnt from.
    """
    prompts = prompts_of(texts, seed)
    sortings = sortings_of(prompts, tasks, seed)
    rng = np.random.default_rng(seed)
    folds = folds_of(alike, 5, rng)
    solvers = Solvers(prompts.directions)
    sharpness = [_sharpness(prompts, solvers, sorting, folds, len(texts)) for sorting in sortings]
    everything = np.arange(len(texts))

    blocks: list[Matrix] = []  # coefficients on the design
    biases: list[Matrix] = []
    systems: list[System] = []
    place = 0
    solver = solvers(everything)
    onehots = [onehot_of(sorting, everything) for sorting in sortings]
    for sorting, sharp, onehot in zip(sortings, sharpness, onehots, strict=True):
        if sorting.by_words:
            words, bias = likelihoods(prompts, onehot, everything)
            words = sharp[0] * words + sharp[1] * (prompts.loadings @ balanced(solver, onehot))
            bias, decides = sharp[0] * bias, 1.0
        else:
            (found_here,) = solver.solve(onehot - onehot.mean(0), KIND_RIDGE)
            words, bias, decides = prompts.loadings @ found_here, onehot.mean(0), sharp[0]
        blocks.append(words)
        biases.append(bias)
        systems.append(
            System(place, place + sorting.size, decides, sorting.names, not sorting.by_words)
        )
        place += sorting.size

    heads: list[Head] = []
    fits: list[HeadFit] = []
    for target in targets:
        some = np.flatnonzero((~np.isnan(target)).any(1))
        found = fit_head(prompts, solvers, sortings, sharpness, target, alike, seed)
        own = solvers(some)
        mean, deviations = _deviations(prompts, own, target, some)
        seen = ~np.isnan(target[some])
        solved = own.solve(deviations, *_RIDGES)
        onehots_here = [onehot[some] for onehot in onehots]
        tables = [[_table(onehot, deviations, mass) for mass in _MASSES] for onehot in onehots_here]
        both = found.weights, found.common_weights
        coefficients = [
            np.tensordot(weights[: len(_RIDGES)], np.array(solved), axes=1) for weights in both
        ]
        nothing = np.zeros((0, target.shape[1]))
        kinds = [
            np.concatenate([nothing, *_mixed(sortings, tables, weights[len(_RIDGES) :])])
            for weights in both
        ]
        particular = coefficients[0] - coefficients[0].mean(1, keepdims=True)
        common = coefficients[1].mean(1)
        _, scale, right = np.linalg.svd(prompts.directions[some] @ particular, full_matrices=False)
        kept = int(min(_KEPT_AXES, (scale > 1e-6 * (scale.max(initial=0.0) + 1e-12)).sum()))
        axes = right[:kept]  # (A, M), orthonormal rows
        blocks.append(prompts.loadings @ np.column_stack([particular @ axes.T, common]))
        biases.append(np.zeros(kept + 1))
        variance = np.array(
            [_variance(target[some][seen[:, m], m]) for m in range(target.shape[1])]
        )
        number = seen.sum(0)
        masses = np.concatenate([nothing, *(onehot.T @ seen for onehot in onehots_here)])
        strongest = np.concatenate([nothing, *(table[-1] for table in tables)])
        sizes = masses.sum(0) + 1e-9
        heads.append(
            Head(
                mean=f32(mean),
                mean_error=f32(np.sqrt((variance + 1e-4) / np.maximum(number, 1))),
                axes_start=place,
                axes_stop=place + kept + 1,
                axes=f32(np.vstack([axes, np.zeros((1, axes.shape[1]))])),
                common_axes=f32(np.append(np.zeros(kept), 1.0)),
                kinds=f32(kinds[0] - kinds[0].mean(1, keepdims=True)),
                common_kinds=f32(kinds[1].mean(1)),
                kind_error=f32(
                    np.sqrt(variance / (masses + _MASSES[-1])) / np.sqrt(max(len(sortings), 1))
                ),
                spread=f32(np.sqrt((strongest**2 * masses).sum(0) / sizes)),
                gate=found.gate,
                common_gate=found.common_gate,
            )
        )
        fits.append(found)
        place += kept + 1
    usual = _rules(families_of(prompts, sortings, seed)).novel_share
    telling = [sorting for sorting in sortings if not sorting.by_words]
    judge = judge_of(prompts, telling, usual, seed)
    kinds_map = _map(
        prompts, np.column_stack(blocks), np.concatenate(biases), tuple(systems), judge
    )
    return kinds_map, heads, fits


def _map(
    prompts: Prompts,
    coefficients: Matrix,  # (R + D, C)
    bias: Matrix,
    systems: tuple[System, ...],
    judge: Judge,
) -> Kinds:
    words = len(prompts.idf) - 1
    scaled = coefficients[:words] * prompts.idf[1:, None]
    return Kinds(
        row_of=prompts.row_of,
        idf=f32(prompts.idf),
        words=f32(np.vstack([np.zeros((1, scaled.shape[1])), scaled])),
        dense_mean=f32(prompts.dense_mean),
        dense_scale=f32(prompts.dense_scale),
        dense=f32(coefficients[words:] * np.sqrt(DENSE_WEIGHT / len(DENSE))),
        bias=f32(bias),
        systems=systems,
        judge=judge,
    )
