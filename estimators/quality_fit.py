"""From scored outcomes to a QualityModel. Off the request path; fitting only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from estimators.kinds import Gate, Head
from estimators.kinds_fit import Evidence, HeadFit, fit
from estimators.passages import sharing
from estimators.quality_model import LengthBands, QualityModel
from estimators.text import read

Matrix = NDArray[np.float64]
_LEVELS = (0.1, 0.5, 0.9)
_LEAST_SPREAD = 0.05  # of a logarithm: no narrower are bands of lengths that were all equal
_STRANGE = 1.5  # how much wider bands of new kinds are, where none could be left out


class Scored(NamedTuple):
    """One answer of one backend: how good, how long; None where it was not seen."""

    text: str
    backend: str
    score: float | None
    output_tokens: float | None = None
    task: str | None = None


class NothingToLearn(Exception):
    """There is no outcome to learn from."""


def learn(rows: Iterable[Scored], seed: int = 0) -> QualityModel:
    """The model these outcomes teach. The same rows give the same model, in any order.

    Several answers of one backend to one prompt count as their mean. Raises NothingToLearn.
    """
    prompt_of: dict[str, int] = {}
    backend_of: dict[str, int] = {}
    task_of: dict[str, str] = {}
    cells: list[tuple[int, int, float, float]] = []
    for row in rows:
        if row.task:
            task_of[row.text] = min(row.task, task_of.get(row.text, row.task))
        cells.append(
            (
                prompt_of.setdefault(row.text, len(prompt_of)),
                backend_of.setdefault(row.backend, len(backend_of)),
                np.nan if row.score is None else row.score,
                np.nan if row.output_tokens is None else np.log1p(row.output_tokens),
            )
        )
    if not cells:
        raise NothingToLearn("There is no outcome to learn from.")
    shape = (len(prompt_of), len(backend_of))
    # Folds and groups are drawn by place: of the same rows each has the same, whatever its line.
    prompts, backends = sorted(prompt_of, key=_digest), sorted(backend_of)
    table = np.array(cells)
    for column, names, first in ((0, prompts, prompt_of), (1, backends, backend_of)):
        place = np.argsort([first[name] for name in names])
        table[:, column] = place[table[:, column].astype(np.int64)]
    table = table[np.lexsort(table.T[::-1])]
    at = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
    scores, lengths = _mean_of(at, table[:, 2], shape), _mean_of(at, table[:, 3], shape)
    targets = [target for target in (scores, lengths) if not np.isnan(target).all()]
    texts = [read(text) for text in prompts]
    tasks = [task_of.get(text) for text in prompts]
    # many small matrices: threads of linear algebra wait for each other more than they help
    with threadpool_limits(1):
        kinds, heads, fits = fit(texts, tasks, targets, sharing(prompts), seed)
    by_target = dict(
        zip(
            [
                name
                for name, target in (("quality", scores), ("length", lengths))
                if not np.isnan(target).all()
            ],
            zip(heads, fits, strict=True),
            strict=True,
        )
    )
    bands = None
    if "length" in by_target:
        head, found = by_target["length"]
        bands = length_bands(head, found, lengths)
    facts = {
        "prompts": shape[0],
        "outcomes": len(cells),
        "tasks": len({task for task in tasks if task}),
    }
    return QualityModel(
        tuple(backends),
        kinds,
        by_target["quality"][0] if "quality" in by_target else None,
        by_target["length"][0] if "length" in by_target else None,
        bands,
        facts,
    )


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()


def _mean_of(
    at: tuple[NDArray[np.int64], NDArray[np.int64]], values: Matrix, shape: tuple[int, int]
) -> Matrix:
    total, number = np.zeros(shape), np.zeros(shape)
    known = ~np.isnan(values)
    np.add.at(total, (at[0][known], at[1][known]), values[known])
    np.add.at(number, (at[0][known], at[1][known]), 1.0)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def left_out(found: HeadFit, evidence: Evidence, familiarity: float) -> tuple[Matrix, Matrix]:
    """Deviations as they would have been served in traffic that is all of known kinds (1) or all
    new (0), and as they came (nan where not seen)."""
    particular = np.tensordot(found.weights, evidence.particular, axes=1)
    common = np.tensordot(found.common_weights, evidence.common, axes=1)
    trust, shared = found.gate(familiarity), found.common_gate(familiarity)
    return trust * particular + (shared * common)[:, None], evidence.truth


def length_bands(head: Head, found: HeadFit, lengths: Matrix) -> LengthBands:
    """Scatter of log lengths about the prediction, from prompts that were left out."""
    backends = lengths.shape[1]
    kinds = head.kinds.shape[0]
    if found.familiar is None:
        return _spread_alone(lengths, kinds)
    guess, truth = left_out(found, found.familiar, 1.0)
    error = truth - guess
    seen = ~np.isnan(error)
    size = np.where(seen, np.abs(error), 0.0)
    pooled = size.sum() / max(seen.sum(), 1) + 1e-6
    scale = (size.sum(0) + 20 * pooled) / (seen.sum(0) + 20)

    relative = np.where(seen, np.abs(error) / scale, 0.0)
    odds = found.familiar.kinds  # (n, K)
    per_row, number = relative.sum(1), seen.sum(1)
    weight = odds.T @ number
    kind_scale = (odds.T @ per_row + 20.0) / (weight + 20.0)
    systems = max(odds[0].sum().round(), 1.0) if len(odds) else 1.0
    factor = odds @ kind_scale / systems if kinds else np.ones(len(error))

    left = error / (scale * factor[:, None])
    widen = _widening(found, left, scale, kind_scale, systems)
    everyone = np.nanquantile(left, _LEVELS)
    quantiles = np.empty((backends, 3))
    means = np.empty(backends)
    rows = found.familiar.rows
    ratio = np.where(seen, np.exp(error), 0.0)  # length over the length at the predicted log
    size_of = np.where(seen, np.exp(np.nan_to_num(lengths[rows])) / np.where(seen, ratio, 1.0), 0.0)
    grand = (ratio * size_of).sum() / max(size_of.sum(), 1e-9)
    for m in range(backends):
        mine = left[seen[:, m], m]
        own = np.quantile(mine, _LEVELS) if len(mine) else everyone
        lean = len(mine) / (len(mine) + 50.0)
        low, mid, high = np.maximum.accumulate(lean * own + (1 - lean) * everyone)
        least = _LEAST_SPREAD / scale[m]  # equal answers so far promise no equal one
        quantiles[m] = min(low, mid - least), mid, max(high, mid + least)
        base = size_of[:, m].sum()
        own_mean = (ratio[:, m] * size_of[:, m]).sum() / base if base > 0 else grand
        means[m] = lean * own_mean + (1 - lean) * grand
    return LengthBands(_f32(scale), _f32(kind_scale), widen, _f32(quantiles), _f32(means))


def _widening(
    found: HeadFit, left: Matrix, scale: Matrix, kind_scale: Matrix, systems: float
) -> Gate:
    """By how much more errors scatter on new kinds, as those left out showed; never less than 1."""
    strange = _STRANGE
    if found.unfamiliar is not None:
        guess, truth = left_out(found, found.unfamiliar, 0.0)
        factor = found.unfamiliar.kinds @ kind_scale / systems if len(kind_scale) else 1.0
        outside = np.nanmean(np.abs(truth - guess) / scale, 1) / factor
        usual = float(np.nanmean(np.abs(left)))
        if usual > 0.0:  # else all answers are of one length
            strange = float(np.nanmean(outside)) / usual
    return Gate(_f32(np.array([0.0, 1.0])), _f32(np.array([max(strange, 1.0), 1.0])))


def _spread_alone(lengths: Matrix, kinds: int) -> LengthBands:
    """With too few prompts to leave some out: the plain spread, doubtfully wide."""
    backends = lengths.shape[1]
    spread = float(np.nanstd(lengths)) if np.isfinite(lengths).sum() > 1 else 1.0
    return LengthBands(
        _f32(np.full(backends, max(spread, 0.5))),
        _f32(np.ones(kinds)),
        Gate(_f32(np.array([0.0, 1.0])), _f32(np.ones(2))),
        _f32(np.tile([-1.6, 0.0, 1.6], (backends, 1))),
        _f32(np.full(backends, float(np.exp(max(spread, 0.5) ** 2 / 2)))),
    )


def _f32(values: Matrix) -> NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32)
