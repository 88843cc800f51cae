"""What a router is worth: areas under quality over cost, beside controls that see no prompt."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Matrix = NDArray[np.float64]


class Hull(NamedTuple):
    """Single models that a mix may use, cheapest first; as known when learning."""

    models: list[int]
    low: float
    high: float


def hull_of(costs: Matrix, means: Matrix) -> Hull:
    """The upper hull of quality over cost."""
    order = sorted(range(len(costs)), key=lambda m: (costs[m], -means[m]))
    kept: list[int] = []
    for m in order:
        if kept and means[m] <= means[kept[-1]]:
            continue
        while len(kept) >= 2 and (means[kept[-1]] - means[kept[-2]]) * (
            costs[m] - costs[kept[-2]]
        ) <= (means[m] - means[kept[-2]]) * (costs[kept[-1]] - costs[kept[-2]]):
            kept.pop()
        kept.append(m)
    return Hull(kept, float(costs[kept[0]]), float(costs[kept[-1]]))


def area_of_hull(hull: Hull, costs: Matrix, scores: Matrix) -> float:
    """Mean quality over all budgets of a random mix of the hull's single models."""
    means = np.nanmean(scores, axis=0)
    budgets = np.linspace(hull.low, hull.high, 401)
    return float(np.interp(budgets, costs[hull.models], means[hull.models]).mean())


def area_of(guesses: Matrix, hull: Hull, costs: Matrix, scores: Matrix) -> float:
    """Mean quality over all budgets of choosing the highest guess less price times cost, as the
    price goes from nothing to forbidding. No point is picked with the outcome in hand."""
    filled = np.where(np.isnan(scores), np.nanmean(scores, axis=0), scores)
    scale = hull.high - hull.low
    spent, got = [], []
    for price in np.concatenate(([0.0], np.geomspace(1e-4, 50.0, 160))):
        chosen = (guesses - price * costs / scale).argmax(1)
        spent.append(costs[chosen].mean())
        got.append(filled[np.arange(len(filled)), chosen].mean())
    order = np.argsort(spent, kind="stable")
    budgets = np.linspace(hull.low, hull.high, 401)
    return float(np.interp(budgets, np.array(spent)[order], np.array(got)[order]).mean())


def recovered(gaps: Matrix, scores: Matrix) -> float:
    """APGR of two models: the share of the quality gap recovered, averaged over the share of
    requests sent to the strong one, in the order of the guessed gaps. Equal gaps count as their
    orders do on average, so that one gap for all gets exactly 0.5."""
    before = (rankdata(-gaps) - 0.5) / len(gaps)  # the share sent before it
    gained = scores[:, 1] - scores[:, 0]
    return float((gained * (1.0 - before)).sum()) / (float(gained.sum()) or 1.0)


def pinball(guess: Matrix, came: Matrix, level: float) -> float:
    """Mean loss of a quantile, in the outcome's unit; nan where nothing came."""
    return float(np.nanmean(np.maximum(level * (came - guess), (level - 1) * (came - guess))))
