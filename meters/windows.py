"""Readings and engine counters become closed windows of energy. Pure: no clock, no I/O.

Three rules, each with its reason:

- Energy at a boundary is interpolated between the counter's movements before and after it, and
  one window's end is the next one's start. What one window is given too much the next lacks: an
  error never adds up.
- Nothing is guessed. A counter that fell (reset, driver reload), or leapt by more than the
  device can draw, or a device that vanished, drops the window it happened in, and ``dropped``
  counts it by reason. A gap without any of these loses nothing: the counter went on, and the
  window is only longer.
- A boundary lies where the engine's counters were read, so tokens and joules are of the same
  interval.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from statistics import median
from typing import NamedTuple

from meters.engines import EngineDelta, difference
from meters.types import EngineCounters, Evidence, Reading, Window

# No accelerator board draws more (GB200 superchip: 2,700 W, NVIDIA data sheet); a leap beyond is
# a counter that was replaced, not energy.
MAX_DEVICE_POWER_W = 5_000.0


class _Point(NamedTuple):
    at_s: float  # when the counter was first seen at this value
    energy_j: float
    late_s: float  # how much earlier it may have got there


class _Value(NamedTuple):
    energy_j: float
    unknown_j: float  # half-width, from how late the counter's movements may have been seen


class _Boundary(NamedTuple):
    at_s: float
    counters: EngineCounters | None


class _Start(NamedTuple):
    boundary: _Boundary
    devices: dict[str, _Value]
    host: dict[str, _Value] | None


class _Track:
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

    def at(self, at_s: float, now_s: float) -> _Value | None:
        """Its energy then; None while it may still move. Ask only when anchored."""
        before = self._points[0]
        for point in self._points:
            if point.at_s > at_s:
                power_w = (point.energy_j - before.energy_j) / (point.at_s - before.at_s)
                energy_j = before.energy_j + power_w * (at_s - before.at_s)
                # no rounding may make a later boundary's energy the smaller one
                energy_j = min(energy_j, point.energy_j)
                return _Value(energy_j, power_w * max(before.late_s, point.late_s) / 2)
            before = point
        exact = self._continuous and before.at_s == at_s
        if exact or (self.seen_s >= at_s and now_s - before.at_s > self.patience_s):
            return _Value(before.energy_j, 0.0)
        return None

    def forget_before(self, at_s: float) -> None:
        while len(self._points) > 1 and self._points[1].at_s <= at_s:
            self._points.popleft()


class WindowCloser:
    """Closes windows of one node. Feed readings as they come and boundaries when wanted.

    ``run`` must differ between two runs of the same node (boot id and process start): window
    ids are ``node:run:number``, and a number that is missing at the other end was dropped.
    ``unix_offset_s`` is added to the monotonic times of readings. ``resolution_j`` and
    ``relative_error`` are the meter's own; ``continuous`` says that its counter moves with every
    look (power that is integrated, a simulation), so that a look is never late.
    ``lost_after_s``: a device not seen for so long is left out of further windows.
    """

    def __init__(
        self,
        *,
        node: str,
        run: str,
        meter: str = "",
        evidence: Evidence = Evidence.METERED,
        unix_offset_s: float = 0.0,
        resolution_j: float | None = None,
        relative_error: float = 0.0,
        continuous: bool = False,
        lost_after_s: float = 10.0,
        max_device_power_w: float = MAX_DEVICE_POWER_W,
    ) -> None:
        self.dropped: Counter[str] = Counter()
        self._node, self._run = node, run
        self._meter, self._evidence = meter, evidence
        self._unix_offset_s = unix_offset_s
        self._resolution_j = resolution_j
        self._relative_error = relative_error
        self._continuous = continuous
        self._lost_after_s = lost_after_s
        self._max_power_w = max_device_power_w
        self._devices: dict[str, _Track] = {}
        self._host: dict[str, _Track] = {}
        self._host_void = False
        self._void: str | None = None  # why the open window cannot be closed
        self._pending: deque[_Boundary] = deque()
        self._start: _Start | None = None
        self._number = 0
        self._now_s = float("-inf")

    @property
    def period_s(self) -> float | None:
        """The slowest device's update period, as seen; None before it moved twice."""
        periods = [t.period_s for t in self._devices.values()]
        known = [p for p in periods if p is not None]
        return max(known) if known and len(known) == len(periods) else None

    @property
    def waiting(self) -> bool:
        """Whether a boundary waits for a counter to move."""
        return bool(self._pending)

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that windows are the sum of, now."""
        return tuple(self._devices)

    def read(self, readings: Iterable[Reading]) -> None:
        """Take the readings of one look at the accelerators in."""
        for reading in readings:
            reason = self._add(self._devices, reading)
            if reason:
                self._void = self._void or reason

    def read_host(self, readings: Iterable[Reading]) -> None:
        """Take the readings of one look at CPUs and DRAM in; they have their own column."""
        for reading in readings:
            if self._add(self._host, reading):
                self._host_void = True

    def mark(self, at_s: float, counters: EngineCounters | None = None) -> None:
        """Ask for a boundary; give the engine's counters of that very moment, if it was asked."""
        if not self._pending or at_s > self._pending[-1].at_s:
            self._pending.append(_Boundary(at_s, counters))

    def take(self, now_s: float) -> list[Window]:
        """The windows that can be closed by now (monotonic), in order."""
        self._now_s = max(self._now_s, now_s)
        closed: list[Window] = []
        while self._pending:
            boundary = self._pending[0]
            if not self._lost(boundary):
                values = self._values(self._devices, boundary.at_s)
                host = self._values(self._host, boundary.at_s)
                if values is None or host is None:
                    break  # a counter may still move
                window = self._close(boundary, values, host)
                if window:
                    closed.append(window)
            self._pending.popleft()
        return closed

    def _add(self, tracks: dict[str, _Track], reading: Reading) -> str | None:
        track = tracks.get(reading.device)
        if track is None:
            track = _Track(reading.device, self._max_power_w, self._continuous)
            tracks[reading.device] = track
        self._now_s = max(self._now_s, reading.at_s)
        return track.add(reading.at_s, reading.energy_j)

    def _lost(self, boundary: _Boundary) -> bool:
        """Whether the window up to this boundary is void because of a device."""
        late = self._now_s - boundary.at_s > self._lost_after_s
        gone = [d for d, t in self._devices.items() if late and t.seen_s < boundary.at_s]
        for device in gone:
            del self._devices[device]
        for device in [d for d, t in self._host.items() if late and t.seen_s < boundary.at_s]:
            del self._host[device]
            self._host_void = True
        if gone:
            self._drop("device_missing")
            return True
        new = [t for t in self._devices.values() if not t.anchored(boundary.at_s)]
        if new or not self._devices:
            self._drop(self._void or "device_joined")
            return True
        return False

    def _values(self, tracks: dict[str, _Track], at_s: float) -> dict[str, _Value] | None:
        values: dict[str, _Value] = {}
        for device, track in tracks.items():
            if tracks is self._host and not track.anchored(at_s):
                self._host_void = True
                continue
            value = track.at(at_s, self._now_s)
            if value is None:
                return None
            values[device] = value
        return values

    def _drop(self, reason: str) -> None:
        if self._start is not None:
            self._number += 1
            self.dropped[reason] += 1
        self._start, self._void = None, None

    def _close(
        self, end: _Boundary, values: dict[str, _Value], host: dict[str, _Value]
    ) -> Window | None:
        if self._void:
            # the reset is behind this boundary, and the counter moves again since
            self._drop(self._void)
        start = self._start
        window = None
        if start is not None and values.keys() == start.devices.keys():
            window = self._window(start, end, values, host)
        elif start is not None:
            self._drop("device_joined")
        self._start = _Start(end, values, host or None)
        self._host_void = False
        for track in (*self._devices.values(), *self._host.values()):
            track.forget_before(end.at_s)
        return window

    def _window(
        self, start: _Start, end: _Boundary, values: dict[str, _Value], host: dict[str, _Value]
    ) -> Window:
        energy_j, unknown_j = 0.0, 0.0
        for device, value in values.items():
            before = start.devices[device]
            energy_j += value.energy_j - before.energy_j
            unknown_j += before.unknown_j + value.unknown_j
        resolution_j = None
        if self._resolution_j is not None:
            resolution_j = unknown_j + self._resolution_j + self._relative_error * energy_j
        done = _did(start.boundary.counters, end.counters)
        window = Window(
            window_id=f"{self._node}:{self._run}:{self._number}",
            node=self._node,
            start_s=start.boundary.at_s + self._unix_offset_s,
            end_s=end.at_s + self._unix_offset_s,
            energy_j=energy_j,
            prompt_tokens=done.prompt_tokens,
            cached_prompt_tokens=done.cached_prompt_tokens,
            generated_tokens=done.generated_tokens,
            steps=done.steps,
            running=done.running,
            waiting=done.waiting,
            flops=done.flops,
            read_bytes=done.read_bytes,
            evidence=self._evidence,
            meter=self._meter,
            resolution_j=resolution_j,
            host_energy_j=self._host_energy(start, host),
            devices=tuple(values),
            engine_version=end.counters.version if end.counters else None,
            asleep=end.counters.asleep if end.counters else None,
        )
        self._number += 1
        return window

    def _host_energy(self, start: _Start, host: dict[str, _Value]) -> float | None:
        if self._host_void or not host or start.host is None or host.keys() != start.host.keys():
            return None
        return sum(v.energy_j - start.host[d].energy_j for d, v in host.items())


def _did(before: EngineCounters | None, after: EngineCounters | None) -> EngineDelta:
    """What the engine did; all unknown when it was not asked, restarted or does not say."""
    nothing = EngineDelta(seconds=0.0)
    if before is None or after is None:
        return nothing
    return difference(before, after) or nothing
