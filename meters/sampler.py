"""Reads a meter several times a second in a thread of its own, and hands over closed windows.

Nothing here can slow serving: the thread is a daemon, asks the engine from another thread and
never waits for it, and whatever fails is counted, said once in the log, and tried again.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from meters.engine_reader import EngineReader, EngineReaders, EngineUnavailable
from meters.idle import IdlePower
from meters.types import EngineCounters, Meter, MeterUnavailable, Window
from meters.windows import WindowCloser

log = logging.getLogger("joulegate.meters")

FASTEST_POLL_S = 0.025
USUAL_POLL_S = 0.1
# A boundary is only as sharp as the look that saw the counter move: look four times as often as
# it moves, within what one percent of a core allows.
LOOKS_A_PERIOD = 4
# Of a core, that reading the meter may take: drivers with many boards are slow to answer.
READING_BUDGET = 0.005
# A window shorter than two updates would be interpolation, not measurement.
PERIODS_A_WINDOW = 2
# A window may grow so many times its length while the engine fails to answer; then it is closed
# without the engine's counters.
PATIENCE_WINDOWS = 3
# The wall clock was set by a person or by its first synchronising, or the machine slept, where it
# moves by more against the monotonic one: both are slowed and sped up alike.
STEP_S = 0.05
# So long without movement is worth saying; sources that are slow to ask get ten times as many.
STILL_S = 10.0
_RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)


class SamplerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a person should know of a running sampler."""

    meter: str | None  # None: not open
    devices: tuple[str, ...]
    windows: int
    dropped: dict[str, int]  # windows that could not be closed, by reason
    update_period_s: float | None  # of the counter, as found
    poll_s: float
    window_s: float
    problems: tuple[str, ...]  # present ones: meter, devices, counter, engine, host
    callback_errors: int


class _Look(NamedTuple):
    ticket: int
    counters: EngineCounters | None


