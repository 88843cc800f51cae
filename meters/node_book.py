"""What was accepted of one node's windows: ids, intervals, numbers. Pure and bounded."""

from __future__ import annotations

import bisect
from collections import OrderedDict

import msgspec

from meters.types import Window

# Hours of windows at one a second: what is older is left to the ledger, which knows every id.
_KEPT_IDS = 20_000
_KEPT_INTERVALS = 20_000


class NodeStatus(msgspec.Struct, kw_only=True):
    """What is known of one agent."""

    last_heard_s: float  # Unix time of its last batch
    last_end_s: float | None = None  # end of its newest accepted window
    clock_off_s: float | None = None  # its clock minus ours, at its last batch
    missing: int = 0  # windows that were dropped at the node: numbers that never came
    meter: str = ""


class NodeBook:
    """What was accepted of one node: ids, intervals, numbers. Bounded: the oldest are forgotten."""

    def __init__(self) -> None:
        self.status = NodeStatus(last_heard_s=0.0)
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._starts: list[float] = []
        self._ends: list[float] = []
        self._numbers: dict[str, int] = {}  # run -> highest number

    def has(self, window_id: str) -> bool:
        return window_id in self._ids

    def is_older(self, window: Window) -> bool:
        return bool(self._ends) and window.start_s < self._ends[-1]

    def overlap_s(self, window: Window) -> float:
        """By how much it overlaps accepted windows."""
        at = bisect.bisect_right(self._ends, window.start_s)
        overlap_s = 0.0
        while at < len(self._starts) and self._starts[at] < window.end_s:
            overlap_s += min(self._ends[at], window.end_s) - max(self._starts[at], window.start_s)
            at += 1
        return overlap_s

    def trimmed(self, window: Window) -> Window | None:
        """The window without what overlaps at its ends; None when nothing would be left."""
        at = bisect.bisect_right(self._ends, window.start_s)
        start_s, end_s = window.start_s, window.end_s
        if at < len(self._starts) and self._starts[at] <= start_s:
            start_s = self._ends[at]
            at += 1
        if at < len(self._starts) and self._starts[at] < end_s:
            end_s = self._starts[at]
        if end_s <= start_s:
            return None
        return msgspec.structs.replace(window, start_s=start_s, end_s=end_s)

    def keep(self, window: Window) -> None:
        if self.has(window.window_id):
            return
        self._ids[window.window_id] = None
        at = bisect.bisect_left(self._starts, window.start_s)
        self._starts.insert(at, window.start_s)
        self._ends.insert(at, window.end_s)
        self.status.last_end_s = self._ends[-1]
        while len(self._ids) > _KEPT_IDS:
            self._ids.popitem(last=False)
        if len(self._starts) > _KEPT_INTERVALS:
            del self._starts[: _KEPT_INTERVALS // 10], self._ends[: _KEPT_INTERVALS // 10]
        self.came(window)

    def came(self, window: Window, refused: bool = False) -> None:
        """Note its number: what was refused is not missing, however often it is sent."""
        run, _, number = window.window_id.rpartition(":")
        if not number.isascii() or not number.isdigit() or len(number) > 18:
            return
        highest = self._numbers.get(run)
        if highest is None:
            self._numbers = {**dict(list(self._numbers.items())[-7:]), run: int(number)}
        elif int(number) > highest:
            self.status.missing += int(number) - highest - 1
            self._numbers[run] = int(number)
        elif not refused:
            self.status.missing = max(0, self.status.missing - 1)  # it was only late
