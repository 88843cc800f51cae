"""Cheapest: the least money; among equals (all free, say) the least energy."""

from __future__ import annotations

from policies.ranking import Figures, Ranked, Words
from policies.types import Request


class Cheapest(Ranked):
    name = "cheapest"
    words = Words("least money", "would cost", " USD")

    def score(self, request: Request, of: Figures) -> float:
        return of.money_usd
