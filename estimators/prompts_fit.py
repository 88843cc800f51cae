"""Prompts as one design to learn from: their words and counts, directions, kinds and folds.

Off the request path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray

from estimators.text import BUCKETS, DENSE, TextFeatures

Matrix = NDArray[np.float64]
Index = NDArray[np.int64]

DENSE_WEIGHT = 0.25  # what all counts together weigh against all words together
KIND_RIDGE = 1.0
_BALANCED_RIDGE = 0.1
_AXES = 400  # directions kept of the words when there are many prompts
_EXACT = 600  # prompts up to which all directions are kept
_DENSE = 4000  # prompts up to which all pairs of them are held at once
_MOST_KINDS = 64
_UNSEEN_WORD = 0.02  # prompts' worth of each word that every kind is taken to have shown


class Prompts(NamedTuple):
    """All prompts in one design: unit-length words and scaled counts, and its directions."""

    design: sparse.csr_matrix  # (N, R + D)
    row_of: NDArray[np.int32]
    idf: Matrix
    dense_mean: Matrix
    dense_scale: Matrix
    counts: Matrix  # (N, D) the dense features as they are
    directions: Matrix  # (N, d): design = directions @ loadings.T
    loadings: Matrix  # (R + D, d), orthonormal


class Sorting(NamedTuple):
    """Every prompt's kind under one system, -1 for none."""

    kind: Index
    names: tuple[str, ...]
    size: int  # how many kinds
    by_words: bool = False  # told by how likely its words are too, instead of by regression alone
    tabled: bool = True  # whether the means of its kinds join the mix


def prompts_of(texts: Sequence[TextFeatures], seed: int = 0) -> Prompts:
    """The design of these prompts."""
    n = len(texts)
    starts = np.cumsum([0] + [len(text.buckets) for text in texts])
    buckets = np.concatenate([text.buckets for text in texts]) if n else np.zeros(0, np.uint16)
    seen = np.bincount(buckets, minlength=BUCKETS)
    kept = np.flatnonzero(seen >= 2)
    row_of = np.zeros(BUCKETS, np.int32)
    row_of[kept] = np.arange(1, len(kept) + 1)
    idf = np.log((1 + n) / (1 + np.concatenate(([1], seen[kept])))) + 1
    rows = row_of[buckets]
    lengths = np.sqrt(np.add.reduceat(np.append(idf[rows] ** 2, 0.0), starts[:-1]))
    lengths = np.where(np.diff(starts) > 0, lengths, 1.0) + 1e-9
    values = idf[rows] / np.repeat(lengths, np.diff(starts))
    words = sparse.csr_matrix((values, rows, starts), shape=(n, len(kept) + 1))
    words = words[:, 1:]  # words seen once weigh in the length only
    dense = np.array([text.dense for text in texts], dtype=float).reshape(n, len(DENSE))
    mean, deviation = dense.mean(0), dense.std(0)
    scale = np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0.0)
    counts = np.clip((dense - mean) * scale, -4, 4) * np.sqrt(DENSE_WEIGHT / len(DENSE))
    design = sparse.hstack([words, sparse.csr_matrix(counts)]).tocsr()
    directions, loadings = directions_of(design, seed)
    return Prompts(design, row_of, idf, mean, scale, dense, directions, loadings)


def directions_of(design: sparse.csr_matrix, seed: int) -> tuple[Matrix, Matrix]:
    n = design.shape[0]
    if n <= _EXACT:
        values, vectors = np.linalg.eigh((design @ design.T).toarray())
        kept = values > 1e-6 * max(values[-1], 1e-9)
        scale = np.sqrt(values[kept])
        directions = vectors[:, kept] * scale
        return directions, design.T @ (vectors[:, kept] / scale)
    # randomised range finder with power iterations, on the small side
    rng = np.random.default_rng(seed)
    if n <= _DENSE:
        gram = (design @ design.T).toarray()
        probe = gram @ rng.standard_normal((n, _AXES + 20))
        for _ in range(2):
            probe, _ = np.linalg.qr(probe)
            probe = gram @ probe
        probe, _ = np.linalg.qr(probe)
        values, vectors = np.linalg.eigh(probe.T @ gram @ probe)
        across = design.T @ (probe @ vectors[:, -_AXES:])
    else:
        probe = design @ rng.standard_normal((design.shape[1], _AXES + 20))
        for _ in range(2):
            probe, _ = np.linalg.qr(probe)
            probe = design @ (design.T @ probe)
        probe, _ = np.linalg.qr(probe)
        across = design.T @ probe
        values, vectors = np.linalg.eigh(across.T @ across)
        across = across @ vectors[:, -_AXES:]
    kept = values[-_AXES:] > 1e-8 * max(values[-1], 1e-9)
    loadings = across[:, kept] / np.sqrt(values[-_AXES:][kept])
    return design @ loadings, loadings


