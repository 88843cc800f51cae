"""Readings become windows: what must hold whatever the counters do."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meters.types import EngineCounters, Evidence, Reading, Window
from meters.windows import WindowCloser


class Gpu:
    """A true power curve and a counter that is updated every so often, as NVML's is."""

    def __init__(self, name: str, period_s: float, phase_s: float = 0.0, zero_j: float = 1e6):
        self.name, self.period_s, self.phase_s, self.zero_j = name, period_s, phase_s, zero_j

    def power_w(self, at_s: float) -> float:
        return 300.0 + 200.0 * math.sin(at_s * 2.1 + self.phase_s)

    def true_j(self, at_s: float) -> float:
        return 300.0 * at_s - 200.0 / 2.1 * math.cos(at_s * 2.1 + self.phase_s)

    def reading(self, at_s: float) -> Reading:
        updated = at_s
        if self.period_s:
            updated = (at_s + self.phase_s) // self.period_s * self.period_s - self.phase_s
        return Reading(self.name, at_s, self.zero_j + self.true_j(updated))


def closer(**changes: object) -> WindowCloser:
    settings: dict[str, object] = {"node": "n1", "run": "b00t", "meter": "nvml", **changes}
    settings.setdefault("resolution_j", 0.001)
    return WindowCloser(**settings)  # type: ignore[arg-type]


def meter(
    gpus: list[Gpu],
    to: WindowCloser,
    *,
    seconds: float,
    poll_s: float = 0.025,
    window_s: float = 1.0,
    jitter_s: float = 0.0,
    change: Callable[[float, list[Reading]], list[Reading]] = lambda _, r: r,
    counters: Callable[[float], EngineCounters | None] = lambda _: None,
) -> Iterator[Window]:
    rng = random.Random(1)
    at_s, next_s = 0.0, window_s
    while at_s < seconds:
        to.read(change(at_s, [g.reading(at_s) for g in gpus]))
        if at_s >= next_s:
            to.mark(at_s, counters(at_s))
            next_s += window_s
        yield from to.take(at_s)
        at_s += poll_s + rng.uniform(0, jitter_s)


def test_windows_of_a_steady_counter_are_right_within_what_they_say() -> None:
    gpu = Gpu("gpu0", period_s=0.1)
    windows = list(meter([gpu], closer(), seconds=30, jitter_s=0.005))
    assert len(windows) >= 27
    errors = [w.energy_j - (gpu.true_j(w.end_s) - gpu.true_j(w.start_s)) for w in windows]
    assert max(abs(e) / w.energy_j for e, w in zip(errors, windows, strict=True)) < 0.05
    within = [abs(e) <= (w.resolution_j or 0) for e, w in zip(errors, windows, strict=True)]
    assert sum(within) >= 0.8 * len(windows)
    # what one window is given too much, another lacks
    whole = gpu.true_j(windows[-1].end_s) - gpu.true_j(windows[0].start_s)
    assert abs(sum(w.energy_j for w in windows) - whole) < 0.004 * whole
    assert all(w.resolution_j is not None and w.resolution_j < 0.06 * w.energy_j for w in windows)


def test_each_window_begins_where_the_last_one_ended() -> None:
    windows = list(meter([Gpu("gpu0", 0.1)], closer(), seconds=8))
    assert all(a.end_s == b.start_s for a, b in itertools.pairwise(windows))
    assert [w.window_id for w in windows[:3]] == ["n1:b00t:0", "n1:b00t:1", "n1:b00t:2"]


def test_the_same_readings_give_the_same_windows() -> None:
    gpus = [Gpu("gpu0", 0.1), Gpu("gpu1", 0.02, phase_s=0.05)]
    once = list(meter(gpus, closer(), seconds=5))
    assert once == list(meter(gpus, closer(), seconds=5))


def test_several_gpus_of_one_engine_are_one_sum() -> None:
    gpus = [Gpu("gpu0", 0.1), Gpu("gpu1", 0.02, phase_s=0.05, zero_j=5.0)]
    windows = list(meter(gpus, closer(), seconds=10))
    assert windows[0].devices == ("gpu0", "gpu1")
    for w in windows:
        true_j = sum(g.true_j(w.end_s) - g.true_j(w.start_s) for g in gpus)
        assert w.energy_j == pytest.approx(true_j, rel=0.04)


