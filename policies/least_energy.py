"""Least energy: the candidate whose serving this request adds the fewest joules.

Marginal, not average: one more sequence in a running batch costs 7-17 % of the average request
(ML.ENERGY v3 measurements, batch 7-200), so traffic is packed where an engine already runs, and
idle or sleeping engines are left alone until a latency limit asks for them.
"""

from __future__ import annotations

from policies.ranking import Figures, Ranked, Words
from policies.types import Request


class LeastEnergy(Ranked):
    name = "least_energy"
    words = Words("least marginal energy", "would add", " J")

    def score(self, request: Request, of: Figures) -> float:
        return of.energy_j
