"""NVIDIA GPUs through NVML's total-energy counter, or integrated power where there is none.

Facts this rests on (NVML API reference): nvmlDeviceGetTotalEnergyConsumption counts millijoules
since the driver was loaded, Volta and later; it is a whole GPU's, also under MIG; reading needs
the driver library and device nodes, no root and no CUDA context. Some boards report 0, N/A or a
number that never moves: those fall back to power.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pynvml

from meters.power import RELATIVE_ERROR, PowerIntegrator
from meters.types import Evidence, MeterUnavailable, Reading

# How often the library is opened anew where one of several boards is out of reach: it knows a board
# that was reset, or came back, only then.
_AGAIN_S = 30.0
# How long a counter may stand still at start before it is taken for one that never moves; updates
# come every 20-100 ms, and an idle board draws watts.
_STILL_S = 0.6

_ADVICE: dict[int, str] = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "NVIDIA's driver library (libnvidia-ml.so.1) is not "
    "here. Install the driver; in a container, start it with --gpus all or the nvidia runtime.",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "The NVIDIA kernel driver is not loaded, or the device "
    "nodes are not in this container. Run nvidia-smi on the host; give the container --gpus.",
    pynvml.NVML_ERROR_NO_PERMISSION: "No permission to read the GPU. Let the meter's user open "
    "/dev/nvidia*, and set NVIDIA_DRIVER_CAPABILITIES=utility in containers.",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "Driver library and kernel module are of "
    "different versions: the driver was updated while running. Reboot, or reload the module.",
    pynvml.NVML_ERROR_GPU_IS_LOST: "The GPU has fallen off the bus. See dmesg for its Xid; it "
    "takes a reset or a reboot.",
    pynvml.NVML_ERROR_RESET_REQUIRED: "The GPU needs a reset before it can be used (after an "
    "uncorrectable ECC error, for one). Drain it and run nvidia-smi --gpu-reset.",
    pynvml.NVML_ERROR_UNINITIALIZED: "The driver was reloaded under the meter. It starts anew.",
    pynvml.NVML_ERROR_NOT_FOUND: "No such GPU. nvidia-smi -L lists indices and UUIDs.",
    pynvml.NVML_ERROR_INVALID_ARGUMENT: "No such GPU. nvidia-smi -L lists indices and UUIDs.",
    pynvml.NVML_ERROR_NOT_SUPPORTED: "This GPU reports neither energy nor power. Set meter to "
    "none, or to a series of a Prometheus page that knows better.",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "The driver is too old for this call. Update it.",
    pynvml.NVML_ERROR_INSUFFICIENT_POWER: "The GPU's power cables are not connected properly.",
    pynvml.NVML_ERROR_IRQ_ISSUE: "The GPU has an interrupt problem. See dmesg.",
}
# After these the library must be opened again.
_STALE = {
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    pynvml.NVML_ERROR_GPU_IS_LOST,
    pynvml.NVML_ERROR_UNKNOWN,
}


def installed() -> list[str]:
    """The names of this machine's GPUs, as the driver calls them; none where there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return [_text(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


class _Gpu:
    """One board and the way it is read."""

    def __init__(self, device: str, handle: Any, uuid: str) -> None:
        self.device, self.handle, self.uuid = device, handle, uuid
        self.power: PowerIntegrator | None = None  # None: it has an energy counter
        self.instant = False  # power comes from the instant field
        self.name = ""


