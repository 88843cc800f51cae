"""Records a real GPU under a real engine, and says how well the step physics fits it.

    python -m benchmarks.record_gpu                                    # Llama-3.1-8B, bf16
    python -m benchmarks.record_gpu --model qwen2.5-7b --precision int4
    python -m benchmarks.record_gpu --fit tests/recordings/RECORDING.jsonl

Needs one NVIDIA GPU, and PyTorch with CUDA (``pip install torch``); nothing is downloaded. About
12 minutes. Writes every movement of the energy counter and the engine's own counts to one file
in the format of meters/replay.py, with device, driver and date; then prints the report.

The fit: windows of a second, energy = idle power x time + a coefficient >= 0 for each of steps,
generated tokens, cached tokens read, and prefilled tokens. Every fourth window is left out of the
fit and predicted.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from scipy.optimize import nnls

from meters.nvml import NvmlMeter
from meters.replay import RecordingHeader, RecordingLine, read_recording, write_recording
from meters.types import EngineCounters, Evidence, Meter, MeterUnavailable, Window
from meters.windows import WindowCloser

LOOK_S = 0.01
# fields of EngineCounters, and the sum over decode steps of the cached tokens read
WORK = ("steps", "generated_tokens", "context_steps", "prompt_tokens")


class Phase(NamedTuple):
    """So many requests in flight, of such lengths; none for idle."""

    name: str
    concurrency: int
    prompt_tokens: int
    output_tokens: int


PHASES = (
    Phase("idle before", 0, 0, 0),
    *(Phase(f"decode {n}", n, 128, 512) for n in (1, 2, 4, 8, 16, 32, 64, 128)),
    *(Phase(f"long context {n}", n, 4096, 512) for n in (1, 8, 32)),
    *(Phase(f"prefill {n}", n, 2048, 16) for n in (1, 8, 32)),
    Phase("idle after", 0, 0, 0),
)


class Engine(Protocol):
    name: str

    def counts(self) -> dict[str, int]: ...

    def serve(
        self,
        concurrency: int,
        prompt_tokens: int,
        output_tokens: int,
        going_on: Callable[[], bool],
    ) -> None: ...


def record(
    meter: Meter,
    engine: Engine,
    path: Path,
    *,
    header: RecordingHeader,
    phases: Sequence[Phase] = PHASES,
    phase_s: float = 40.0,
    settle_s: float = 5.0,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Run the phases and write the recording; a failed one leaves what was written so far."""
    write_recording(path, header, _looks(meter, engine, phases, phase_s, settle_s, say))


def _looks(
    meter: Meter,
    engine: Engine,
    phases: Sequence[Phase],
    phase_s: float,
    settle_s: float,
    say: Callable[[str], None],
) -> Iterator[RecordingLine]:
    for phase in phases:
        say(f"{phase.name}: {settle_s + phase_s:.0f} s")
        stopping = threading.Event()
        failed: list[BaseException] = []

        def work(
            phase: Phase = phase,
            stopping: threading.Event = stopping,
            failed: list[BaseException] = failed,
        ) -> None:
            try:
                engine.serve(
                    phase.concurrency,
                    phase.prompt_tokens,
                    phase.output_tokens,
                    lambda: not stopping.is_set(),
                )
            except BaseException as error:  # the recording must end, whatever it is
                failed.append(error)

        thread = threading.Thread(target=work, daemon=True)
        if phase.concurrency:
            thread.start()
        time.sleep(settle_s)
        until_s = time.monotonic() + phase_s
        moved: dict[str, float] = {}
        while (now_s := time.monotonic()) < until_s:
            if failed:
                raise failed[0]
            readings = meter.read()
            energy_j = {r.device: r.energy_j for r in readings}
            if energy_j != moved:
                moved = energy_j
                counts = engine.counts()
                yield RecordingLine(
                    at_s=readings[-1].at_s, energy_j=energy_j, engine=dict(counts), phase=phase.name
                )
            time.sleep(max(0.0, LOOK_S - (time.monotonic() - now_s)))
        stopping.set()
        if phase.concurrency:
            thread.join(60)


# --- how well the physics fits


class PhaseReport(NamedTuple):
    name: str
    windows: int
    power_w: float
    tokens_per_s: float
    measured_j_per_token: float | None  # above idle, per generated token
    modelled_j_per_token: float | None


class Report(NamedTuple):
    """What a recording says of the step physics."""

    device: str
    windows: int
    coefficients: dict[str, float]  # idle_power_w, and joules per unit of work
    r2_held_out: float
    median_error: float  # relative, held-out windows
    p95_error: float
    phases: tuple[PhaseReport, ...]


def analyse(path: Path, window_s: float = 1.0) -> Report:
    """Fit the physics to a recording. Raises BadRecording, ValueError when it is too short."""
    header, lines = read_recording(path)
    rows = list(_windows(lines, window_s))
    if len(rows) < 12:
        raise ValueError(f"{path}: {len(rows)} windows are too few for a fit; record for longer.")
    features = np.array([[w.end_s - w.start_s, *work] for _, w, work in rows])
    energy_j = np.array([w.energy_j for _, w, _ in rows])
    held = np.arange(len(rows)) % 4 == 3
    # each window weighs by its own energy: a relative error is what matters
    scale = features[~held].max(axis=0)
    scale[scale == 0] = 1.0
    weighted = features[~held] / scale / energy_j[~held][:, None]
    solution, _ = nnls(weighted, np.ones(int((~held).sum())))
    coefficients = solution / scale
    predicted_j = features @ coefficients
    error = np.abs(predicted_j - energy_j)[held] / energy_j[held]
    power_w = energy_j[held] / features[held, 0]
    misfit_w = (predicted_j[held] - energy_j[held]) / features[held, 0]
    r2 = 1.0 - float((misfit_w**2).sum() / ((power_w - power_w.mean()) ** 2).sum())
    named = dict(zip(("idle_power_w", *(f"{w}_j" for w in WORK)), coefficients, strict=True))
    return Report(
        device=header.device,
        windows=len(rows),
        coefficients={k: float(v) for k, v in named.items()},
        r2_held_out=r2,
        median_error=float(np.median(error)),
        p95_error=float(np.quantile(error, 0.95)),
        phases=tuple(_by_phase(rows, coefficients)),
    )


