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
from typing import NamedTuple

from meters.counter_track import CounterTrack, Value
from meters.engines import EngineDelta, difference, differences
from meters.types import EngineCounters, EngineWork, Evidence, Reading, Window

# No accelerator board draws more (GB200 superchip: 2,700 W, NVIDIA data sheet); a leap beyond is
# a counter that was replaced, not energy.
MAX_DEVICE_POWER_W = 5_000.0
# The densest rack sold draws 132 kW (NVIDIA GB200 NVL72, data sheet); a window above is a mistake.
MAX_POWER_W = 200_000.0


class _Boundary(NamedTuple):
    at_s: float
    counters: EngineCounters | None


class _Start(NamedTuple):
    boundary: _Boundary
    devices: dict[str, Value]
    host: dict[str, Value] | None


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
        self._devices: dict[str, CounterTrack] = {}
        self._host: dict[str, CounterTrack] = {}
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

    def _add(self, tracks: dict[str, CounterTrack], reading: Reading) -> str | None:
        track = tracks.get(reading.device)
        if track is None:
            track = CounterTrack(reading.device, self._max_power_w, self._continuous)
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

    def _values(self, tracks: dict[str, CounterTrack], at_s: float) -> dict[str, Value] | None:
        values: dict[str, Value] = {}
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
        self, end: _Boundary, values: dict[str, Value], host: dict[str, Value]
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
        self, start: _Start, end: _Boundary, values: dict[str, Value], host: dict[str, Value]
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
            engines=_did_each(start.boundary.counters, end.counters),
        )
        self._number += 1
        return window

    def _host_energy(self, start: _Start, host: dict[str, Value]) -> float | None:
        if self._host_void or not host or start.host is None or host.keys() != start.host.keys():
            return None
        return sum(v.energy_j - start.host[d].energy_j for d, v in host.items())


def _did(before: EngineCounters | None, after: EngineCounters | None) -> EngineDelta:
    """What the engine did; all unknown when it was not asked, restarted or does not say."""
    nothing = EngineDelta(seconds=0.0)
    if before is None or after is None:
        return nothing
    return difference(before, after) or nothing


def _did_each(
    before: EngineCounters | None, after: EngineCounters | None
) -> tuple[EngineWork, ...]:
    if before is None or after is None:
        return ()
    return differences(before, after)
