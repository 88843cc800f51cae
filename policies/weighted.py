"""Weighted: several objectives at once, by what a percent of each is worth.

The score is Σ weight·ln(figure), so weights compare percentages and need no units: with
``energy: 2, latency: 1`` a saving of 1 % energy makes up for 2 % more latency. A candidate's score
depends on itself alone, which a normalisation over the candidates would break.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log

from policies.ranking import INF, Figures, Ranked, Words
from policies.session import WEIGH
from policies.types import Request

OBJECTIVES = ("energy", "carbon", "money", "latency", "ttft", "quality")
_INDEX = {word: index for index, word in enumerate(OBJECTIVES)}

# Below these a figure counts as nothing, so that a free backend is very cheap but not infinitely
# so: a millijoule, a microgram, a millionth of a dollar, a millisecond.
_FLOORS = (1e-3, 1e-6, 1e-6, 1e-3, 1e-3, 1e-3)


class Weighted(Ranked):
    """``weights`` maps names of OBJECTIVES to numbers >= 0, not all 0. Raises ValueError."""

    name = "weighted"
    words = Words("lowest weighted score", "scores", "", signed=True)

    def __init__(
        self,
        weights: Mapping[str, float],
        asked_only: bool = False,
        session: str = WEIGH,
        hysteresis: float = 0.0,
    ) -> None:
        super().__init__(asked_only, session, hysteresis)
        unknown = [word for word in weights if word not in _INDEX]
        if unknown:
            raise ValueError(f"no such objective: {unknown[0]}; known: {', '.join(OBJECTIVES)}")
        if not any(weights.values()) or min(weights.values()) < 0:
            raise ValueError("weights must be 0 or more, and one of them more than 0")
        self.weights = dict(weights)
        self._terms = [(_INDEX[word], weight) for word, weight in weights.items() if weight > 0]

    def handicap(self, score: float, share: float) -> float:
        """Scores are logarithms already, so a share of every figure is a difference."""
        return score - share * sum(weight for _, weight in self._terms)

    def score(self, request: Request, of: Figures) -> float:
        total = 0.0
        for index, weight in self._terms:
            value = of[index]
            if value == INF:
                return INF
            if index == 5:  # quality: more is better, and kept negative in the figures
                total -= weight * log(max(-value, _FLOORS[5]))
            else:
                total += weight * log(max(value, _FLOORS[index]))
        return total
