"""Recognises traffic that did not come through Joulegate, from the engine's counters. Pure.

Our requests and the engine's counters never agree to the token: clocks jitter, and a token may
fall on either side of a window's edge. Such errors come and go, while foreign traffic only ever
adds. So the running difference must first rise by a ``slack`` above where it was lowest; then all
of that rise is foreign, and every new height after it, until it has fallen by the slack again.
"""

from __future__ import annotations

import math

import numpy as np

from meters.counted_work import CountedWork
from meters.phases import Floats

LASTS_S = 60.0  # after foreign traffic, the next needs no proof
LEAST = 0.005  # of all that was counted; less is within what counting differs by


class Beyond:
    """Follows one counter of one engine, from window to window."""

    def __init__(self, foreign: bool = False) -> None:
        """``foreign``: whether there was some until now."""
        self._level = self._lowest = self._highest = 0.0
        self._foreign = foreign
        self._counted = self._found = 0.0

    def beyond(self, counted: Floats, ours: Floats, slack: Floats) -> Floats:
        """What was counted beyond ours, window by window; ``counted`` is NaN where unknown.

        Foreign traffic is noticed late, by one slack. Within one call it is then booked in the
        windows where it was; windows of earlier calls keep what they were given.
        """
        found = np.zeros(len(counted))
        since = 0
        rise = np.maximum(np.nan_to_num(counted - ours), 0.0)
        for i, (engine, own, band) in enumerate(zip(counted, ours, slack, strict=True)):
            if np.isnan(engine):
                continue
            self._level += engine - own
            if self._foreign and self._level > self._highest:
                found[i] = min(self._level - self._highest, engine)
                self._highest = self._level
            elif self._foreign and self._level < self._highest - band:
                self._foreign, self._lowest, since = False, self._level, i + 1
            elif not self._foreign and self._level <= self._lowest:
                self._lowest, since = self._level, i + 1
            elif not self._foreign and self._level > self._lowest + band:
                part = rise[since : i + 1]
                risen = self._level - self._lowest
                found[since : i + 1] = part * min(1.0, risen / max(float(part.sum()), 1e-9))
                self._foreign, self._highest = True, self._level
        self._counted += float(np.nansum(counted))
        self._found += float(found.sum())
        return found if self._found > LEAST * self._counted else np.zeros(len(counted))


class Foreign:
    """What one engine did for others, and how it counts that, remembered between windows."""

    def __init__(self, counted: CountedWork | None = None) -> None:
        self.tokens = Beyond()
        self.prompts = Beyond()
        self.counted = counted or CountedWork()
        self._tokens_s = self._prompts_s = -math.inf

    def note(self, tokens: float, prompts: float, at_s: float) -> None:
        """What was found in a window that ended then."""
        if tokens > 0:
            self._tokens_s = at_s
        if prompts > 0:
            self._prompts_s = at_s

    def anew(self, from_s: float) -> Foreign:
        """To look at windows from then on, some of them again."""
        looking = Foreign(self.counted)
        looking.tokens = Beyond(self._tokens_s > from_s - LASTS_S)
        looking.prompts = Beyond(self._prompts_s > from_s - LASTS_S)
        return looking
