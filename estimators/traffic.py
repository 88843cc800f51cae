"""How much of the traffic is of a kind that was never learnt from, estimated as it comes.

One prompt hardly tells whether it is of a new kind: prompts of a new kind are on the whole less
familiar than those learnt from, but many look ordinary. A hundred prompts do tell. Each has a rank:
the share of the prompts learnt from, among those sorted into the same kind, that were no more
familiar. Ranks of known kinds are even between 0 and 1, those of new kinds crowd towards 0 like
``a·rank^(a-1)``, where ``a`` was learnt on kinds left out. The share of new prompts, for each kind
and leaning on all of them, is in a batch the one under which the ranks that came are likeliest;
while serving it follows the mean of ``-log(rank)``, which is 1 among known and 1/a among new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

_USUAL_WEIGHT = 6.0  # prompts that the usual share of new ones is worth
_KIND_WEIGHT = 20.0  # prompts of a kind until its own share counts half
_MEMORY = 400.0  # prompts of a kind that are remembered
_ROUNDS = 30
LOWEST_RANK = 0.005


def known_odds(rank: float, share: float, crowding: float) -> float:
    """The chance that a prompt of this rank is of a known kind, where ``share`` are new."""
    new: float = share * crowding * max(rank, LOWEST_RANK) ** (crowding - 1.0)
    return (1.0 - share) / max(1.0 - share + new, 1e-12)


class Traffic:
    """Fading shares of new prompts by kind. Not for several threads; forgets all on restart."""

    def __init__(self, usual: float, crowding: float) -> None:
        self._usual, self._crowding = usual, crowding
        self._of_known = 1.0 - LOWEST_RANK  # means of -log(rank), cut off at the lowest
        self._of_new = (1.0 - LOWEST_RANK**crowding) / crowding
        self._new: dict[int, float] = {}
        self._number: dict[int, float] = {}
        self._all_new = self._all = 0.0

    def share(self, kind: int) -> float:
        """Which share of the prompts that look like this kind are new, 0..1."""
        overall = (self._all_new + self._usual * _USUAL_WEIGHT) / (self._all + _USUAL_WEIGHT)
        overall = min(max(overall, 0.0), 1.0)
        own = (self._new.get(kind, 0.0) + overall * _KIND_WEIGHT) / (
            self._number.get(kind, 0.0) + _KIND_WEIGHT
        )
        return min(max(own, 0.0), 1.0)

    def known(self, kind: int, rank: float) -> float:
        """The chance that this prompt is of a kind learnt from."""
        return known_odds(rank, self.share(kind), self._crowding)

    def learn(self, kind: int, rank: float) -> None:
        """Take one prompt in."""
        new = (-log(max(rank, LOWEST_RANK)) - self._of_known) / (self._of_new - self._of_known)
        keep = 1.0 - 1.0 / _MEMORY
        self._new[kind] = self._new.get(kind, 0.0) * keep + new
        self._number[kind] = self._number.get(kind, 0.0) * keep + 1.0
        self._all_new = self._all_new * keep + new
        self._all = self._all * keep + 1.0

    def look(self, prompts: Sequence[tuple[int, float]]) -> None:
        """Take (kind, rank) of a whole batch at once: every prompt counts for every other."""
        for _ in range(_ROUNDS):
            new: dict[int, float] = {}
            number: dict[int, float] = {}
            for kind, rank in prompts:
                new[kind] = new.get(kind, 0.0) + 1.0 - self.known(kind, rank)
                number[kind] = number.get(kind, 0.0) + 1.0
            self._new, self._number = new, number
            self._all_new, self._all = sum(new.values()), sum(number.values())
