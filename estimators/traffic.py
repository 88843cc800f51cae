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
from math import log, sqrt

_USUAL_WEIGHT = 6.0  # prompts that the usual share of new ones is worth
_KIND_WEIGHT = 20.0  # prompts of a kind until its own share counts half
_MEMORY = 400.0  # prompts of a kind that are remembered
_ROUNDS = 30
LOWEST_RANK = 0.005
# Mean of -log(rank) beyond that of known traffic, less its standard errors, between which a kind's
# prompts are no longer trusted at all: new tasks that look much like known ones show little more.
_SOUND, _BROKEN = 0.0, 0.15
_CAUTION = 1.0  # standard errors
# The same over all kinds, beyond which none is trusted: nearly everything is new.
_SOME_NEW, _ALL_NEW = 0.35, 0.5


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
        self._surprise: dict[int, float] = {}
        self._all_surprise = 0.0

    def share(self, kind: int) -> float:
        """Which share of the prompts that look like this kind are new, 0..1."""
        overall = (self._all_new + self._usual * _USUAL_WEIGHT) / (self._all + _USUAL_WEIGHT)
        overall = min(max(overall, 0.0), 1.0)
        own = (self._new.get(kind, 0.0) + overall * _KIND_WEIGHT) / (
            self._number.get(kind, 0.0) + _KIND_WEIGHT
        )
        return min(max(own, 0.0), 1.0)

    def likely(self, kind: int, rank: float) -> float:
        """The chance that this prompt is of a kind learnt from, going by the share of new ones."""
        return known_odds(rank, self.share(kind), self._crowding)

    def known(self, kind: int, rank: float) -> float:
        """The same, to choose a backend by: nothing where its kind's ranks have left those of
        known traffic, however few of them that is."""
        return self._soundness(kind) * self.likely(kind, rank)

    def learn(self, kind: int, rank: float) -> None:
        """Take one prompt in."""
        surprise = self._beyond(rank)
        new = surprise / (self._of_new - self._of_known)
        keep = 1.0 - 1.0 / _MEMORY
        self._new[kind] = self._new.get(kind, 0.0) * keep + new
        self._number[kind] = self._number.get(kind, 0.0) * keep + 1.0
        self._all_new = self._all_new * keep + new
        self._all = self._all * keep + 1.0
        self._surprise[kind] = self._surprise.get(kind, 0.0) * keep + surprise
        self._all_surprise = self._all_surprise * keep + surprise

    def look(self, prompts: Sequence[tuple[int, float]]) -> None:
        """Take (kind, rank) of a whole batch at once: every prompt counts for every other."""
        for kind, rank in prompts:
            self._surprise[kind] = self._surprise.get(kind, 0.0) + self._beyond(rank)
            self._all_surprise += self._beyond(rank)
        for _ in range(_ROUNDS):
            new: dict[int, float] = {}
            number: dict[int, float] = {}
            for kind, rank in prompts:
                new[kind] = new.get(kind, 0.0) + 1.0 - self.likely(kind, rank)
                number[kind] = number.get(kind, 0.0) + 1.0
            self._new, self._number = new, number
            self._all_new, self._all = sum(new.values()), sum(number.values())

    def _beyond(self, rank: float) -> float:
        return -log(max(rank, LOWEST_RANK)) - self._of_known

    def _soundness(self, kind: int) -> float:
        overall = self._all_surprise / (self._all + _USUAL_WEIGHT)
        number = self._number.get(kind, 0.0) + _KIND_WEIGHT
        own = (self._surprise.get(kind, 0.0) + overall * _KIND_WEIGHT) / number
        # -log(rank) of known traffic has a standard deviation of 1
        own -= _CAUTION / sqrt(number)
        overall -= _CAUTION / sqrt(self._all + _KIND_WEIGHT)
        return min(
            _falling(own, _SOUND, _BROKEN),
            _falling(overall, _SOME_NEW, _ALL_NEW),
        )


def _falling(value: float, start: float, end: float) -> float:
    return min(max((end - value) / (end - start), 0.0), 1.0)
