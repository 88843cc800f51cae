"""The recording of a GPU, tried on a driver without one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.record_gpu import Phase, analyse, main, print_report, record
from meters.nvml import NvmlMeter
from meters.replay import RecordingHeader, ReplayMeter, read_recording
from meters.types import Evidence
from tests.fakes.nvml import FakeGpu, FakeNvml, driver

IDLE_W, STEP_J, TOKEN_J, PREFILL_J = 60.0, 0.5, 0.02, 0.004
PHASES = (
    Phase("idle", 0, 0, 0),
    Phase("decode 2", 2, 16, 64),
    Phase("decode 32", 32, 16, 64),
    Phase("prefill", 4, 512, 4),
    Phase("idle after", 0, 0, 0),
)


class FakeEngine:
    """Steps of some milliseconds, counted as the real one counts."""

    name = "fake"

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.done = dict.fromkeys(
            ("steps", "generated_tokens", "prompt_tokens", "context_steps", "running"), 0
        )

    def counts(self) -> dict[str, int]:
        with self.lock:
            return dict(self.done)

    def serve(
        self,
        concurrency: int,
        prompt_tokens: int,
        output_tokens: int,
        going_on: Callable[[], bool],
    ) -> None:
        step = 0
        while going_on():
            time.sleep(0.002)
            step += 1
            prefill = step % max(1, output_tokens // concurrency) == 0
            with self.lock:
                self.done["steps"] += 1
                self.done["prompt_tokens"] += prompt_tokens if prefill else 0
                self.done["generated_tokens"] += 0 if prefill else concurrency

    def energy_j(self) -> float:
        done = self.counts()
        work_j = STEP_J * done["steps"] + TOKEN_J * done["generated_tokens"]
        return IDLE_W * time.monotonic() + work_j + PREFILL_J * done["prompt_tokens"]


class WorkingGpu(FakeNvml):
    """A driver whose counter grows by what the engine did."""

    engine: FakeEngine

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object, out: object) -> int:  # noqa: N802
        out._obj.value = int(1000 * self.engine.energy_j())  # type: ignore[attr-defined]
        return 0


def test_a_recording_is_made_and_the_physics_found_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, path = FakeEngine(), tmp_path / "r.jsonl"
    fake = WorkingGpu([FakeGpu()], time.monotonic)
    fake.engine = engine
    header = RecordingHeader(
        device="Fake", driver="1", date="2026-11-21", evidence=Evidence.SIMULATED
    )
    with driver(fake):
        meter = NvmlMeter([0])
        record(meter, engine, path, header=header, phases=PHASES, phase_s=0.9, settle_s=0.1)
    again, lines = read_recording(path)
    assert again == header
    assert {line.phase for line in lines} == {p.name for p in PHASES}
    report = analyse(path, window_s=0.12)
    assert report.windows >= 20
    assert report.coefficients["idle_power_w"] == pytest.approx(IDLE_W, rel=0.05)
    assert report.coefficients["steps_j"] == pytest.approx(STEP_J, rel=0.15)
    assert report.coefficients["generated_tokens_j"] == pytest.approx(TOKEN_J, rel=0.15)
    assert report.r2_held_out > 0.95
    assert report.median_error < 0.05
    by_name = {p.name: p for p in report.phases}
    assert by_name["idle"].measured_j_per_token is None
    few, many = by_name["decode 2"], by_name["decode 32"]
    assert few.measured_j_per_token is not None
    assert many.measured_j_per_token is not None
    assert few.measured_j_per_token > 3 * many.measured_j_per_token
    print_report(report)
    assert "R2 of power" in capsys.readouterr().out
    # and what was recorded can be played
    assert ReplayMeter(path).read()[0].device == "gpu0"


def test_without_a_gpu_it_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with driver(FakeNvml([], time.monotonic)):
        assert main([]) == 1
    assert "sees no GPU" in capsys.readouterr().err


def test_too_short_a_recording_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"device":"x","driver":"1","date":"d"}\n')
    with pytest.raises(ValueError, match="record for longer"):
        analyse(path)
