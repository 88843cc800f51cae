"""Fastest: the shortest time to the whole answer, or to its first token."""

from __future__ import annotations

from policies.ranking import Figures, Ranked, Words
from policies.types import Request


class Fastest(Ranked):
    name = "fastest"
    words = Words("shortest latency", "would take", " s")

    def score(self, request: Request, of: Figures) -> float:
        return of.latency_s


class FirstToken(Ranked):
    name = "first_token"
    words = Words("shortest time to the first token", "would begin after", " s")

    def score(self, request: Request, of: Figures) -> float:
        return of.ttft_s
