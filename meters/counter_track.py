"""One device's energy counter as it was seen to move, and its value in between. Pure."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import NamedTuple


class _Point(NamedTuple):
    at_s: float  # when the counter was first seen at this value
    energy_j: float
    late_s: float  # how much earlier it may have got there


class Value(NamedTuple):
    energy_j: float
    unknown_j: float  # half-width, from how late the counter's movements may have been seen


class CounterTrack:
    """One device's counter: the moments it moved."""

    def __init__(self, device: str, max_power_w: float, continuous: bool) -> None:
        self.device = device
        self._max_power_w = max_power_w
        self._continuous = continuous
        self._points: deque[_Point] = deque()
        self._gaps_s: deque[float] = deque(maxlen=15)
        self._looks_s: deque[float] = deque(maxlen=16)  # time between two looks
        self._first_s: float | None = None
        self._last: tuple[float, float] | None = None

    @property
    def seen_s(self) -> float:
        return self._last[0] if self._last else float("-inf")

    @property
    def period_s(self) -> float | None:
        """How often it moves, as seen; no shorter than it is looked at."""
        return median(self._gaps_s) if self._gaps_s else None

    @property
    def patience_s(self) -> float:
        """How long after its last movement it is taken to stand still."""
        return max(0.5, 3 * (self.period_s or 0.0))

    def add(self, at_s: float, energy_j: float) -> str | None:
        """Take a reading in; why what came before is void, or None."""
        if self._last is None:
            self._last, self._first_s = (at_s, energy_j), at_s
            if self._continuous:
                self._points.append(_Point(at_s, energy_j, 0.0))
            return None
        before_s, before_j = self._last
        if at_s <= before_s:
            return None  # an older look adds nothing
        moved_s = self._points[-1].at_s if self._points else (self._first_s or before_s)
        reason = None
        if energy_j < before_j:
            reason = "counter_reset"
        elif energy_j - before_j > self._max_power_w * max(at_s - moved_s, 0.05):
            # before the first movement is seen, it may have stood still for any time
            reason = "implausible" if self._points else None
        if reason:
            self._points.clear()
            self._gaps_s.clear()
            self._last = None
            self.add(at_s, energy_j)
            return reason
        self._looks_s.append(at_s - before_s)
        if energy_j > before_j or self._continuous:
            look_s = at_s - before_s
            # a movement seen after a long look away says little of how often it moves
            close_s = 1.5 * sorted(self._looks_s)[len(self._looks_s) // 4] if self._looks_s else 0
            if self._points and look_s <= max(close_s, (at_s - moved_s) / 2):
                self._gaps_s.append(at_s - moved_s)
            late_s = 0.0 if self._continuous else look_s
            self._points.append(_Point(at_s, energy_j, late_s))
        self._last = (at_s, energy_j)
        return None

    def anchored(self, at_s: float) -> bool:
        """Whether it was seen moving at or before then."""
        return bool(self._points) and self._points[0].at_s <= at_s

    def at(self, at_s: float, now_s: float) -> Value | None:
        """Its energy then; None while it may still move. Ask only when anchored."""
        before = self._points[0]
        for point in self._points:
            if point.at_s > at_s:
                power_w = (point.energy_j - before.energy_j) / (point.at_s - before.at_s)
                energy_j = before.energy_j + power_w * (at_s - before.at_s)
                # no rounding may make a later boundary's energy the smaller one
                energy_j = min(energy_j, point.energy_j)
                return Value(energy_j, power_w * max(before.late_s, point.late_s) / 2)
            before = point
        exact = self._continuous and before.at_s == at_s
        if exact or (self.seen_s >= at_s and now_s - before.at_s > self.patience_s):
            return Value(before.energy_j, 0.0)
        return None

    def forget_before(self, at_s: float) -> None:
        while len(self._points) > 1 and self._points[1].at_s <= at_s:
            self._points.popleft()
