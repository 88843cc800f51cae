"""Learn which kind of prompt suits which backend, from outcomes. Off the request path.

Per-prompt quality is hardly predictable from a prompt, the kind of task nearly is; so everything
here shrinks: ridge regression on words, tables of kinds towards the backend's mean, and a mix of
these whose weights are chosen on prompts that no part of it had seen. How much of the result is
used where a prompt looks unfamiliar is decided on whole kinds left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from scipy.optimize import nnls

from estimators.kinds import Gate, Head, Judge, Kinds, System, signs_of
from estimators.text import BUCKETS, DENSE, TextFeatures

Matrix = NDArray[np.float64]
Index = NDArray[np.int64]

_DENSE_WEIGHT = 0.25  # what all counts together weigh against all words together
_AXES = 400  # directions kept of the words when there are many prompts
_EXACT = 600  # prompts up to which all directions are kept
_RIDGES = (3.0, 10.0, 40.0)
_KIND_RIDGE = 1.0
_MASSES = (5.0, 30.0)  # prompts' worth of the backend's mean in a kind's table
_SHARPNESS = (4.0, 8.0, 16.0, 32.0)
_MOST_KINDS = 64
_FEWEST = 20  # prompts below which only means are used
_MANY_KINDS = 15  # labelled tasks; fewer left out say little about the next one
_DOUBTFUL, _SURE = 0.25, 0.8  # slopes of what came on what was guessed
_KEPT_AXES = 12


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


class Member(NamedTuple):
    """The mix's predictors on prompts that were left out of their training."""

    rows: Index
    guesses: Matrix  # (members, n, M)
    signs: Matrix  # (n, S)
    kinds: Matrix  # (n, K) probabilities


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
    counts = np.clip((dense - mean) * scale, -4, 4) * np.sqrt(_DENSE_WEIGHT / len(DENSE))
    design = sparse.hstack([words, sparse.csr_matrix(counts)]).tocsr()
    directions, loadings = _directions(design, seed)
    return Prompts(design, row_of, idf, mean, scale, dense, directions, loadings)


def _directions(design: sparse.csr_matrix, seed: int) -> tuple[Matrix, Matrix]:
    n = design.shape[0]
    if n <= _EXACT:
        values, vectors = np.linalg.eigh((design @ design.T).toarray())
        kept = values > 1e-6 * max(values[-1], 1e-9)
        scale = np.sqrt(values[kept])
        directions = vectors[:, kept] * scale
        return directions, design.T @ (vectors[:, kept] / scale)
    # randomised range finder with two power iterations
    rng = np.random.default_rng(seed)
    probe = design @ rng.standard_normal((design.shape[1], _AXES + 20))
    for _ in range(2):
        probe, _ = np.linalg.qr(probe)
        probe = design @ (design.T @ probe)
    probe, _ = np.linalg.qr(probe)
    _, _, right = np.linalg.svd((design.T @ probe).T, full_matrices=False)
    loadings = right[:_AXES].T
    return design @ loadings, loadings


def sortings_of(prompts: Prompts, tasks: Sequence[str | None], seed: int = 0) -> list[Sorting]:
    """The systems of kinds: labelled tasks where there are at least two, and clusters."""
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
    sharpness: Sequence[float],
    outcomes: Matrix,
    train: Index,
    test: Index,
) -> tuple[Member, Matrix]:
    solver = solvers(train)
    mean, deviations = _deviations(prompts, solver, outcomes, train)
    held = prompts.directions[test]
    guesses = [held @ solved for solved in solver.solve(deviations, *_RIDGES)]
    tops: list[tuple[Matrix, Matrix]] = []
    kinds: list[Matrix] = []
    for sorting, sharp in zip(sortings, sharpness, strict=True):
        onehot = _onehot(sorting, train)
        scores = held @ solver.solve(onehot - onehot.mean(0), _KIND_RIDGE)[0] + onehot.mean(0)
        scores[:, onehot.sum(0) < 1] = -1.0  # a kind that was left out cannot be named
        ranked = np.sort(scores, axis=1)
        tops.append((ranked[:, -1], ranked[:, -2]))
        odds = np.exp((scores - scores.max(1, keepdims=True)) * sharp)
        odds /= odds.sum(1, keepdims=True)
        kinds.append(odds)
        guesses.extend(odds @ _table(onehot, deviations, mass) for mass in _MASSES)
    every = np.concatenate(kinds, axis=1) if kinds else np.zeros((len(test), 0))
    return Member(test, np.array(guesses), _signs(prompts, tops, train, test), every), mean


