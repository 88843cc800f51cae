"""Pinned: exactly what the client asked for, nothing traded.

A backend's own name means that backend; a group's name its best variant, the one with the least
energy among equals. With the model left open (``auto``) it is the best of all: what the client
would have taken had it not left the choice to us.
"""

from __future__ import annotations

from policies.ranking import Figures, Ranked, Words
from policies.types import Request


class Pinned(Ranked):
    name = "pinned"
    words = Words("best quality", "should reach", "")
    asked_only = True

    def score(self, request: Request, of: Figures) -> float:
        return of.minus_quality
