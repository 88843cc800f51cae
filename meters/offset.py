"""How far another machine's clock is from ours, from round trips. Pure.

As NTP does it (RFC 5905, section 8): the other's time lies between our sending and our receiving;
the middle is the guess and half the round trip its error, whatever the path. The best sample is
the one with the least error by now, counting what clocks drift apart meanwhile.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import NamedTuple

# Crystals of servers keep within +/- 50 ppm (RFC 5905's own PHI allows 15 ppm after discipline).
DRIFT = 50e-6
KEPT = 32  # samples
_APART_S = 0.5  # below this, two samples tell nothing about how fast clocks drift
_MOST_DRIFT = 0.1  # chrony sets a clock right by 83,333 ppm at most; faster, it was set at once


class _Sample(NamedTuple):
    at_s: float  # our clock
    offset_s: float
    error_s: float


class _Known(NamedTuple):
    at_s: float  # our clock
    offset_s: float


class ClockOffset:
    """Add ``offset_s`` to our clock to get the other's; ``at`` has what to add at an earlier time.

    It is moved only when a sample proves it wrong, so that intervals mapped with it stay next to
    each other instead of trembling by the noise of round trips.
    """

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque(maxlen=KEPT)
        self._offset_s: float | None = None
        self._drift = DRIFT  # seconds a second, as the last two samples have it
        self._known: deque[_Known] = deque(maxlen=KEPT)

    @property
    def drifts(self) -> bool:
        """Whether clocks were last seen to drift apart, or to be set: look again soon."""
        return self._drift > DRIFT

    @property
    def offset_s(self) -> float | None:
        """None before the first sample."""
        return self._offset_s

    def add(self, sent_s: float, other_s: float, received_s: float) -> None:
        """Take one round trip in: when we asked and heard back by our clock, and what it said."""
        if received_s < sent_s:
            return
        middle_s = (sent_s + received_s) / 2
        sample = _Sample(received_s, other_s - middle_s, (received_s - sent_s) / 2)
        if self._samples:
            last, stepped = self._samples[-1], self._stepped(sample)
            if (passed_s := received_s - last.at_s) >= _APART_S:
                apart_s = abs(sample.offset_s - last.offset_s)
                self._drift = max(DRIFT, apart_s / passed_s) if stepped else DRIFT
            if stepped:
                self._samples.clear()
        self._samples.append(sample)
        best = min(self._samples, key=lambda s: _error_s(s, received_s))
        off_s = None if self._offset_s is None else abs(best.offset_s - self._offset_s)
        if off_s is None or off_s > _error_s(best, received_s):
            self._offset_s = best.offset_s
        self._note(_Known(received_s, self._offset_s or 0.0))

    def at(self, at_s: float) -> float | None:
        """The offset at an earlier time of our clock: where it moved between two measurements, it
        is taken to have done so steadily. None before the first sample."""
        if not self._known or at_s >= self._known[-1].at_s:
            return self._offset_s
        for before, after in pairwise(self._known):
            if before.at_s <= at_s < after.at_s:
                part = (at_s - before.at_s) / (after.at_s - before.at_s)
                return before.offset_s + part * (after.offset_s - before.offset_s)
        return self._known[0].offset_s

    def error_s(self, now_s: float, since_s: float | None = None) -> float | None:
        """The most that the offset can be wrong by, now, or at any time from ``since_s`` on while
        clocks drift apart; None before the first sample."""
        if self._offset_s is None:
            return None
        offset_s = self._offset_s
        error_s = min(_error_s(s, now_s) + abs(s.offset_s - offset_s) for s in self._samples)
        if not self.drifts:
            return error_s
        first_s = min(s.at_s for s in self._samples)
        return error_s + self._drift * (now_s - min(first_s, now_s if since_s is None else since_s))

    def _note(self, now: _Known) -> None:
        known = self._known
        if known and now.at_s - known[-1].at_s < _APART_S:
            known.pop()  # of the same measurement
        elif len(known) > 1 and known[-2].offset_s == known[-1].offset_s == now.offset_s:
            known.pop()  # a stretch of the same has two ends
        if known:
            moved_s = abs(now.offset_s - known[-1].offset_s)
            if moved_s > _MOST_DRIFT * (now.at_s - known[-1].at_s):
                known.clear()
        known.append(now)

    def _stepped(self, sample: _Sample) -> bool:
        """Whether one of the clocks was set: the sample cannot be true together with the last."""
        last = self._samples[-1]
        apart_s = abs(sample.offset_s - last.offset_s)
        return apart_s > sample.error_s + _error_s(last, sample.at_s) + 0.001


def _error_s(sample: _Sample, now_s: float) -> float:
    return sample.error_s + DRIFT * max(0.0, now_s - sample.at_s)
