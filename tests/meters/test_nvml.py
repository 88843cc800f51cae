"""NVML: the counter, the fall-backs, and every way a GPU can be out of reach."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from meters.nvml import NvmlMeter
from meters.types import MeterUnavailable
from tests.fakes.nvml import FakeGpu, FakeNvml, build_library, driver


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fake(clock: Clock) -> Iterator[FakeNvml]:
    fake = FakeNvml([FakeGpu()], clock)
    with driver(fake):
        yield fake


def open_meter(clock: Clock, *devices: int | str) -> NvmlMeter:
    return NvmlMeter(devices or None, clock=clock, sleep=clock.sleep)


def energy_of(meter: NvmlMeter, clock: Clock, seconds: float, looks: int = 50) -> float:
    first = meter.read()[0].energy_j
    for _ in range(looks):
        clock.sleep(seconds / looks)
        last = meter.read()[0].energy_j
    return last - first


def test_the_counter_is_read_in_joules(fake: FakeNvml, clock: Clock) -> None:
    meter = open_meter(clock)
    assert energy_of(meter, clock, 10.0) == pytest.approx(3000.0, abs=31)
    assert meter.relative_error == 0
    assert meter.resolution_j == 0.001
    assert meter.driver == "999.99"
    assert meter.device_names == {"gpu0": "Fake board"}


def test_gpus_are_chosen_by_index_and_by_uuid(fake: FakeNvml, clock: Clock) -> None:
    fake.gpus[:] = [FakeGpu(uuid=f"GPU-fake-{n}") for n in range(4)]
    assert [r.device for r in open_meter(clock).read()] == ["gpu0", "gpu1", "gpu2", "gpu3"]
    assert [r.device for r in open_meter(clock, 2).read()] == ["gpu2"]
    assert [r.device for r in open_meter(clock, "GPU-fake-3", "1").read()] == ["gpu3", "gpu1"]


def test_a_gpu_that_is_not_there_is_named(fake: FakeNvml, clock: Clock) -> None:
    with pytest.raises(MeterUnavailable, match=r"GPU 7: No such GPU\. nvidia-smi -L"):
        open_meter(clock, 7)
    with pytest.raises(MeterUnavailable, match=r"GPU GPU-x: No such GPU"):
        open_meter(clock, "GPU-x")
    with pytest.raises(MeterUnavailable, match=r"named twice"):
        open_meter(clock, 0, "GPU-fake-0")


@pytest.mark.parametrize("energy", ["zero", "still", "unsupported"])
def test_a_counter_that_does_not_count_falls_back_to_power(
    fake: FakeNvml, clock: Clock, energy: str
) -> None:
    fake.gpus[0].energy = energy
    meter = open_meter(clock)
    assert energy_of(meter, clock, 10.0) == pytest.approx(3000.0)
    assert meter.relative_error == 0.05
    assert "instant power is integrated" in meter.notes[0]


def test_without_the_instant_field_the_averaged_power_is_used(fake: FakeNvml, clock: Clock) -> None:
    fake.gpus[0].energy, fake.gpus[0].instant = "unsupported", False
    meter = open_meter(clock)
    assert "averaged power" in meter.notes[0]
    assert energy_of(meter, clock, 1.0) == pytest.approx(300.0)


def test_a_gpu_with_neither_counter_nor_power_is_unavailable(fake: FakeNvml, clock: Clock) -> None:
    fake.gpus[0] = FakeGpu(energy="unsupported", instant=False, power=False)
    with pytest.raises(MeterUnavailable, match=r"reports neither energy nor power"):
        open_meter(clock)


def test_a_pause_in_looking_is_a_reset_of_integrated_power(fake: FakeNvml, clock: Clock) -> None:
    fake.gpus[0].energy = "unsupported"
    meter = open_meter(clock)
    energy_of(meter, clock, 10.0)
    before_j = meter.read()[0].energy_j
    clock.sleep(60)
    assert meter.read()[0].energy_j < before_j


def test_mig_is_the_whole_gpu_and_says_so(fake: FakeNvml, clock: Clock) -> None:
    fake.gpus[0].mig = True
    assert "split by MIG" in open_meter(clock).notes[0]
    with pytest.raises(MeterUnavailable, match=r"whole GPU's"):
        open_meter(clock, "MIG-abc")


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "kernel driver is not loaded"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "No permission"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "updated while running"),
        (pynvml.NVML_ERROR_UNKNOWN, "NVML says"),
    ],
)
def test_a_driver_that_will_not_open_says_what_to_do(
    fake: FakeNvml, clock: Clock, code: int, advice: str
) -> None:
    fake.init_error = code
    with pytest.raises(MeterUnavailable, match=advice):
        open_meter(clock)


def test_no_driver_library_says_what_to_do(clock: Clock) -> None:
    with driver(None):
        try:
            ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            with pytest.raises(MeterUnavailable, match=r"libnvidia-ml\.so\.1.*--gpus all"):
                open_meter(clock)


def test_no_gpu_at_all_says_what_to_do(fake: FakeNvml, clock: Clock) -> None:
    fake.gpus.clear()
    with pytest.raises(MeterUnavailable, match="sees no GPU"):
        open_meter(clock)


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (pynvml.NVML_ERROR_GPU_IS_LOST, "fallen off the bus"),
        (pynvml.NVML_ERROR_RESET_REQUIRED, "ECC"),
    ],
)
def test_a_gpu_that_is_lost_leaves_the_others_readable(
    fake: FakeNvml, clock: Clock, code: int, advice: str
) -> None:
    fake.gpus.append(FakeGpu(uuid="GPU-fake-1"))
    meter = open_meter(clock)
    fake.gpus[1].error = code
    assert [r.device for r in meter.read()] == ["gpu0"]
    assert advice in meter.missing["gpu1"]
    fake.gpus[0].error = code
    with pytest.raises(MeterUnavailable, match=advice):
        meter.read()


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED])
def test_a_gpu_that_was_reset_is_found_again_while_the_others_are_read(
    fake: FakeNvml, clock: Clock, code: int
) -> None:
    fake.gpus.append(FakeGpu(uuid="GPU-fake-1"))
    meter = open_meter(clock)
    fake.gpus[1].error, fake.gpus[1].until_opened = code, 2  # only a library opened anew sees it
    for _ in range(25):
        clock.sleep(1)
        assert [r.device for r in meter.read()] == ["gpu0"]
    assert fake.opened == 1  # not at every look
    for _ in range(10):
        clock.sleep(1)
        found = [r.device for r in meter.read()]
    assert found == ["gpu0", "gpu1"]
    assert meter.missing == {}
    assert fake.opened == 2


def test_a_gpu_that_stays_lost_disturbs_no_other(fake: FakeNvml, clock: Clock) -> None:
    fake.gpus.append(FakeGpu(uuid="GPU-fake-1"))
    meter = open_meter(clock)
    fake.gpus[1].error = pynvml.NVML_ERROR_GPU_IS_LOST
    before_j = meter.read()[0].energy_j
    for _ in range(100):
        clock.sleep(1)
        assert [r.device for r in meter.read()] == ["gpu0"]
    assert meter.read()[0].energy_j - before_j == pytest.approx(100 * 300, rel=0.01)
    assert "fallen off the bus" in meter.missing["gpu1"]


def test_a_gpu_without_permission_is_left_out_unless_it_was_asked_for(
    fake: FakeNvml, clock: Clock
) -> None:
    fake.gpus.append(FakeGpu(uuid="GPU-fake-1", error=pynvml.NVML_ERROR_NO_PERMISSION))
    meter = open_meter(clock)
    assert [r.device for r in meter.read()] == ["gpu0"]
    assert "No permission" in meter.missing["gpu1"]
    with pytest.raises(MeterUnavailable, match="No permission"):
        open_meter(clock, 1)


def test_after_a_driver_reload_the_next_read_opens_it_again(fake: FakeNvml, clock: Clock) -> None:
    meter = open_meter(clock)
    before_j = meter.read()[0].energy_j
    fake.open = False  # the library no longer knows us
    with pytest.raises(MeterUnavailable, match="reloaded under the meter"):
        meter.read()
    fake.gpus[0].zero_mj = 0  # the counter began anew
    assert meter.read()[0].energy_j < before_j
    assert fake.opened == 2


def test_closing_twice_is_closing_once(fake: FakeNvml, clock: Clock) -> None:
    meter = open_meter(clock)
    meter.close()
    meter.close()
    assert not fake.open
    assert meter.read()  # and reading opens it again


def test_through_a_c_library_as_with_a_real_driver(tmp_path: Path) -> None:
    library = build_library(tmp_path)
    if library is None:
        pytest.skip("no C compiler on this machine")
    with driver(ctypes.CDLL(str(library))):
        meter = NvmlMeter(["GPU-stand-in-0"])
        first, last = meter.read()[0], meter.read()[0]
        assert first.device == "gpu0"
        assert last.energy_j >= first.energy_j > 0
        assert meter.driver == "000.00 stand-in"
        meter.close()
    assert "FAKE_NVML_COUNT" not in os.environ