def sortings_of(prompts: Prompts, tasks: Sequence[str | None], seed: int = 0) -> list[Sorting]:
    """The systems of kinds: labelled tasks where there are at least two, clusters, and the same
    tasks told by their words."""
    found = []
    labels = [task for task in tasks if task]
    names, counts = np.unique(np.array(labels, dtype=object).astype(str), return_counts=True)
    order = np.argsort(-counts)[:_MOST_KINDS]
    kept = [str(names[i]) for i in order if counts[i] >= 5]
    if len(kept) >= 2:
        number = {name: i for i, name in enumerate(kept)}
        kind = np.array([number.get(task or "", -1) for task in tasks], dtype=np.int64)
        found.append(Sorting(kind, tuple(kept), len(kept)))
    n = len(tasks)
    clusters = int(np.clip(n // 40, 0, 32))
    if clusters >= 2:
        found.append(_clusters(prompts, clusters, seed))
    if found and found[0].names:  # better told so, but the plain scores tell a strange prompt
        found.append(found[0]._replace(by_words=True))
        found[0] = found[0]._replace(tabled=False)
    return found


class Solver:
    """Ridge regressions on some of the prompts, for any strength at little cost."""

    def __init__(self, directions: Matrix, rows: Index) -> None:
        self._directions, self._rows = directions, rows
        part = directions[rows]
        values, self._basis = np.linalg.eigh(part.T @ part)
        self._values = np.maximum(values, 0.0)

    def solve(self, targets: Matrix, *strengths: float) -> list[Matrix]:
        """Coefficients on the directions, (d, T), for each strength."""
        turned = self._basis.T @ (self._directions[self._rows].T @ targets)
        return [
            np.asarray(self._basis @ (turned / (self._values + strength)[:, None]))
            for strength in strengths
        ]


class Solvers:
    """Solvers by the prompts they are taught on, made once: all targets share the folds."""

    def __init__(self, directions: Matrix) -> None:
        self._directions = directions
        self._made: dict[bytes, Solver] = {}

    def __call__(self, rows: Index) -> Solver:
        key = rows.tobytes()
        if key not in self._made:
            self._made[key] = Solver(self._directions, rows)
        return self._made[key]


def onehot_of(sorting: Sorting, rows: Index) -> Matrix:
    onehot = np.zeros((len(rows), sorting.size))
    kind = sorting.kind[rows]
    known = np.flatnonzero(kind >= 0)
    onehot[known, kind[known]] = 1.0
    return onehot


def likelihoods(prompts: Prompts, onehot: Matrix, rows: Index) -> tuple[Matrix, Matrix]:
    """Logarithms of how likely words are in each kind, (R + D, K), and of each kind, (K,): naive
    Bayes, which tells many kinds apart by few prompts better than a regression does.

    Words are weighed as in the design, and centred over kinds; a kind without prompts is not
    left out here.
    """
    number = len(prompts.idf) - 1
    shown = np.asarray(prompts.design[rows][:, :number].T @ onehot) + _UNSEEN_WORD
    logs = np.log(shown / shown.sum(0))
    coefficients = np.zeros((prompts.design.shape[1], onehot.shape[1]))
    coefficients[:number] = logs - logs.mean(1, keepdims=True)
    return coefficients, np.log((onehot.sum(0) + 0.5) / (len(rows) + 0.5 * onehot.shape[1]))


def balanced(solver: Solver, onehot: Matrix) -> Matrix:
    """Coefficients on the directions, (d, K), of a regression of kinds in which a rare kind's
    scores reach as far as a common one's."""
    share = onehot.mean(0)
    scale = np.where(share > 0, 1.0 / np.sqrt(np.maximum(share, 1e-12)), 0.0)
    return solver.solve((onehot - share) * scale, _BALANCED_RIDGE)[0]


def families_of(
    prompts: Prompts, sortings: Sequence[Sorting], seed: int, fewest: int = 2
) -> Sorting:
    """What to leave out whole: labelled tasks if there are so many, else a few large clusters."""
    if sortings and sortings[0].names and sortings[0].size >= fewest:
        return sortings[0]
    n = len(prompts.counts)
    if n < 80:
        return Sorting(np.zeros(n, np.int64), (), 1)
    return _clusters(prompts, 8, seed)


def _clusters(prompts: Prompts, number: int, seed: int) -> Sorting:
    # scikit-learn is heavy and only fitting needs it
    from sklearn.cluster import KMeans

    order = np.argsort(-(prompts.directions**2).sum(0))[:64]
    top = prompts.directions[:, order]
    top = top / (np.linalg.norm(top, axis=1, keepdims=True) + 1e-9)
    found = KMeans(number, n_init=2, random_state=seed).fit(top)
    return Sorting(found.labels_.astype(np.int64), (), number)


def random_folds(n: int, folds: int, rng: np.random.Generator) -> list[Index]:
    return [np.sort(part) for part in np.array_split(rng.permutation(n), folds)]


def folds_of(alike: Index, folds: int, rng: np.random.Generator) -> list[Index]:
    """Folds of about equal size in which prompts of the same number stay together, unless they
    are more than fit into a fold."""
    names, number, counts = np.unique(alike, return_inverse=True, return_counts=True)
    if len(names) == len(alike):
        return random_folds(len(alike), folds, rng)
    number = np.where(
        counts[number] > len(alike) / folds, len(names) + np.arange(len(alike)), number
    )
    names, number = np.unique(number, return_inverse=True)
    return group_folds(Sorting(number, (), len(names)), folds, rng)


def group_folds(sorting: Sorting, folds: int, rng: np.random.Generator) -> list[Index]:
    """Whole kinds left out, in folds of about equal size."""
    sizes = np.bincount(sorting.kind[sorting.kind >= 0], minlength=sorting.size)
    fold_of = np.zeros(sorting.size, np.int64)
    load = np.zeros(folds)
    order = rng.permutation(sorting.size)
    for kind in order[np.argsort(-sizes[order], kind="stable")]:
        fold_of[kind] = int(load.argmin())
        load[fold_of[kind]] += sizes[kind]
    return [
        np.flatnonzero((sorting.kind >= 0) & (fold_of[sorting.kind] == fold))
        for fold in range(folds)
        if load[fold] > 0
    ]


def f32(values: Matrix) -> NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32)
