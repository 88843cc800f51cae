"""What of a window was ours and what was others', where both were at work. Pure.

Of our requests nearly all is known: their lengths, their first tokens, their ends. Of others' only
what the engine counts: how many tokens, not how long a context each was generated with, and of
prompts only when they were done, not when they were computed. So where a window has more energy
than ours and theirs are modelled to take, or less, that is theirs rather than ours.

Two things that last are followed from window to window (a Kalman filter, smoothed where later
windows are known): the level, how many times the modelled energy is metered, which is a tenth off
at first and drifts with heat and clocks; and how far others' contexts are from ours, which other
callers change. What then remains of a window's energy goes to both in proportion to the variances
of what they are modelled to take in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from meters.phases import Floats
from meters.shared import Bill

OURS_OFF = 0.03  # relative standard deviation of what ours take in one window
LEVEL_OFF = 0.1  # that of the model as a whole, before anything was seen
DRIFT = 2 * 0.01**2 / 60.0  # its variance added in a second: a hundredth off, another in a minute
LASTS_S = 6.0  # how long others' contexts are as long as they were
LEAST_LEVEL = 0.05  # energy is never negative, whatever a window's outlier says
LEAST_OURS = 0.01  # of what ours are modelled to take, however little is left


class Level(NamedTuple):
    """What is known of one node as of a time: the level and others' contexts, with covariance.

    Others' contexts in standard deviations of what they were taken to cost (``Bill.lasting``).
    """

    times: float = 1.0
    others: float = 0.0
    times_var: float = LEVEL_OFF**2
    both_var: float = 0.0
    others_var: float = 1.0
    at_s: float = -math.inf

    def at(self, at_s: float) -> Level:
        """As it is known later, with nothing more seen."""
        passed_s = max(at_s - self.at_s, 0.0)
        kept = math.exp(-passed_s / LASTS_S)
        drift = DRIFT * passed_s if math.isfinite(passed_s) else 0.0
        return Level(
            self.times,
            kept * self.others,
            min(self.times_var + drift, LEVEL_OFF**2),
            kept * self.both_var,
            kept * kept * self.others_var + 1 - kept * kept,
            at_s,
        )

    def after(self, above: float, modelled: float, lasting: float, variance: float) -> Level:
        """With a window seen: ``above = times·modelled + others·lasting``, give or take."""
        times = self.times_var * modelled + self.both_var * lasting
        others = self.both_var * modelled + self.others_var * lasting
        spread = modelled * times + lasting * others + variance
        if not spread > 0:
            return self
        off = (above - self.times * modelled - self.others * lasting) / spread
        return Level(
            max(self.times + times * off, LEAST_LEVEL),
            self.others + others * off,
            self.times_var - times * times / spread,
            self.both_var - times * others / spread,
            self.others_var - others * others / spread,
            self.at_s,
        )


NOTHING_SEEN = Level()


class Split(NamedTuple):
    """A bill with others' part as the energy says, and what was known after each window."""

    bill: Bill
    levels: list[Level]


def split(
    bill: Bill, above: Floats, middles: Floats, level: Level = NOTHING_SEEN, since: int = 0
) -> Split:
    """``bill`` with others' part as the energy above idle says.

    ``level``: what was known before the window ``since``; those before it say nothing more.
    """
    ours = bill.by_window()
    modelled = ours + bill.external
    variance = (OURS_OFF * ours) ** 2 + bill.doubt**2
    used = (above > 0) & (ours > 0) & (np.arange(len(ours)) >= since)
    both = used & ((bill.doubt > 0) | (bill.lasting > 0))
    seen = np.stack([above, modelled, bill.lasting, variance], axis=1).tolist()
    levels = []
    for i, row in enumerate(seen):
        level = level.at(float(middles[i]))
        level = level.after(*row) if used[i] else level
        levels.append(level)
    if not both.any():
        return Split(bill, levels)
    times, others = _smoothed(levels)
    with np.errstate(invalid="ignore", divide="ignore"):
        beyond = above - times * modelled - others * bill.lasting
        us = times * ours + (OURS_OFF * ours) ** 2 / variance * beyond
        us = np.minimum(np.maximum(us, LEAST_OURS * times * ours), above)
        external = np.where(both, ours * (above - us) / us, bill.external)
    external = np.where(np.isfinite(external), external, bill.external)
    return Split(bill._replace(external=external), levels)


def _smoothed(levels: Sequence[Level]) -> tuple[Floats, Floats]:
    """Level and others' contexts in each window, as all windows together tell (Rauch, Tung and
    Striebel's smoother)."""
    times, others = np.empty(len(levels)), np.empty(len(levels))
    later = levels[-1]
    times[-1], others[-1] = at = later.times, later.others
    for i in range(len(levels) - 2, -1, -1):
        known = levels[i]
        ahead = known.at(levels[i + 1].at_s)
        kept = math.exp(-max(ahead.at_s - known.at_s, 0.0) / LASTS_S)
        size = ahead.times_var * ahead.others_var - ahead.both_var**2
        off = at[0] - ahead.times, at[1] - ahead.others
        solved = (
            (ahead.others_var * off[0] - ahead.both_var * off[1]) / size,
            (ahead.times_var * off[1] - ahead.both_var * off[0]) / size,
        )
        at = (
            known.times + known.times_var * solved[0] + kept * known.both_var * solved[1],
            known.others + known.both_var * solved[0] + kept * known.others_var * solved[1],
        )
        times[i], others[i] = max(at[0], LEAST_LEVEL), at[1]
    return times, others
