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
_KIND_WEIGHT = 20.0  # prompts of a kind until its own figures count half, where kinds are alike
_LEAST_WEIGHT = 2.0  # the same where they are nothing alike
_MEMORY = 400.0  # prompts of a kind that are remembered
_ROUNDS = 30
LOWEST_RANK = 0.005
# Mean of -log(rank) beyond that of known traffic, less its standard errors, between which a kind's
# prompts are no longer trusted at all: new tasks that look much like known ones show little more.
_SOUND, _BROKEN = 0.0, 0.1
_CAUTION = 1.0  # standard errors
# Shares of new prompts in all the traffic between which trust falls to nothing: where nearly
# everything is new, what looks sound is more likely to be new and look alike.
_MOSTLY_NEW, _ALL_NEW = 0.7, 0.9
_EVERY = 16  # prompts after which kinds are compared again


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
        self._weight = _KIND_WEIGHT
        self._mostly = usual
        self._until = _EVERY

    def share(self, kind: int) -> float:
        """Which share of the prompts that look like this kind are new, 0..1."""
        overall = (self._all_new + self._usual * _USUAL_WEIGHT) / (self._all + _USUAL_WEIGHT)
        overall = min(max(overall, 0.0), 1.0)
        own = (self._new.get(kind, 0.0) + overall * self._weight) / (
            self._number.get(kind, 0.0) + self._weight
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
        self._until -= 1
        if self._until <= 0:
            self._until = _EVERY
            self._compare()

    def look(self, prompts: Sequence[tuple[int, float]]) -> None:
        """Take (kind, rank) of a whole batch at once: every prompt counts for every other."""
        for kind, rank in prompts:
            self._surprise[kind] = self._surprise.get(kind, 0.0) + self._beyond(rank)
            self._all_surprise += self._beyond(rank)
            self._number[kind] = self._number.get(kind, 0.0) + 1.0
            self._all += 1.0
            self._new[kind] = self._new.get(kind, 0.0) + self._usual
            self._all_new += self._usual
        self._compare()
        for _ in range(_ROUNDS):
            new: dict[int, float] = {}
            number: dict[int, float] = {}
            for kind, rank in prompts:
                new[kind] = new.get(kind, 0.0) + 1.0 - self.likely(kind, rank)
                number[kind] = number.get(kind, 0.0) + 1.0
            self._new, self._number = new, number
            self._all_new, self._all = sum(new.values()), sum(number.values())
        self._compare()

    def _beyond(self, rank: float) -> float:
        return -log(max(rank, LOWEST_RANK)) - self._of_known

    def _soundness(self, kind: int) -> float:
        overall = self._all_surprise / (self._all + _USUAL_WEIGHT)
        number = self._number.get(kind, 0.0) + self._weight
        own = (self._surprise.get(kind, 0.0) + overall * self._weight) / number
        # -log(rank) of known traffic has a standard deviation of 1
        own -= _CAUTION / sqrt(number)
        return min(
            _falling(own, _SOUND, _BROKEN),
            _falling(self._mostly, _MOSTLY_NEW, _ALL_NEW),
        )

    def _compare(self) -> None:
        """How alike kinds are, and how much of all is new, from what came to each of them.

        A kind leans on all of them by the variance within a kind, which is 1, over that between
        kinds (DerSimonian and Laird's estimate): one that is plainly new does not put the others
        in doubt.
        """
        counts = {kind: number for kind, number in self._number.items() if number > 0.0}
        total = sum(counts.values())
        new = sum(min(max(self._new.get(kind, 0.0), 0.0), counts[kind]) for kind in counts)
        self._mostly = (new + self._usual * _USUAL_WEIGHT) / (total + _USUAL_WEIGHT)
        self._weight = _KIND_WEIGHT
        if len(counts) < 2:
            return
        means = {kind: self._surprise.get(kind, 0.0) / number for kind, number in counts.items()}
        middle = sum(counts[kind] * means[kind] for kind in counts) / total
        apart = sum(counts[kind] * (means[kind] - middle) ** 2 for kind in counts)
        spare = total - sum(number**2 for number in counts.values()) / total
        between = (apart - (len(counts) - 1)) / max(spare, 1e-9)
        self._weight = min(max(1.0 / max(between, 1e-6), _LEAST_WEIGHT), _KIND_WEIGHT)


def _falling(value: float, start: float, end: float) -> float:
    return min(max((end - value) / (end - start), 0.0), 1.0)