def _signs(
    prompts: Prompts, tops: Sequence[tuple[Matrix, Matrix]], train: Index, test: Index
) -> Matrix:
    """As the serving side would see these prompts, had it been taught on ``train`` only."""
    words = prompts.design[:, : len(prompts.idf) - 1]
    taught = np.bincount(words[train].indices, minlength=words.shape[1]) >= 2
    known = np.asarray(words[test].power(2) @ taught.astype(float)).ravel()
    mean, deviation = prompts.counts[train].mean(0), prompts.counts[train].std(0)
    scale = np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0.0)
    squares = (np.clip((prompts.counts[test] - mean) * scale, -4, 4) ** 2).sum(1)
    return np.array(
        [
            signs_of([(best[i], second[i]) for best, second in tops], known[i], squares[i])
            for i in range(len(test))
        ]
    ).reshape(len(test), 2 * len(tops) + 2)


def _judge(seen: Sequence[Matrix], strange: Sequence[Matrix], systems: int) -> Judge:
    """From the signs of prompts of known kinds and of kinds left out whole."""
    signs = 2 * systems + 2
    if not seen or not strange:
        return Judge(_f32(np.zeros(signs)), _f32(np.zeros(signs)), 0.0)
    # scikit-learn is heavy and only fitting needs it
    from sklearn.linear_model import LogisticRegression

    every = np.concatenate([*seen, *strange])
    known = np.repeat([1, 0], [sum(map(len, seen)), sum(map(len, strange))])
    mean, scale = every.mean(0), every.std(0) + 1e-6
    found = LogisticRegression(class_weight="balanced").fit((every - mean) / scale, known)
    return Judge(_f32(mean), _f32(found.coef_[0] / scale), float(found.intercept_[0]))


def _onehot(sorting: Sorting, rows: Index) -> Matrix:
    onehot = np.zeros((len(rows), sorting.size))
    kind = sorting.kind[rows]
    known = np.flatnonzero(kind >= 0)
    onehot[known, kind[known]] = 1.0
    return onehot


def _table(onehot: Matrix, deviations: Matrix, mass: float) -> Matrix:
    return np.asarray((onehot.T @ deviations) / (onehot.sum(0)[:, None] + mass))


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
) -> float:
    """How sharply scores decide: the value with the best likelihood on prompts left out."""
    losses = np.zeros(len(_SHARPNESS))
    for test in folds[:3]:
        train = np.setdiff1d(np.arange(n), test)
        onehot = _onehot(sorting, train)
        (solved,) = solvers(train).solve(onehot - onehot.mean(0), _KIND_RIDGE)
        scores = prompts.directions[test] @ solved
        scores += onehot.mean(0)
        kind = sorting.kind[test]
        known = kind >= 0
        for i, sharp in enumerate(_SHARPNESS):
            odds = np.exp((scores - scores.max(1, keepdims=True)) * sharp)
            odds /= odds.sum(1, keepdims=True)
            losses[i] -= np.log(odds[known, kind[known]] + 1e-6).sum()
    return _SHARPNESS[int(losses.argmin())]


def _families(prompts: Prompts, sortings: Sequence[Sorting], seed: int) -> Sorting:
    """What to leave out whole: labelled tasks, else a few large clusters."""
    if sortings and sortings[0].names:
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


def _random_folds(n: int, folds: int, rng: np.random.Generator) -> list[Index]:
    return [np.sort(part) for part in np.array_split(rng.permutation(n), folds)]


def _group_folds(sorting: Sorting, folds: int, rng: np.random.Generator) -> list[Index]:
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
    return found[:count], found[count:]