class NvmlMeter:
    """One reading a GPU, "gpu0" and so on by NVML's index.

    ``devices``: indices or UUIDs; None means all. CUDA_VISIBLE_DEVICES is not looked at, NVML
    sees the machine. A board that cannot be read is left out and named in ``missing``; when none
    is left, read raises. After a driver reload the next read opens the library again.
    """

    name = "nvml"
    evidence = Evidence.METERED

    def __init__(
        self,
        devices: Sequence[int | str] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._asked = None if devices is None else list(devices)
        self._clock, self._sleep = clock, sleep
        self._gpus: list[_Gpu] = []
        self._open = False
        self._opened_s = 0.0
        self.driver = ""
        self.missing: dict[str, str] = {}  # device: why it is not read
        self.notes: list[str] = []  # what a person should know of these readings
        self._start()

    @property
    def resolution_j(self) -> float | None:
        """One step of the counter, a millijoule a board, either end."""
        return 0.001 * len(self._gpus)

    @property
    def relative_error(self) -> float:
        """The sensor's error where power had to be integrated; 0 for the counter."""
        return RELATIVE_ERROR if any(g.power for g in self._gpus) else 0.0

    @property
    def continuous(self) -> bool:
        """Whether every look moves the count: power is integrated for all boards."""
        return all(g.power for g in self._gpus)

    @property
    def device_names(self) -> dict[str, str]:
        """What each board is called, "gpu0": "NVIDIA H100 80GB HBM3"."""
        return {g.device: g.name for g in self._gpus}

    def read(self) -> list[Reading]:
        """Every GPU, now. Raises MeterUnavailable when none can be read."""
        if not self._open:
            self._start()
        readings: list[Reading] = []
        lost = any(gpu.device in self.missing for gpu in self._gpus)
        if lost and self._clock() - self._opened_s >= _AGAIN_S:
            self._find_again()
        for gpu in self._gpus:
            try:
                readings.append(self._look(gpu))
                self.missing.pop(gpu.device, None)
            except pynvml.NVMLError as error:
                self.missing[gpu.device] = _explain(error, gpu.device)
                if error.value in _STALE and len(self._gpus) == 1:
                    self.close()
        if not readings:
            self.close()
            raise MeterUnavailable("; ".join(self.missing.values()) or "No GPU is left to read.")
        return readings

    def close(self) -> None:
        """Close the library; a later read opens it again."""
        if self._open:
            self._open = False
            try:
                pynvml.nvmlShutdown()
            except pynvml.NVMLError:
                pass  # a lost driver cannot be shut down either

    def _find_again(self) -> None:
        """Open the library anew and look its boards up in it; all keep what they had counted.

        Raises MeterUnavailable.
        """
        self.close()
        self._init()
        for gpu in self._gpus:
            try:
                gpu.handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid.encode())
            except pynvml.NVMLError as error:
                self.missing[gpu.device] = _explain(error, gpu.device)

    def _init(self) -> None:
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise MeterUnavailable(_explain(error)) from None
        self._open, self._opened_s = True, self._clock()

    def _start(self) -> None:
        self._init()
        try:
            self.driver = _text(pynvml.nvmlSystemGetDriverVersion())
            self.missing, self.notes = {}, []
            self._gpus = self._find()
            self._choose_sources()
        except pynvml.NVMLError as error:
            self.close()
            raise MeterUnavailable(_explain(error)) from None
        except MeterUnavailable:
            self.close()
            raise

    def _find(self) -> list[_Gpu]:
        count = pynvml.nvmlDeviceGetCount()
        if count == 0:
            raise MeterUnavailable(
                "The driver sees no GPU. In a container, give it --gpus all; see nvidia-smi -L."
            )
        gpus = []
        for asked in self._asked if self._asked is not None else range(count):
            try:
                gpus.append(self._one(asked))
            except pynvml.NVMLError as error:
                why = _explain(error, f"GPU {asked}")
                if self._asked is not None:
                    raise MeterUnavailable(why) from None
                self.missing[f"gpu{asked}"] = why
        if not gpus:
            raise MeterUnavailable("; ".join(self.missing.values()))
        if len({g.uuid for g in gpus}) < len(gpus):
            raise MeterUnavailable("The same GPU is named twice in devices; name it once.")
        return gpus

    def _one(self, asked: int | str) -> _Gpu:
        if isinstance(asked, str) and asked.startswith("MIG-"):
            raise MeterUnavailable(
                f"{asked} is a MIG instance, and the energy counter is the whole GPU's. Name the "
                "GPU, and let one node be all engines on it."
            )
        if isinstance(asked, str) and not asked.isdigit():
            handle = pynvml.nvmlDeviceGetHandleByUUID(asked.encode())
            index = int(pynvml.nvmlDeviceGetIndex(handle))
        else:
            index = int(asked)
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        gpu = _Gpu(f"gpu{index}", handle, _text(pynvml.nvmlDeviceGetUUID(handle)))
        gpu.name = _text(pynvml.nvmlDeviceGetName(handle))
        try:
            mig_now = pynvml.nvmlDeviceGetMigMode(handle)[0]
        except pynvml.NVMLError:
            mig_now = 0  # boards without MIG say so with an error
        if mig_now:
            self.notes.append(
                f"{gpu.device} is split by MIG: its energy is all instances' together."
            )
        return gpu

    def _choose_sources(self) -> None:
        """The counter where it moves, power where it does not."""
        first: dict[str, int] = {}
        for gpu in self._gpus:
            try:
                first[gpu.device] = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle)
            except pynvml.NVMLError as error:
                if error.value in _STALE:
                    raise
        still = {g.device: g for g in self._gpus if g.device in first}
        until_s = self._clock() + _STILL_S
        while still and self._clock() < until_s:
            self._sleep(0.02)
            for device, gpu in list(still.items()):
                now_mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle)
                if now_mj != first[device] and now_mj != 0:
                    del still[device]
        readable = []
        for gpu in self._gpus:
            if gpu.device in first and gpu.device not in still:
                readable.append(gpu)
                continue
            why = (
                "has no energy counter" if gpu.device not in first else "has one that stands still"
            )
            try:
                self._fall_back(gpu)
            except pynvml.NVMLError as error:
                self.missing[gpu.device] = _explain(error, gpu.device)
                continue
            kind = "instant" if gpu.instant else "averaged"
            self.notes.append(f"{gpu.device} {why}: its {kind} power is integrated.")
            readable.append(gpu)
        self._gpus = readable
        if not readable:
            raise MeterUnavailable("; ".join(self.missing.values()))

    def _fall_back(self, gpu: _Gpu) -> None:
        gpu.power = PowerIntegrator(gpu.device)
        try:
            self._instant_w(gpu)
            gpu.instant = True
        except pynvml.NVMLError:
            pynvml.nvmlDeviceGetPowerUsage(gpu.handle)

    def _look(self, gpu: _Gpu) -> Reading:
        if gpu.power is None:
            energy_mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle)
            return Reading(gpu.device, self._clock(), energy_mj / 1000)
        if gpu.instant:
            power_w = self._instant_w(gpu)
        else:
            power_w = pynvml.nvmlDeviceGetPowerUsage(gpu.handle) / 1000
        return gpu.power.add(self._clock(), power_w)

    def _instant_w(self, gpu: _Gpu) -> float:
        """nvmlDeviceGetPowerUsage is a one-second mean on most boards since Ampere; this is not."""
        value = pynvml.nvmlDeviceGetFieldValues(gpu.handle, [pynvml.NVML_FI_DEV_POWER_INSTANT])[0]
        if value.nvmlReturn != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(value.nvmlReturn)
        return float(value.value.uiVal) / 1000


def _explain(error: Any, where: str = "") -> str:
    advice = _ADVICE.get(error.value, f"NVML says: {error}.")
    return f"{where}: {advice}" if where else advice


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
