"""Idle power is learnt from idle time, and only from it."""

from __future__ import annotations

import random

import pytest

from meters.idle import SETTLE_S, IdlePower, was_idle
from meters.types import Window


def window(at_s: float, power_w: float, running: float | None = 0.0, **more: object) -> Window:
    fields: dict[str, object] = {"steps": None if running is None else 10 * running, **more}
    return Window(
        window_id=f"n:r:{at_s}",
        node="n",
        start_s=at_s,
        end_s=at_s + 1,
        energy_j=power_w,
        running=running,
        **fields,  # type: ignore[arg-type]
    )


def test_before_any_idle_time_it_is_not_known() -> None:
    assert IdlePower().power_w is None


def test_idle_windows_teach_it_and_busy_ones_do_not() -> None:
    rng, idle = random.Random(1), IdlePower()
    for n in range(300):
        busy = 40 <= n % 100 < 80
        power_w = 600.0 if busy else 75.0 + rng.gauss(0, 1)
        # clocks stay up for some seconds after work
        if 80 <= n % 100 < 80 + SETTLE_S - 1:
            power_w = 140.0
        idle.learn(window(n, power_w, running=8.0 if busy else 0.0))
    assert idle.power_w == pytest.approx(75.0, abs=1.0)


def test_a_new_level_is_taken_over_after_some_agreement() -> None:
    idle = IdlePower()
    for n in range(100):
        idle.learn(window(n, 60.0))
    idle.learn(window(100, 300.0))  # one odd window is none
    assert idle.power_w == 60.0
    for n in range(101, 112):
        idle.learn(window(n, 95.0))  # a second model was loaded
    assert idle.power_w == pytest.approx(95.0)


def test_other_devices_are_another_node() -> None:
    idle = IdlePower()
    for n in range(20):
        idle.learn(window(n, 120.0, devices=("gpu0", "gpu1")))
    idle.learn(window(21, 60.0, devices=("gpu0",)))
    assert idle.power_w == 60.0


def test_without_the_engines_counters_nobody_knows() -> None:
    unclear = window(0, 500.0, running=None)
    assert was_idle(unclear) is None
    idle = IdlePower()
    for n in range(30):
        idle.learn(window(n, 500.0, running=None))
    assert idle.power_w is None
    assert was_idle(window(0, 60.0)) is True
    assert was_idle(window(0, 60.0, generated_tokens=3.0)) is False
