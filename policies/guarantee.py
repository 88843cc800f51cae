"""Guarantee: at least this quality on average, for the least energy.

A primal-dual method. The promise is kept as a running debt, ``max(0, debt + promised - given)``,
a virtual queue (Neely, *Stochastic Network Optimization*, 2010, chapter 4). Its size is the price
of quality: each request takes the candidate with the least ``ln energy - price · quality``. While
the promise is kept the price falls and energy decides; when quality was short the price rises
until better candidates win. After n requests the average is ``promised + (first - last debt)/n``
or more, so that it starts in debt: whatever the price settles at is then paid for beforehand
(``first_debt``).

The debt is not kept here: it comes with the request and whoever wires this keeps it up to date
with ``owe``, so that a recorded decision replays.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import log

from policies.ranking import INF, Figures, Ranked, Words, figures
from policies.session import WEIGH
from policies.types import Candidate, Request

# What one unit of debt (one answer wholly failed) is worth, in ln energy per unit of quality. The
# price at which a model of ten times the energy and .3 more quality wins is 2.3 / .3 = 8.
PRICE_PER_DEBT = 1.0
FIRST_DEBT = 10.0
# Nor more than this, where what keeps the promise is hardly better and far costlier: such a debt
# takes long to pay off, and is paid at any price by requests that have a wider choice.
MOST_FIRST_DEBT = 100.0


def first_debt(promised: float, candidates: Iterable[Candidate]) -> float:
    """What a promise owes before its first request, these being its candidates: so much that the
    first answer is as good as promised, where one can be."""
    known = [
        (log(max(of.energy_j, 1e-3)), -of.minus_quality)
        for of in map(figures, candidates)
        if INF not in (of.energy_j, of.minus_quality)
    ]
    worse = [each for each in known if each[1] < promised]
    needed = [
        max(((ln_j - other) / (quality - less) for other, less in worse), default=0.0)
        for ln_j, quality in known
        if quality >= promised
    ]
    enough = min(needed, default=0.0) / PRICE_PER_DEBT
    return min(max(FIRST_DEBT, 1.01 * enough), MOST_FIRST_DEBT)


class Guarantee(Ranked):
    """``promised`` is the average quality, 0..1. Raises ValueError outside that range."""

    name = "guarantee"
    words = Words("lowest score of energy and the quality still owed", "scores", "", signed=True)

    def __init__(
        self,
        promised: float,
        asked_only: bool = False,
        session: str = WEIGH,
        hysteresis: float = 0.0,
        price_per_debt: float = PRICE_PER_DEBT,
    ) -> None:
        super().__init__(asked_only, session, hysteresis)
        if not 0.0 <= promised <= 1.0:
            raise ValueError("the promised quality must lie between 0 and 1")
        self.promised = promised
        self.price_per_debt = price_per_debt
        self.first_debt = FIRST_DEBT / price_per_debt

    def handicap(self, score: float, share: float) -> float:
        """The score is a logarithm of energy, so a share of it is a difference."""
        return score - share

    def score(self, request: Request, of: Figures) -> float:
        if of.energy_j == INF or of.minus_quality == INF:
            return INF
        price = self.price_per_debt * max(0.0, request.quality_debt)
        return log(max(of.energy_j, 1e-3)) + price * of.minus_quality

    def owe(self, debt: float, given: float) -> float:
        """The debt after an answer of quality ``given``: observed where known, else expected."""
        return max(0.0, debt + self.promised - given)
