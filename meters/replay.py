"""Recordings of counters: JSON Lines, a header first, then one line a look.

    {"recording": 1, "device": "NVIDIA H100 80GB HBM3", "driver": "570.86.15", "date":
     "2026-11-20", "evidence": "metered", "update_period_s": 0.1}
    {"at_s": 12.5, "energy_j": {"gpu0": 3400.25}, "engine": {"generated_tokens": 100}}

``at_s`` is the recording process's monotonic clock. ``engine`` holds fields of EngineCounters and
may be absent. What a recording says is true of the machine it was made on, not of this one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from meters.types import EngineCounters, Evidence, MeterUnavailable, Reading
from meters.unreadable import UNREADABLE


class RecordingHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a recording comes from."""

    recording: int = 1  # version of this format
    device: str
    driver: str
    date: str
    evidence: Evidence = Evidence.METERED  # SIMULATED when no hardware was read
    meter: str = "nvml"
    resolution_j: float | None = None
    update_period_s: float | None = None
    engine: str | None = None
    model: str | None = None
    notes: str | None = None


class RecordingLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One look."""

    at_s: float
    energy_j: dict[str, float] = {}
    host_energy_j: dict[str, float] = {}
    engine: dict[str, Any] | None = None
    phase: str | None = None  # what was being done: "idle", "decode 32", ...

    def readings(self) -> list[Reading]:
        return [Reading(device, self.at_s, j) for device, j in self.energy_j.items()]

    def counters(self) -> EngineCounters | None:
        """The engine's counters, if it was asked then. Raises ValueError for unknown fields."""
        if self.engine is None:
            return None
        return msgspec.convert({**self.engine, "at_s": self.at_s}, EngineCounters)


class BadRecording(ValueError):
    """A file that is no recording; the message says where and why."""


_header = msgspec.json.Decoder(RecordingHeader)
_line = msgspec.json.Decoder(RecordingLine)
_encode = msgspec.json.Encoder()


def read_recording(path: str | Path) -> tuple[RecordingHeader, Iterator[RecordingLine]]:
    """The header, and the looks in order, read as they are asked for. Raises BadRecording."""
    try:
        with Path(path).open("rb") as file:
            first = file.readline()
    except OSError as error:
        raise BadRecording(f"{path}: {error.strerror or error}. Name a readable file.") from None
    try:
        header = _header.decode(first)
    except UNREADABLE as error:
        raise BadRecording(f"{path}, line 1: not a recording's header ({error}).") from None
    if header.recording != 1:
        raise BadRecording(f"{path}: recording format {header.recording}; this version reads 1.")
    return header, _lines(path)


def _lines(path: str | Path) -> Iterator[RecordingLine]:
    before_s = float("-inf")
    with Path(path).open("rb") as file:
        for number, text in enumerate(file, 1):
            if number == 1 or not text.strip():
                continue
            try:
                line = _line.decode(text)
            except UNREADABLE as error:
                raise BadRecording(f"{path}, line {number}: {error}.") from None
            if line.at_s < before_s:
                raise BadRecording(f"{path}, line {number}: time goes back.")
            before_s = line.at_s
            yield line


def write_recording(
    path: str | Path, header: RecordingHeader, lines: Iterable[RecordingLine]
) -> None:
    """Write a recording, a line as soon as it comes."""
    with Path(path).open("wb") as file:
        file.write(_encode.encode(header) + b"\n")
        for line in lines:
            present = {k: v for k, v in msgspec.to_builtins(line).items() if v not in (None, {})}
            file.write(_encode.encode(present) + b"\n")


class ReplayMeter:
    """Plays a recording at its own pace, or ``speed`` times as fast.

    A look gives the recording's last reading before now. After its end, MeterUnavailable. Its
    evidence is SIMULATED whatever was recorded: none of it is energy of requests served here.
    """

    name = "replay"
    evidence = Evidence.SIMULATED

    def __init__(
        self,
        path: str | Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        speed: float = 1.0,
    ) -> None:
        try:
            self.header, lines = read_recording(path)
            self._lines = list(lines)
        except BadRecording as error:
            raise MeterUnavailable(str(error)) from None
        if not self._lines:
            raise MeterUnavailable(f"{path}: the recording is empty.")
        self.resolution_j = self.header.resolution_j
        self._path, self._clock, self._speed = path, clock, speed
        self._next = 0
        self._began_s: float | None = None

    def read(self) -> list[Reading]:
        """The readings of this moment of the recording, on this process's clock."""
        now_s = self._clock()
        if self._began_s is None:
            self._began_s = now_s
        began_s = self._lines[0].at_s
        position_s = began_s + (now_s - self._began_s) * self._speed
        if position_s > self._lines[-1].at_s:
            raise MeterUnavailable(f"{self._path}: the recording has ended.")
        while self._next < len(self._lines) and self._lines[self._next].at_s <= position_s:
            self._next += 1
        line = self._lines[max(0, self._next - 1)]
        return [Reading(device, now_s, j) for device, j in line.energy_j.items()]

    def close(self) -> None:
        """Forget the recording; read again afterwards raises MeterUnavailable."""
        self._lines = self._lines[:1]
