"""Least carbon: marginal joules times what a joule emits where that backend stands."""

from __future__ import annotations

from policies.ranking import Figures, Ranked, Words
from policies.types import Request


class LeastCarbon(Ranked):
    name = "least_carbon"
    words = Words("least carbon", "would emit", " g")

    def score(self, request: Request, of: Figures) -> float:
        return of.carbon_g