def test_a_reset_drops_its_window_and_only_that() -> None:
    def reset(at_s: float, readings: list[Reading]) -> list[Reading]:
        if at_s < 4.5:
            return readings
        return [Reading(r.device, r.at_s, r.energy_j - 1_000_500.0) for r in readings]

    to = closer()
    windows = list(meter([Gpu("gpu0", 0.1)], to, seconds=10, change=reset))
    assert to.dropped == {"counter_reset": 1}
    assert all(0 < w.energy_j < 600 for w in windows)
    numbers = [int(w.window_id.split(":")[-1]) for w in windows]
    assert numbers == [n for n in range(len(windows) + 1) if n != 3]
    assert all(not w.start_s < 4.5 < w.end_s for w in windows)


def test_a_leap_no_board_can_draw_is_not_energy() -> None:
    def leap(at_s: float, readings: list[Reading]) -> list[Reading]:
        more = 1e9 if at_s > 4.5 else 0.0
        return [Reading(r.device, r.at_s, r.energy_j + more) for r in readings]

    to = closer()
    windows = list(meter([Gpu("gpu0", 0.1)], to, seconds=10, change=leap))
    assert to.dropped == {"implausible": 1}
    assert sum(w.energy_j for w in windows) < 10 * 500


def test_a_vanished_gpu_drops_the_window_and_the_others_go_on() -> None:
    def gone(at_s: float, readings: list[Reading]) -> list[Reading]:
        return [r for r in readings if r.device == "gpu0" or at_s < 4.5]

    to = closer(lost_after_s=2.0)
    gpus = [Gpu("gpu0", 0.1), Gpu("gpu1", 0.1)]
    windows = list(meter(gpus, to, seconds=14, change=gone))
    assert to.dropped["device_missing"] == 1
    assert {w.devices for w in windows} == {("gpu0", "gpu1"), ("gpu0",)}
    for w in windows:  # never the sum of two under the name of one, nor the other way round
        true_j = gpus[0].true_j(w.end_s) - gpus[0].true_j(w.start_s)
        assert w.energy_j == pytest.approx(len(w.devices) * true_j, rel=0.05)


def test_a_gpu_that_comes_back_is_counted_again() -> None:
    def away(at_s: float, readings: list[Reading]) -> list[Reading]:
        return [r for r in readings if r.device == "gpu0" or not 4.5 < at_s < 9.5]

    to = closer(lost_after_s=2.0)
    windows = list(meter([Gpu("gpu0", 0.1), Gpu("gpu1", 0.1)], to, seconds=16, change=away))
    assert windows[-1].devices == ("gpu0", "gpu1")


def test_a_gap_in_reading_loses_no_energy() -> None:
    gpu = Gpu("gpu0", 0.1)
    to = closer()
    times = [n * 0.025 for n in range(200)] + [25 + n * 0.025 for n in range(200)]
    windows = []
    for at_s in times:
        to.read([gpu.reading(at_s)])
        if abs(at_s - round(at_s)) < 0.01:
            to.mark(at_s)
        windows += to.take(at_s)
    whole = gpu.true_j(windows[-1].end_s) - gpu.true_j(windows[0].start_s)
    assert windows[-1].end_s > 28
    assert sum(w.energy_j for w in windows) == pytest.approx(whole, rel=0.01)
    assert not to.dropped


def test_tokens_and_joules_are_of_the_same_interval() -> None:
    def counters(at_s: float) -> EngineCounters:
        return EngineCounters(
            at_s=at_s, generated_tokens=100 * at_s, steps=10 * at_s, running=at_s, started_s=1.0
        )

    windows = list(meter([Gpu("gpu0", 0.1)], closer(), seconds=6, counters=counters))
    for w in windows:
        seconds = w.end_s - w.start_s
        assert w.generated_tokens == pytest.approx(100 * seconds)
        assert w.steps == pytest.approx(10 * seconds)
        assert w.running == pytest.approx((w.start_s + w.end_s) / 2)
        assert w.prompt_tokens is None


def test_an_engine_restart_makes_counts_unknown_and_keeps_the_energy() -> None:
    def counters(at_s: float) -> EngineCounters:
        began = 0.0 if at_s < 3.5 else 3.2
        return EngineCounters(at_s=at_s, generated_tokens=100 * (at_s - began))

    windows = list(meter([Gpu("gpu0", 0.1)], closer(), seconds=7, counters=counters))
    unknown = [w for w in windows if w.generated_tokens is None]
    assert len(unknown) == 1
    assert unknown[0].start_s < 3.5 < unknown[0].end_s
    assert unknown[0].energy_j > 0


def test_an_engine_that_does_not_answer_leaves_counts_unknown() -> None:
    windows = list(meter([Gpu("gpu0", 0.1)], closer(), seconds=4))
    assert all(w.generated_tokens is None and w.running is None for w in windows)