class Sampler:
    """Closes a window about every ``window_s`` seconds.

    ``open_meter`` and ``open_host`` are called in the thread, again after failures; ``open_host``
    gives a second meter whose joules have their own column, or None. ``unix_offset_s`` maps this
    process's monotonic clock to Unix time; by default as the wall clock does, also after somebody
    set that. ``poll_s`` None
    means: as often as the counter's own period needs. ``idle_power_w`` None means: learnt from
    windows in which the engine did nothing, and unknown before there was one.
    """

    def __init__(
        self,
        open_meter: Callable[[], Meter],
        *,
        node: str,
        engine: EngineReader | EngineReaders | None = None,
        open_host: Callable[[], Meter | None] | None = None,
        window_s: float = 1.0,
        poll_s: float | None = None,
        idle_power_w: float | None = None,
        run: str | None = None,
        unix_offset_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._open_meter, self._open_host = open_meter, open_host
        self._node, self._engine = node, engine
        self._window_s, self._poll_s = window_s, poll_s
        self._idle_power_w, self._idle = idle_power_w, IdlePower()
        self._run = run or new_run()
        self._clock = clock
        self._wall = wall if unix_offset_s is None else None
        if unix_offset_s is None:
            found_s = between(wall, clock)
            unix_offset_s = wall() - clock() if found_s is None else found_s
        self._unix_offset_s = unix_offset_s
        self._moved_s = 0.0  # by how much the wall clock was set since
        self._callback: Callable[[Window], None] | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._meter: Meter | None = None
        self._host: Meter | None = None
        self._closer: WindowCloser | None = None
        self._windows = 0
        self._dropped_before: Counter[str] = Counter()
        self._callback_errors = 0
        self._problems: dict[str, str] = {}
        self._asked = threading.Event()
        self._ticket = 0
        self._look: _Look | None = None
        self._min_poll_s = FASTEST_POLL_S
        self._read_cpu_s = 0.0  # what one look costs, smoothed

    def start(self, callback: Callable[[Window], None]) -> None:
        """Begin; the callback gets each window in the sampler's thread. Call it once."""
        if self._thread is not None:
            raise RuntimeError("This sampler is already running.")
        self._callback = callback
        self._thread = threading.Thread(target=self._main, name="joulegate-meter", daemon=True)
        self._thread.start()
        if self._engine is not None:
            threading.Thread(
                target=self._ask_engine, name="joulegate-engine-metrics", daemon=True
            ).start()

    def stop(self) -> None:
        """End, and close the meter. Windows still open are not handed over."""
        self._stopping.set()
        self._asked.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2.0)

    def status(self) -> SamplerStatus:
        closer = self._closer
        return SamplerStatus(
            meter=self._meter.name if self._meter else None,
            devices=closer.devices if closer else (),
            windows=self._windows,
            dropped=dict(self._dropped_before + (closer.dropped if closer else Counter())),
            update_period_s=closer.period_s if closer else None,
            poll_s=self._poll_interval_s(),
            window_s=self._window_length_s(),
            problems=tuple(self._problems.values()),
            callback_errors=self._callback_errors,
        )

    # --- the thread

    def _main(self) -> None:
        failures = 0
        try:
            while not self._stopping.is_set():
                try:
                    self._sample_until_it_fails()
                    failures = 0
                except MeterUnavailable as why:
                    self._problem("meter", str(why))
                except Exception as error:
                    # a driver's binding may raise anything; serving must not notice
                    log.exception("the meter failed")
                    self._problem("meter", f"The meter failed: {type(error).__name__}: {error}.")
                if self._closer is not None and self._windows:
                    failures = 0
                wait_s = _RETRY_S[min(failures, len(_RETRY_S) - 1)]
                failures += 1
                self._stopping.wait(wait_s)
        finally:
            for meter in (self._meter, self._host):
                if meter is not None:
                    meter.close()

    def _sample_until_it_fails(self) -> None:
        if self._meter is None:
            self._meter = self._open_meter()
            self._say_notes(self._meter)
        if self._host is None and self._open_host is not None:
            self._host = self._try_host(self._open_host)
        closer = self._closer or self._new_closer(self._meter)
        self._closer = closer
        self._min_poll_s = max(FASTEST_POLL_S, getattr(self._meter, "min_poll_s", 0.0))
        began_s = next_poll_s = next_tick_s = self._clock()
        waiting_since_s: float | None = None
        last_counters_s: float | None = None
        while not self._stopping.is_set():
            now_s = self._clock()
            before_s = time.thread_time()
            closer.read(self._meter.read())
            self._solve("meter")
            self._say_missing(self._meter)
            self._read_host(closer)
            self._read_cpu_s += 0.1 * (time.thread_time() - before_s - self._read_cpu_s)
            if waiting_since_s is not None:
                look = self._look
                answered = look is not None and look.ticket == self._ticket
                hung = now_s - waiting_since_s > 0.2 + (
                    self._engine.timeout_s if self._engine else 0
                )
                if answered or hung:
                    counters = look.counters if answered and look is not None else None
                    waiting_since_s = None
                    patient = (
                        counters is None
                        and last_counters_s is not None
                        and now_s - last_counters_s < PATIENCE_WINDOWS * self._window_length_s()
                    )
                    if not patient:
                        closer.mark(counters.at_s if counters else now_s, counters)
                        last_counters_s = counters.at_s if counters else None
            elif now_s >= next_tick_s and self._moving(closer, now_s - began_s):
                length_s = self._window_length_s()
                next_tick_s = now_s + length_s - (now_s - next_tick_s) % length_s
                if self._engine is None:
                    closer.mark(now_s)
                else:
                    self._ticket += 1
                    waiting_since_s = now_s
                    self._asked.set()
            before = closer.dropped.copy()
            for window in closer.take(now_s):
                self._deliver(window)
            for reason in closer.dropped - before:
                log.warning("%s: a window was dropped: %s", self._node, reason)
            pause_s = self._poll_interval_s()
            if waiting_since_s is None and not closer.waiting:
                pause_s = self._far_from(next_tick_s - now_s, pause_s)
            next_poll_s = max(next_poll_s + pause_s, self._clock())
            self._stopping.wait(next_poll_s - self._clock())

    def _ask_engine(self) -> None:
        assert self._engine is not None
        while True:
            self._asked.wait()
            self._asked.clear()
            if self._stopping.is_set():
                self._engine.close()
                return
            ticket = self._ticket
            counters = None
            try:
                counters = self._engine.read()
                self._solve("engine")
            except EngineUnavailable as why:
                self._problem("engine", str(why))
            except Exception as error:
                log.exception("the engine's metrics could not be read")
                self._problem("engine", f"{self._engine.url}: {type(error).__name__}: {error}.")
            self._look = _Look(ticket, counters)

    # --- parts

    def _new_closer(self, meter: Meter) -> WindowCloser:
        return WindowCloser(
            node=self._node,
            run=self._run,
            meter=meter.name,
            evidence=meter.evidence,
            unix_offset_s=self._unix_offset_s,
            resolution_j=meter.resolution_j,
            relative_error=getattr(meter, "relative_error", 0.0),
            continuous=getattr(meter, "continuous", False),
        )

    def _moving(self, closer: WindowCloser, since_s: float) -> bool:
        """Whether every counter was seen moving twice, so that its period is known."""
        if closer.period_s is not None:
            self._solve("counter")
            return True
        if since_s > max(STILL_S, STILL_S * self._min_poll_s * 10):
            self._problem("counter", f"A counter has not moved in {STILL_S:g} s or more of looks.")
        return False

    def _deliver(self, window: Window) -> None:
        assert self._callback is not None
        self._windows += 1
        self._idle.learn(window)
        window = self._in_present_time(window)
        idle_w = self._idle_power_w if self._idle_power_w is not None else self._idle.power_w
        try:
            self._callback(msgspec.structs.replace(window, idle_power_w=idle_w))
        except Exception:
            self._callback_errors += 1
            log.exception("a window could not be handed over")

    def _in_present_time(self, window: Window) -> Window:
        """The window by the wall clock as it is set now, which requests have their times from: in
        another they would have no part in it, and all of it would be others'."""
        offset_s = None if self._wall is None else between(self._wall, self._clock)
        if offset_s is not None:
            moved_s = offset_s - self._unix_offset_s
            if abs(moved_s - self._moved_s) > STEP_S:
                log.warning(
                    "%s: the clock was set by %+.1f s; windows follow it",
                    self._node,
                    moved_s - self._moved_s,
                )
                self._moved_s = moved_s
        if not self._moved_s:
            return window
        start_s, end_s = window.start_s + self._moved_s, window.end_s + self._moved_s
        return msgspec.structs.replace(window, start_s=start_s, end_s=end_s)

    def _try_host(self, open_host: Callable[[], Meter | None]) -> Meter | None:
        try:
            return open_host()
        except MeterUnavailable as why:
            log.info("%s: host energy is not read, so it is modelled: %s", self._node, why)
            self._open_host = None
            return None

    def _read_host(self, closer: WindowCloser) -> None:
        if self._host is None:
            return
        try:
            closer.read_host(self._host.read())
            self._solve("host")
        except MeterUnavailable as why:
            self._problem("host", str(why))

    def _poll_interval_s(self) -> float:
        if self._poll_s is not None:
            return self._poll_s
        meter, closer = self._meter, self._closer
        usual_s = max(USUAL_POLL_S, self._min_poll_s)
        if meter is not None and getattr(meter, "continuous", False):
            return usual_s
        least_s = min(max(self._min_poll_s, self._read_cpu_s / READING_BUDGET), usual_s)
        period_s = closer.period_s if closer else None
        if period_s is None:
            return least_s  # find out
        return min(max(period_s / LOOKS_A_PERIOD, least_s), usual_s)

    def _far_from(self, boundary_s: float, pause_s: float) -> float:
        """Only the movements next to a boundary count: in between, look as rarely as is usual."""
        period_s = self._closer.period_s if self._closer else None
        if self._poll_s is not None or period_s is None:
            return pause_s
        usual_s = max(USUAL_POLL_S, self._min_poll_s)
        return usual_s if boundary_s > 2 * period_s + usual_s else pause_s

    def _window_length_s(self) -> float:
        period_s = self._closer.period_s if self._closer else None
        return max(self._window_s, PERIODS_A_WINDOW * (period_s or 0.0))

    def _say_notes(self, meter: Meter) -> None:
        for note in getattr(meter, "notes", ()):
            log.warning("%s: %s", meter.name, note)

    def _say_missing(self, meter: Meter) -> None:
        """What the meter cannot read beside what it can: windows go on without it."""
        if missing := getattr(meter, "missing", None):
            self._problem("devices", "; ".join(missing.values()))
        else:
            self._solve("devices")

    def _problem(self, part: str, why: str) -> None:
        if self._problems.get(part) != why:
            self._problems[part] = why
            log.warning("%s, %s: %s", self._node, part, why)

    def _solve(self, part: str) -> None:
        if self._problems.pop(part, None) is not None:
            log.warning("%s, %s: it is read again", self._node, part)


def between(wall: Callable[[], float], clock: Callable[[], float]) -> float | None:
    """How far the wall clock is ahead of the other, in seconds; None where the processor was taken
    away between two looks, so that they do not belong together."""
    for _ in range(3):
        before_s, wall_s, after_s = clock(), wall(), clock()
        if after_s - before_s < STEP_S / 5:
            return wall_s - (before_s + after_s) / 2
    return None


def new_run() -> str:
    """A name that no other run of this node has: the boot's id and a random part."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        boot = "noboot"
    return f"{boot}-{secrets.token_hex(4)}"
