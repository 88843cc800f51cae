"""From judged pairs of answers to each backend's quality: Bradley-Terry, with intervals.

The method of Arena-Hard (Li et al., "From Crowdsourced Data to High-Quality Benchmarks:
Arena-Hard and BenchBuilder Pipeline", 2024): each prompt gives two games, with the answers in both
orders; a tie counts half for each side, a verdict of "much better" three times; strengths are the
maximum likelihood, intervals the 2.5 and 97.5 % quantiles over resampled games. Two differences,
both on the cautious side: whole prompts are resampled, since their two games are not independent,
and every pair that met has one more, undecided game, which keeps strengths finite when a backend
has won all of its games.

Strengths are differences only. Their level comes from what was known of the backends before: a
quality is read as the probability of winning against a common reference, so that its log-odds are
a strength, and the strengths are moved until their mean, weighted by games, is that of what was
known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ROUNDS = 200  # resamplings; the interval's ends are then good to about a tenth of its width
MUCH_BETTER = 3.0  # games that a verdict of "much better" counts for
_UNDECIDED = 1.0  # the further game of each pair that met
_STEPS = 200
_EDGE = 0.02  # qualities nearer to 0 or 1 have no usable log-odds
Floats = NDArray[np.float64]


class Game(NamedTuple):
    """One verdict: ``points`` of 1 went to ``first``, the rest to ``second``."""

    first: str
    second: str
    points: float  # 0..1; a half is a tie
    weight: float  # games it counts for
    prompt: int  # games of one prompt are resampled together


class Judged(NamedTuple):
    """What the games say of one backend, 0..1, with its 95 % interval."""

    name: str
    low: float
    mid: float
    high: float
    games: int

    @property
    def weight(self) -> float:
        """How many independent scores a mean with this interval would take; at most one for each
        prompt, since games that all ended alike have no spread to resample."""
        error = max((self.high - self.low) / (2 * 1.96), 1e-3)
        return float(min(max(self.mid * (1.0 - self.mid), 0.02) / error**2, self.games / 2))


def judged(
    games: Sequence[Game], known: Mapping[str, float], *, rounds: int = ROUNDS, seed: int = 0
) -> list[Judged]:
    """The quality of every backend in the games, best first.

    ``known`` has qualities from elsewhere, 0..1, which set the level; without any it is .5. The
    same games and seed give the same figures. Backends that no chain of games joins are levelled
    apart, since nothing compares them.
    """
    if not games:
        return []
    names = sorted({name for game in games for name in game[:2]})
    place = {name: i for i, name in enumerate(names)}
    first = np.array([place[g.first] for g in games])
    second = np.array([place[g.second] for g in games])
    points = np.array([g.points for g in games])
    weights = np.array([g.weight for g in games])
    prompts = np.unique([g.prompt for g in games], return_inverse=True)[1]
    often = np.ones((rounds + 1, int(prompts.max()) + 1))  # row 0: the games as they were
    share = np.full(often.shape[1], 1.0 / often.shape[1])
    often[1:] = np.random.default_rng(seed).multinomial(often.shape[1], share, size=rounds)
    size = len(names)
    wins = np.zeros((rounds + 1, size, size))
    for row in range(rounds + 1):
        times = often[row][prompts] * weights
        won = np.bincount(first * size + second, times * points, size * size)
        lost = np.bincount(second * size + first, times * (1.0 - points), size * size)
        wins[row] = (won + lost).reshape(size, size)
    met = (wins[0] + wins[0].T) > 0
    wins += _UNDECIDED / 2 * met
    strengths = _strengths(wins)
    number = np.bincount(first, minlength=size) + np.bincount(second, minlength=size)
    anchors = np.array([_log_odds(known.get(name, 0.5)) for name in names])
    trusted = np.array([name in known for name in names])
    for island in _islands(met):
        level = island & trusted if (island & trusted).any() else island
        parts = number[level] / number[level].sum()
        shift = (anchors[level] @ parts) - strengths[:, level] @ parts
        strengths[:, island] += shift[:, None]
    quality = 1.0 / (1.0 + np.exp(-strengths))
    low, high = np.quantile(quality[1:], [0.025, 0.975], axis=0)
    mids = quality[0]
    found = [
        Judged(
            name,
            float(min(low[i], mids[i])),
            float(mids[i]),
            float(max(high[i], mids[i])),
            int(number[i]),
        )
        for i, name in enumerate(names)
    ]
    return sorted(found, key=lambda each: (-each.mid, each.name))


def _strengths(wins: Floats) -> Floats:
    """Log-strengths of most likelihood of each table of wins (minorise-maximise, Hunter 2004)."""
    games = wins + wins.transpose(0, 2, 1)
    own = wins.sum(axis=2)
    strength = np.ones(own.shape)
    for _ in range(_STEPS):
        each = (games / (strength[:, :, None] + strength[:, None, :])).sum(axis=2)
        new = own / each
        new /= np.exp(np.log(new).mean(axis=1, keepdims=True))
        settled = bool(np.abs(new / strength - 1.0).max() < 1e-6)
        strength = new
        if settled:
            break
    logs: Floats = np.log(strength)
    return logs


def _islands(met: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Which backends chains of games join."""
    reach = met | np.eye(len(met), dtype=bool)
    for _ in range(len(met).bit_length()):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    seen = np.zeros(len(met), dtype=bool)
    found = []
    for i in range(len(met)):
        if not seen[i]:
            found.append(reach[i])
            seen |= reach[i]
    return found


def _log_odds(quality: float) -> float:
    inside = min(max(quality, _EDGE), 1.0 - _EDGE)
    return log(inside / (1.0 - inside))
