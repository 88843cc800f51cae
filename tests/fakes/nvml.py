"""A driver without a GPU: NVML's calls answered from Python, or from a small C library.

``FakeNvml`` is put in place of the loaded library (``pynvml.nvmlLib``) and misbehaves on
request. ``build_library`` compiles nvml.c for processes of their own.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pynvml

SOURCE = Path(__file__).with_name("nvml.c")


@dataclass
class FakeGpu:
    power_w: float = 300.0
    uuid: str = "GPU-fake-0"
    name: str = "Fake board"
    mig: bool = False
    energy: str = "counts"  # counts | zero | still | unsupported
    instant: bool = True
    power: bool = True
    error: int = 0  # what every reading call answers
    until_opened: int = 0  # how often the library must have been opened for that to end; 0: never
    period_s: float = 0.1
    zero_mj: int = 7_000_000


@dataclass
class FakeNvml:
    """The C functions NvmlMeter calls, with their C signatures."""

    gpus: list[FakeGpu]
    clock: Callable[[], float]
    init_error: int = 0
    open: bool = False
    opened: int = 0
    _functions: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)  # what ctypes says of a symbol that is not there

    def nvmlInitWithFlags(self, flags: int) -> int:  # noqa: N802
        if not self.init_error:
            self.open, self.opened = True, self.opened + 1
        return self.init_error

    def nvmlShutdown(self) -> int:  # noqa: N802
        self.open = False
        return 0

    def nvmlSystemGetDriverVersion(self, out: Any, size: Any) -> int:  # noqa: N802
        out.value = b"999.99"
        return 0

    def nvmlDeviceGetCount_v2(self, out: Any) -> int:  # noqa: N802
        out._obj.value = len(self.gpus)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, out: Any) -> int:  # noqa: N802
        if index.value >= len(self.gpus):
            return int(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        if self.gpus[index.value].error == pynvml.NVML_ERROR_NO_PERMISSION:
            return int(pynvml.NVML_ERROR_NO_PERMISSION)
        _write(out, index.value)
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: Any, out: Any) -> int:  # noqa: N802
        for index, gpu in enumerate(self.gpus):
            if gpu.uuid.encode() == uuid.value:
                _write(out, index)
                return 0
        return int(pynvml.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetIndex(self, handle: Any, out: Any) -> int:  # noqa: N802
        out._obj.value = _read(handle)
        return 0

    def nvmlDeviceGetUUID(self, handle: Any, out: Any, size: Any) -> int:  # noqa: N802
        out.value = self._gpu(handle).uuid.encode()
        return 0

    def nvmlDeviceGetName(self, handle: Any, out: Any, size: Any) -> int:  # noqa: N802
        out.value = self._gpu(handle).name.encode()
        return 0

    def nvmlDeviceGetMigMode(self, handle: Any, now: Any, pending: Any) -> int:  # noqa: N802
        if not self._gpu(handle).mig:
            return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
        now._obj.value = pending._obj.value = 1
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, out: Any) -> int:  # noqa: N802
        gpu = self._gpu(handle)
        if failed := self._failed(gpu):
            return failed
        if gpu.energy == "unsupported":
            return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
        updated_s = self.clock() // gpu.period_s * gpu.period_s
        moved_mj = int(updated_s * gpu.power_w * 1000)
        out._obj.value = {
            "counts": gpu.zero_mj + moved_mj,
            "zero": 0,
            "still": gpu.zero_mj,
        }[gpu.energy]
        return 0

    def nvmlDeviceGetPowerUsage(self, handle: Any, out: Any) -> int:  # noqa: N802
        gpu = self._gpu(handle)
        if failed := self._failed(gpu):
            return failed
        if not gpu.power:
            return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
        out._obj.value = int(gpu.power_w * 1000)
        return 0

    def nvmlDeviceGetFieldValues(self, handle: Any, count: Any, out: Any) -> int:  # noqa: N802
        gpu = self._gpu(handle)
        if failed := self._failed(gpu):
            return failed
        for value in out._obj:
            value.nvmlReturn = 0 if gpu.instant else pynvml.NVML_ERROR_NOT_SUPPORTED
            value.value.uiVal = int(gpu.power_w * 1000)
        return 0

    def _gpu(self, handle: Any) -> FakeGpu:
        return self.gpus[_read(handle)]

    def _failed(self, gpu: FakeGpu) -> int:
        if gpu.until_opened and self.opened >= gpu.until_opened:
            return 0
        return gpu.error if self.open else int(pynvml.NVML_ERROR_UNINITIALIZED)


def _write(out: Any, index: int) -> None:
    import ctypes

    ctypes.cast(out, ctypes.POINTER(ctypes.c_void_p))[0] = index + 1


def _read(handle: Any) -> int:
    import ctypes

    return int(ctypes.cast(handle, ctypes.c_void_p).value or 1) - 1


@contextmanager
def driver(fake: object | None) -> Iterator[None]:
    """NVML is ``fake`` inside; None: no library at all."""
    before, cache = pynvml.nvmlLib, dict(pynvml._nvmlGetFunctionPointer_cache)
    pynvml._nvmlGetFunctionPointer_cache.clear()
    pynvml.nvmlLib = fake
    try:
        yield
    finally:
        pynvml.nvmlLib = before
        pynvml._nvmlGetFunctionPointer_cache.clear()
        pynvml._nvmlGetFunctionPointer_cache.update(cache)


def build_library(folder: Path) -> Path | None:
    """Compile nvml.c to libnvidia-ml.so.1 in ``folder``; None where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)], check=True
    )
    return library