def fit_head(
    prompts: Prompts,
    solvers: Solvers,
    sortings: Sequence[Sorting],
    sharpness: Sequence[float],
    outcomes: Matrix,
    seed: int = 0,
    judge: Judge | None = None,
) -> HeadFit:
    """One target's mix and gates, from outcomes (N, M) with nan where nothing was seen.

    The judge of familiarity is shared by all targets: without one, it is learnt here.
    """
    rng = np.random.default_rng(seed)
    n, _ = outcomes.shape
    some = np.flatnonzero((~np.isnan(outcomes)).any(1))
    if len(some) < _FEWEST:
        members = len(_RIDGES) + len(sortings) * len(_MASSES)
        closed = Gate(_f32(np.array([0.0, 1.0])), _f32(np.zeros(2)))
        return HeadFit(np.zeros(members), np.zeros(members), closed, closed, judge, None, None)
    mine = [
        _members(prompts, solvers, sortings, sharpness, outcomes, np.setdiff1d(some, rows), rows)
        for _ in range(2 if len(some) < 1500 else 1)
        for rows in (some[fold] for fold in _random_folds(len(some), 5, rng))
    ]
    theirs = []
    families = _families(prompts, sortings, seed)
    if families.size >= 2:
        for _ in range(2 if families.size > 8 and n < 3000 else 1):
            for rows in _group_folds(families, min(8, families.size), rng):
                rows = np.intersect1d(rows, some)
                train = np.setdiff1d(some, rows)
                if len(rows) and len(train) >= 20:
                    theirs.append(
                        _members(prompts, solvers, sortings, sharpness, outcomes, train, rows)
                    )
    if judge is None:
        seen, strange = ([member.signs for member, _ in found] for found in (mine, theirs))
        judge = _judge(seen, strange, len(sortings))
    familiar = _evidence(mine, outcomes, judge)
    unfamiliar = _evidence(theirs, outcomes, judge) if theirs else None
    lean = 20.0 / max(len(some), 1)
    weights, common_weights = _weights(familiar, lean)
    groups = families.kind
    mix = weights, common_weights
    rules = _rules(families)
    gate = _gate(familiar, unfamiliar, mix, groups, True, rules)
    common_gate = _gate(familiar, unfamiliar, mix, groups, False, rules)
    return HeadFit(weights, common_weights, gate, common_gate, judge, familiar, unfamiliar)


class Rules(NamedTuple):
    """How much is asked of evidence before the default is left."""

    novel_share: float  # prompts expected to be of a kind never seen
    caution: float  # standard errors by which an unseen kind's gain must clear zero
    fewest: int  # kinds left out below which they say nothing
    worth: float  # of what left-out kinds showed


def _rules(families: Sorting) -> Rules:
    """Few labelled tasks are judged most sternly: the next may be like none of them. Clusters
    left out of one kind of traffic are less strange than a new task, so they count half."""
    if not families.names:
        return Rules(0.25, 1.0, 3, 0.5)
    if families.size < _MANY_KINDS:
        return Rules(0.5, 2.0, _MANY_KINDS, 1.0)
    return Rules(0.35, 1.0, _MANY_KINDS, 1.0)


class Evidence(NamedTuple):
    """Guesses on prompts left out, beside what came."""

    rows: Index
    guesses: Matrix  # (members, n, M) as they came
    common: Matrix  # (members, n)
    particular: Matrix  # (members, n, M)
    truth: Matrix  # (n, M) deviations from the mean without them, nan where nothing was seen
    familiarity: Matrix
    kinds: Matrix  # (n, K) probabilities


class HeadFit(NamedTuple):
    """What fit_head found: the mix's weights and gates, and the evidence for them."""

    weights: Matrix
    common_weights: Matrix
    gate: Gate
    common_gate: Gate
    judge: Judge | None
    familiar: Evidence | None  # None: too few prompts to leave any out
    unfamiliar: Evidence | None


def _evidence(found: Sequence[tuple[Member, Matrix]], outcomes: Matrix, judge: Judge) -> Evidence:
    rows = np.concatenate([member.rows for member, _ in found])
    guesses = np.concatenate([member.guesses for member, _ in found], axis=1)
    familiarity = np.array([judge(row) for member, _ in found for row in member.signs])
    truth = np.concatenate([outcomes[member.rows] - mean for member, mean in found])
    common = guesses.mean(-1)
    return Evidence(
        rows,
        guesses,
        common,
        guesses - common[..., None],
        truth,
        familiarity,
        np.concatenate([member.kinds for member, _ in found]),
    )


