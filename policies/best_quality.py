"""Best quality: the highest expected quality; among equals the least energy."""

from __future__ import annotations

from policies.ranking import Figures, Ranked, Words
from policies.types import Request


class BestQuality(Ranked):
    name = "best_quality"
    words = Words("best quality", "should reach", "")

    def score(self, request: Request, of: Figures) -> float:
        return of.minus_quality
