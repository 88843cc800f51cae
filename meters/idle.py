"""What a node draws while nothing is asked of it, learnt from windows in which nothing was. Pure.

Idle power is not a constant of a board: loading a model adds a context, sleeping takes weights
away, hot days add fans. It is therefore a slowly moving figure, and follows steps: after
``SWITCH`` windows that agree on another level, that level is the idle power.
"""

from __future__ import annotations

from collections import deque
from statistics import median

from meters.types import Window

KEEP = 120  # idle windows, two minutes of nothing at one a second
SWITCH = 10
# A GPU stays in its higher clocks for some seconds after work (NVIDIA boards step down in stages);
# windows right after work are not idle yet.
SETTLE_S = 5.0


def was_idle(window: Window) -> bool | None:
    """Whether the engine did nothing in a window; None where its counters do not say."""
    work = [window.steps, window.generated_tokens, window.prompt_tokens]
    if any(w is not None and w > 0 for w in work):
        return False
    if window.running is not None and window.running > 0:
        return False
    if window.running is None and all(w is None for w in work):
        return None
    return True


class IdlePower:
    """One node's idle power, in watts, all devices together. Windows in order, by ``learn``."""

    def __init__(self) -> None:
        self._seen_w: deque[float] = deque(maxlen=KEEP)
        self._busy_until_s = float("-inf")
        self._devices: tuple[str, ...] | None = None

    @property
    def power_w(self) -> float | None:
        """The present figure; None before any idle time was seen."""
        return median(self._seen_w) if self._seen_w else None

    def learn(self, window: Window) -> None:
        """Take a window in. Busy ones, ones right after work and unclear ones teach nothing."""
        if window.devices and window.devices != self._devices:
            self._devices = window.devices
            self._seen_w.clear()
        idle = was_idle(window)
        if idle is False:
            self._busy_until_s = max(self._busy_until_s, window.end_s)
        seconds = window.end_s - window.start_s
        settled = window.start_s - self._busy_until_s >= SETTLE_S
        if idle and settled and seconds > 0:
            self._seen_w.append(window.energy_j / seconds)
            recent = list(self._seen_w)[-SWITCH:]
            level_w = median(self._seen_w)
            if len(recent) == SWITCH and (
                min(recent) > 1.05 * level_w or max(recent) < 0.95 * level_w
            ):
                self._seen_w = deque(recent, maxlen=KEEP)