def test_host_energy_has_its_own_column() -> None:
    to, gpu, cpu, dram = closer(), Gpu("gpu0", 0.1), Gpu("cpu0", 0.001), Gpu("dram0", 0.001)
    windows = []
    for n in range(200):
        at_s = n * 0.025
        to.read([gpu.reading(at_s)])
        to.read_host([cpu.reading(at_s), dram.reading(at_s)])
        if n % 40 == 39:
            to.mark(at_s)
        windows += to.take(at_s)
    assert windows
    for w in windows:
        gpu_j = gpu.true_j(w.end_s) - gpu.true_j(w.start_s)
        assert w.energy_j == pytest.approx(gpu_j, rel=0.05)
        assert w.host_energy_j == pytest.approx(2 * gpu_j, rel=0.05)
        assert w.devices == ("gpu0",)


def test_a_host_counter_that_fell_makes_host_energy_unknown_not_the_window() -> None:
    to, gpu, cpu = closer(), Gpu("gpu0", 0.1), Gpu("cpu0", 0.001)
    windows = []
    for n in range(240):
        at_s = n * 0.025
        to.read([gpu.reading(at_s)])
        fell = 5e5 if at_s > 2.5 else 0.0
        seen = cpu.reading(at_s)
        to.read_host([Reading("cpu0", seen.at_s, seen.energy_j - fell)])
        if n % 40 == 39:
            to.mark(at_s)
        windows += to.take(at_s)
    without = [w for w in windows if w.host_energy_j is None]
    assert len(without) == 1
    assert without[0].start_s < 2.5 < without[0].end_s
    assert without[0].energy_j > 0


def test_looking_away_between_boundaries_does_not_hide_how_often_a_counter_moves() -> None:
    to, gpu, at_s = closer(), Gpu("gpu0", period_s=0.05), 0.0
    while at_s < 6:
        to.read([gpu.reading(at_s)])
        at_s += 0.01 if at_s % 1.0 < 0.3 else 0.2
    assert to.period_s == pytest.approx(0.05, abs=0.011)


def test_two_looks_in_quick_succession_do_not_hide_how_often_a_counter_moves() -> None:
    to, gpu, at_s = closer(), Gpu("gpu0", period_s=0.02), 0.001
    to.read([gpu.reading(0.0)])
    while at_s < 3:
        to.read([gpu.reading(at_s)])
        at_s += 0.025
    assert to.period_s == pytest.approx(0.025, abs=0.001)


def test_a_counter_that_stands_still_is_not_waited_for_for_ever() -> None:
    to = closer()
    for n in range(40):
        to.read([Reading("gpu0", n * 0.1, 100.0 + min(n, 10))])
    to.mark(0.5)
    to.mark(2.0)
    windows = to.take(3.9)
    assert [w.energy_j for w in windows] == [pytest.approx(5.0)]


def test_the_meters_own_error_is_part_of_the_windows() -> None:
    integrated = closer(continuous=True, relative_error=0.05, resolution_j=1.0)
    windows = list(meter([Gpu("gpu0", 0.0)], integrated, seconds=4, poll_s=0.1))
    assert windows[0].resolution_j == pytest.approx(1.0 + 0.05 * windows[0].energy_j)
    unknown = list(meter([Gpu("gpu0", 0.1)], closer(resolution_j=None), seconds=4))
    assert unknown[0].resolution_j is None


def test_windows_say_their_meter_and_carry_the_clock_they_are_mapped_to() -> None:
    to = closer(evidence=Evidence.SIMULATED, meter="simulated", unix_offset_s=1.7e9)
    window = next(meter([Gpu("gpu0", 0.1)], to, seconds=4))
    assert (window.evidence, window.meter) == (Evidence.SIMULATED, "simulated")
    assert 1.7e9 < window.start_s < window.end_s < 1.7e9 + 4


steps = st.lists(
    st.tuples(st.floats(0.001, 3.0), st.floats(-50.0, 400.0), st.booleans()), max_size=60
)


@given(steps)
def test_whatever_the_counter_does_no_window_is_negative_or_more_than_was_counted(
    moves: list[tuple[float, float, bool]],
) -> None:
    to = closer()
    at_s, energy_j, counted_j = 0.0, 1000.0, 0.0
    windows: list[Window] = []
    for gap_s, rise_j, boundary in moves:
        at_s += gap_s
        energy_j = max(0.0, energy_j + rise_j)
        counted_j += max(0.0, rise_j)
        to.read([Reading("gpu0", at_s, energy_j)])
        if boundary:
            to.mark(at_s)
        windows += to.take(at_s)
    windows += to.take(at_s + 100)
    assert all(w.energy_j >= 0 and w.end_s > w.start_s for w in windows)
    assert sum(w.energy_j for w in windows) <= counted_j + 1e-6
    assert len({w.window_id for w in windows}) == len(windows)
    assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(windows))