Row = tuple[str, Window, list[float]]


def _windows(lines: Iterable[RecordingLine], window_s: float) -> Iterator[Row]:
    """Closed windows of each phase, with the work done in them."""
    closer: WindowCloser | None = None
    phase: str | None = None
    marks: dict[float, dict[str, float]] = {}
    next_s = 0.0
    for line in lines:
        if line.phase != phase:
            phase, marks = line.phase, {}
            closer = WindowCloser(node="recording", run=str(phase), resolution_j=0.001)
            next_s = line.at_s
        assert closer is not None
        closer.read(line.readings())
        if line.at_s >= next_s and line.engine is not None:
            marks[line.at_s] = line.engine
            closer.mark(line.at_s, EngineCounters(at_s=line.at_s))
            next_s = line.at_s + window_s
        for window in closer.take(line.at_s):
            before, after = marks[window.start_s], marks[window.end_s]
            yield str(phase), window, [float(after[w] - before[w]) for w in WORK]


def _by_phase(rows: Sequence[Row], coefficients: np.ndarray) -> Iterator[PhaseReport]:
    for name in dict.fromkeys(name for name, _, _ in rows):
        own = [(w, work) for n, w, work in rows if n == name]
        seconds = sum(w.end_s - w.start_s for w, _ in own)
        energy_j = sum(w.energy_j for w, _ in own)
        done = np.sum([work for _, work in own], axis=0)
        tokens = float(done[WORK.index("generated_tokens")])
        above_j = energy_j - coefficients[0] * seconds
        modelled_j = float(done @ coefficients[1:])
        yield PhaseReport(
            name=name,
            windows=len(own),
            power_w=energy_j / seconds,
            tokens_per_s=tokens / seconds,
            measured_j_per_token=above_j / tokens if tokens else None,
            modelled_j_per_token=modelled_j / tokens if tokens else None,
        )


def print_report(report: Report) -> None:
    print(f"{report.device}: {report.windows} windows")
    for name, value in report.coefficients.items():
        print(f"  {name:14} {value:.6g}")
    print(f"held-out windows: R2 of power {report.r2_held_out:.4f}, ", end="")
    print(f"error median {report.median_error:.2%}, 95th percentile {report.p95_error:.2%}")
    print("\n| phase | windows | W | tokens/s | J/token measured | J/token modelled | off |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for p in report.phases:
        told, modelled = p.measured_j_per_token, p.modelled_j_per_token
        if told is None or modelled is None:
            cells = "| | | |"
        else:
            cells = f"| {told:.4f} | {modelled:.4f} | {modelled / told - 1:+.1%} |"
        print(f"| {p.name} | {p.windows} | {p.power_w:.0f} | {p.tokens_per_s:.0f} {cells}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fit", type=Path, metavar="F", help="only report on a recording")
    parser.add_argument("--model", default="llama-3.1-8b", help="a shape of torch_engine.py")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "int4"))
    parser.add_argument("--gpu", default="0", help="index or UUID")
    parser.add_argument("--phase-s", type=float, default=40.0)
    parser.add_argument("--no-graphs", action="store_true", help="launch kernels one at a time")
    parser.add_argument("--out", type=Path, help="default tests/recordings/DEVICE-MODEL.jsonl")
    args = parser.parse_args(argv)
    if args.fit:
        print_report(analyse(args.fit))
        return 0
    try:
        meter = NvmlMeter([args.gpu])
    except MeterUnavailable as why:
        print(f"record_gpu: {why}", file=sys.stderr)
        return 1
    try:
        # heavy, and only here: everything else runs without it
        from benchmarks.torch_engine import TorchEngine

        engine = TorchEngine(
            args.model,
            args.precision,
            device=f"cuda:{next(iter(meter.device_names)).removeprefix('gpu')}",
            graphs=not args.no_graphs,
        )
    except (ImportError, AssertionError, RuntimeError, KeyError) as error:
        print(f"record_gpu: no engine ({error}). Needs PyTorch with CUDA.", file=sys.stderr)
        return 1
    device = next(iter(meter.device_names.values()))
    name = f"{device}-{args.model}-{args.precision}".lower().replace(" ", "-")
    out = args.out or Path(__file__).parent.parent / "tests/recordings" / f"{name}.jsonl"
    header = RecordingHeader(
        device=device,
        driver=meter.driver,
        date=datetime.date.today().isoformat(),
        evidence=Evidence.METERED,
        resolution_j=meter.resolution_j,
        engine=f"benchmarks.torch_engine, graphs {'on' if engine.graphs else 'off'}",
        model=engine.name,
        notes="; ".join(meter.notes) or None,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    record(
        meter,
        engine,
        out,
        header=header,
        phase_s=args.phase_s,
        say=lambda text: print(f"record_gpu: {text}", file=sys.stderr),
    )
    print(f"record_gpu: wrote {out} ({out.stat().st_size / 1e3:.0f} kB)", file=sys.stderr)
    print_report(analyse(out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
