"""Fastest: the shortest time to the whole answer."""

from __future__ import annotations

from policies.ranking import Figures, Ranked, Words
from policies.types import Request


class Fastest(Ranked):
    name = "fastest"
    words = Words("shortest latency", "would take", " s")

    def score(self, request: Request, of: Figures) -> float:
        return of.latency_s