def _gate(
    familiar: Evidence,
    unfamiliar: Evidence | None,
    mix: tuple[Matrix, Matrix],
    groups: Index,
    particular: bool,
    rules: Rules,
) -> Gate:
    """Trust by familiarity: the slope of what came on what was guessed, among prompts of seen
    kinds and of left-out kinds, mixed by how likely each is at that familiarity."""
    edges = np.quantile(familiar.familiarity, (0.0, 0.03, 0.15, 0.4, 0.7, 1.0))
    middle = np.concatenate(([edges[0]], (edges[1:-2] + edges[2:-1]) / 2, [edges[-2]]))
    inside = _slopes(familiar, mix, groups, particular, edges, None)
    if unfamiliar is None:
        outside, share = np.zeros(len(inside)), np.full(len(inside), 0.5)
    else:
        outside = rules.worth * _slopes(unfamiliar, mix, groups, particular, edges, rules)
        mine = _density(familiar.familiarity, edges)
        theirs = _density(unfamiliar.familiarity, edges)
        novel = rules.novel_share
        share = novel * theirs / (novel * theirs + (1 - novel) * mine + 1e-9)
    share[0] = max(share[0], 0.5)
    slope = (1 - share) * inside + share * outside
    slope = np.minimum.accumulate(slope[::-1])[::-1]  # less familiar is never trusted more
    trust = _trust(slope)
    far = float(_trust(outside[:1])[0])  # less familiar than anything: only what holds outside
    knots = np.concatenate(([middle[0] / 2], middle))
    return Gate(
        np.maximum.accumulate(knots + np.arange(len(knots)) * 1e-6).astype(np.float32),
        np.concatenate(([min(far, trust[0])], trust)).astype(np.float32),
    )


def _trust(slope: Matrix) -> Matrix:
    """Nothing below the doubtful slope, all of it from the sure one on: a default that is left
    by half on weak evidence is left for nothing."""
    return np.clip((slope - _DOUBTFUL) / (_SURE - _DOUBTFUL), 0.0, 1.0)


def _density(familiarity: Matrix, edges: Matrix) -> Matrix:
    inner = np.searchsorted(edges[1:-1], familiarity, side="right")
    return np.bincount(inner, minlength=len(edges) - 1) / max(len(familiarity), 1)


def _slopes(
    evidence: Evidence,
    mix: tuple[Matrix, Matrix],
    groups: Index,
    particular: bool,
    edges: Matrix,
    rules: Rules | None,
) -> Matrix:
    """In each band of familiarity, the slope; with rules, less some standard errors between
    groups, and nothing where there are too few groups to say."""
    own = np.tensordot(mix[0], evidence.particular, axes=1)
    shared = np.tensordot(mix[1], evidence.common, axes=1)[:, None]
    guess, rest = (own, shared) if particular else (shared, own)
    seen = ~np.isnan(evidence.truth)
    left = np.where(seen, evidence.truth - rest, 0.0)
    top, bottom = (guess * left).sum(1), (guess**2 * seen).sum(1)
    place = np.searchsorted(edges[1:-1], evidence.familiarity, side="right")
    group = groups[evidence.rows]
    found = np.zeros(len(edges) - 1)
    overall = top.sum() / (bottom.sum() + 1e-12)
    for index in range(len(found)):
        mine = place == index
        # a thin band leans on the slope of all of them
        prior = 0.1 * bottom.sum()
        mass = bottom[mine].sum() + prior
        slope = (top[mine].sum() + prior * overall) / (mass + 1e-12)
        error = 0.0
        if rules is not None:
            names, inverse = np.unique(group, return_inverse=True)
            part_top = np.bincount(inverse, top, len(names))
            part_bottom = np.bincount(inverse, bottom, len(names))
            off = part_top - overall * part_bottom
            spare = len(names) / max(len(names) - 1, 1)
            error = float(np.sqrt((off**2).sum() * spare) / (bottom.sum() + 1e-12))
            if len(names) < rules.fewest:
                error = np.inf
        caution = 0.0 if rules is None else rules.caution
        found[index] = slope - caution * error if np.isfinite(error) else 0.0
    return found


