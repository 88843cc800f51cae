"""What every meter must do, whatever it reads. Each check takes a fresh, working meter.

A test runs every check against every kind; run them against your own meter too:

    for check in CHECKS: check(MyMeter())
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite

from meters.types import Evidence, Meter, MeterUnavailable


def check_says_what_it_is(meter: Meter) -> None:
    assert meter.name
    assert isinstance(meter.evidence, Evidence)
    assert meter.resolution_j is None or meter.resolution_j >= 0


def check_names_each_device_once(meter: Meter) -> None:
    devices = [r.device for r in meter.read()]
    assert devices
    assert len(set(devices)) == len(devices)


def check_keeps_its_devices(meter: Meter) -> None:
    first = {r.device for r in meter.read()}
    assert all({r.device for r in meter.read()} == first for _ in range(5))


def check_never_goes_back(meter: Meter) -> None:
    """Neither in time nor in energy; both are finite."""
    before = {r.device: r for r in meter.read()}
    for _ in range(20):
        for now in meter.read():
            assert isfinite(now.energy_j)
            assert isfinite(now.at_s)
            assert now.at_s >= before[now.device].at_s
            assert now.energy_j >= before[now.device].energy_j
            before[now.device] = now


def check_joules_not_millijoules(meter: Meter, max_power_w: float = 5_000.0) -> None:
    """Between two looks no device uses more than any board can draw."""
    first = {r.device: r for r in meter.read()}
    for _ in range(50):
        last = meter.read()
    for now in last:
        then = first[now.device]
        # a counter may jump by one update, at most a tenth of a second's worth
        assert now.energy_j - then.energy_j <= max_power_w * (now.at_s - then.at_s + 0.1)


def check_closing_twice_is_closing_once(meter: Meter) -> None:
    meter.read()
    meter.close()
    meter.close()


def check_read_after_close_is_a_reading_or_a_reason(meter: Meter) -> None:
    meter.read()
    meter.close()
    said = ""
    try:
        said = str(meter.read())
    except MeterUnavailable as why:
        said = str(why)
    meter.close()
    assert said
    assert said != "[]"


CHECKS: tuple[Callable[[Meter], None], ...] = (
    check_says_what_it_is,
    check_names_each_device_once,
    check_keeps_its_devices,
    check_never_goes_back,
    check_joules_not_millijoules,
    check_closing_twice_is_closing_once,
    check_read_after_close_is_a_reading_or_a_reason,
)