def fit(
    texts: Sequence[TextFeatures],
    tasks: Sequence[str | None],
    targets: Sequence[Matrix],
    seed: int = 0,
) -> tuple[Kinds, list[Head], list[HeadFit]]:
    """The map and one head per target; targets are (N, M) with nan where nothing was seen."""
    prompts = prompts_of(texts, seed)
    sortings = sortings_of(prompts, tasks, seed)
    rng = np.random.default_rng(seed)
    folds = _random_folds(len(texts), 5, rng)
    solvers = Solvers(prompts.directions)
    sharpness = [_sharpness(prompts, solvers, sorting, folds, len(texts)) for sorting in sortings]
    everything = np.arange(len(texts))

    blocks: list[Matrix] = []  # coefficients on the directions
    biases: list[Matrix] = []
    systems: list[System] = []
    place = 0
    solver = solvers(everything)
    onehots = [_onehot(sorting, everything) for sorting in sortings]
    for sorting, sharp, onehot in zip(sortings, sharpness, onehots, strict=True):
        blocks.extend(solver.solve(onehot - onehot.mean(0), _KIND_RIDGE))
        biases.append(onehot.mean(0))
        systems.append(System(place, place + sorting.size, sharp, sorting.names))
        place += sorting.size

    heads: list[Head] = []
    fits: list[HeadFit] = []
    judge: Judge | None = None
    for target in targets:
        some = np.flatnonzero((~np.isnan(target)).any(1))
        found = fit_head(prompts, solvers, sortings, sharpness, target, seed, judge)
        judge = found.judge
        own = solvers(some)
        mean, deviations = _deviations(prompts, own, target, some)
        seen = ~np.isnan(target[some])
        solved = own.solve(deviations, *_RIDGES)
        onehots_here = [onehot[some] for onehot in onehots]
        tables = [[_table(onehot, deviations, mass) for mass in _MASSES] for onehot in onehots_here]
        coefficients = [
            np.tensordot(weights[: len(_RIDGES)], np.array(solved), axes=1)
            for weights in (found.weights, found.common_weights)
        ]
        kinds = [
            np.concatenate(
                [
                    np.tensordot(
                        weights[
                            len(_RIDGES) + i * len(_MASSES) : len(_RIDGES) + (i + 1) * len(_MASSES)
                        ],
                        np.array(table),
                        axes=1,
                    )
                    for i, table in enumerate(tables)
                ]
                or [np.zeros((0, target.shape[1]))]
            )
            for weights in (found.weights, found.common_weights)
        ]
        particular = coefficients[0] - coefficients[0].mean(1, keepdims=True)
        common = coefficients[1].mean(1)
        _, scale, right = np.linalg.svd(prompts.directions[some] @ particular, full_matrices=False)
        kept = int(min(_KEPT_AXES, (scale > 1e-6 * (scale.max(initial=0.0) + 1e-12)).sum()))
        axes = right[:kept]  # (A, M), orthonormal rows
        blocks.append(np.column_stack([particular @ axes.T, common]))
        biases.append(np.zeros(kept + 1))
        variance = np.array(
            [
                np.var(target[some][seen[:, m], m]) if seen[:, m].any() else 0.25
                for m in range(target.shape[1])
            ]
        )
        number = seen.sum(0)
        masses = (
            np.concatenate([onehot.T @ seen for onehot in onehots_here])
            if onehots_here
            else np.zeros((0, target.shape[1]))
        )
        strongest = [
            np.concatenate([table[-1] for table in tables])
            if tables
            else np.zeros((0, target.shape[1]))
        ][0]
        sizes = masses.sum(0) + 1e-9
        heads.append(
            Head(
                mean=_f32(mean),
                mean_error=_f32(np.sqrt((variance + 1e-4) / np.maximum(number, 1))),
                axes_start=place,
                axes_stop=place + kept + 1,
                axes=_f32(np.vstack([axes, np.zeros((1, axes.shape[1]))])),
                common_axes=_f32(np.append(np.zeros(kept), 1.0)),
                kinds=_f32(kinds[0] - kinds[0].mean(1, keepdims=True)),
                common_kinds=_f32(kinds[1].mean(1)),
                kind_error=_f32(
                    np.sqrt(variance / (masses + _MASSES[-1])) / np.sqrt(max(len(sortings), 1))
                ),
                spread=_f32(np.sqrt((strongest**2 * masses).sum(0) / sizes)),
                gate=found.gate,
                common_gate=found.common_gate,
            )
        )
        fits.append(found)
        place += kept + 1
    judge = judge or _judge([], [], len(sortings))
    kinds_map = _map(
        prompts, np.column_stack(blocks), np.concatenate(biases), tuple(systems), judge
    )
    return kinds_map, heads, fits


def _map(
    prompts: Prompts,
    coefficients: Matrix,
    bias: Matrix,
    systems: tuple[System, ...],
    judge: Judge,
) -> Kinds:
    features = prompts.loadings @ coefficients  # (R + D, C)
    words = len(prompts.idf) - 1
    scaled = features[:words] * prompts.idf[1:, None]
    return Kinds(
        row_of=prompts.row_of,
        idf=_f32(prompts.idf),
        words=_f32(np.vstack([np.zeros((1, scaled.shape[1])), scaled])),
        dense_mean=_f32(prompts.dense_mean),
        dense_scale=_f32(prompts.dense_scale),
        dense=_f32(features[words:] * np.sqrt(_DENSE_WEIGHT / len(DENSE))),
        bias=_f32(bias),
        systems=systems,
        judge=judge,
    )


def _f32(values: Matrix) -> NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32)
