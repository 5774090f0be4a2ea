"""Reads the servers' GPUs by NVML once a second. A missing NVML, a lost GPU or an unsupported reading is no error.

NVML can be slow, and with some broken GPUs a call never returns, so it runs in its own thread.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pynvml

from vllm_annotate.serving.gpus import gpu_name
from vllm_annotate.serving.listeners import processes_behind

READ_SECONDS = 1.0
SILENT_SECONDS = 15.0  # readings older than this are dropped
LOST_AFTER = 10  # failed readings in a row
MIB = 1024 * 1024
POWER_REASONS = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
HEAT_REASONS = (
    pynvml.nvmlClocksEventReasonSwThermalSlowdown
    | pynvml.nvmlClocksEventReasonHwThermalSlowdown
    | pynvml.nvmlClocksEventReasonHwSlowdown
)


@dataclass(frozen=True)
class GpuReading:
    """One reading of one GPU; None if it does not support the measurement."""

    utilisation: float | None = None  # percent of the last sample period in which a kernel ran
    memory_used_mib: float | None = None
    memory_total_mib: float | None = None
    power_watts: float | None = None
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None
    power_capped: float | None = None  # 1 while power limits the clocks, else 0
    heat_throttled: float | None = None  # 1 while heat limits the clocks, else 0
    energy_joules: float | None = None  # since the driver was loaded


@dataclass(frozen=True)
class WhichGpus:
    """What is known about the GPUs that a run's servers use."""

    ports: Sequence[int] = ()  # of servers on this machine
    indices: Sequence[int] = ()  # of GPUs given to servers that the run has started
    remote: Sequence[str] = ()  # URLs of servers on other machines


class GpuWatch:
    """Reads the GPUs in a thread until stopped; see `readings` and `notes`."""

    def __init__(self, which: WhichGpus) -> None:
        self.names: dict[int, str] = {}  # NVML's index → product name
        self.notes: list[str] = []  # what cannot be measured, and why
        self._which = which
        self._readings: dict[int, GpuReading] = {}
        self._read_at = time.monotonic()
        self.guessed = False  # the GPUs shown may not be the servers'
        self._was_silent = False
        self._failures: dict[int, int] = {}  # index → failed readings in a row
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="nvml", daemon=True)

    def start(self) -> None:
        """Starts reading."""
        self._thread.start()

    def stop(self) -> None:
        """Stops reading, without waiting for a call that hangs."""
        self._stop.set()
        self._thread.join(2 * READ_SECONDS)

    @property
    def readings(self) -> dict[int, GpuReading]:
        """The latest reading of each GPU that still answers."""
        if time.monotonic() - self._read_at < SILENT_SECONDS:
            return self._readings
        if self._thread.is_alive() and not self._was_silent:
            self._was_silent = True
            self.notes.append(f"NVML has not answered for {SILENT_SECONDS:.0f} s: no GPU readings until it does")
        return {}

    def _watch(self) -> None:
        if self._which.remote:
            urls = ", ".join(self._which.remote)
            self.notes.append(f"the GPUs of {urls} are on other machines and cannot be read from here")
            if not self._which.ports:
                return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self.notes.append(f"cannot read NVIDIA GPUs on this machine: {error}")
            return
        try:
            handles = self._choose()
            while handles and not self._stop.is_set():
                self._read(handles)
                self._stop.wait(READ_SECONDS)
        except Exception as error:  # drivers break in many ways, and no one sees an exception of this thread
            self.notes.append(f"cannot read the GPUs: {error!r}")
        finally:
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()

    def _choose(self) -> dict[int, Any]:
        """Handles of the GPUs that the servers use: by their processes, else by a best guess."""
        users = {}
        handles = {}
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                handles[index] = pynvml.nvmlDeviceGetHandleByIndex(index)
                self.names[index] = gpu_name(handles[index])
            except pynvml.NVMLError as error:
                self.notes.append(f"cannot read GPU {index}: {error}")
                handles.pop(index, None)
                continue
            users[index] = _processes(handles[index])
        servers = set[int]().union(*(processes_behind(port) for port in self._which.ports))
        chosen = {index for index, pids in users.items() if pids & servers}
        if not chosen:
            chosen = set(self._which.indices) & handles.keys()
        if not chosen and handles:
            # NVML reports the host's pids, which differ inside a container.
            chosen = {index for index, pids in users.items() if pids} or set(handles)
            self.guessed = True
            self.notes.append("cannot tell which GPUs the servers use: showing all GPUs in use")
        self.names = {index: name for index, name in self.names.items() if index in chosen}
        return {index: handle for index, handle in handles.items() if index in chosen}

    def _read(self, handles: dict[int, Any]) -> None:
        readings = {}
        for index, handle in list(handles.items()):
            reading, error = read_gpu(handle)
            lost = isinstance(error, pynvml.NVMLError_GpuIsLost)
            if reading != GpuReading():
                self._failures[index] = 0
                readings[index] = reading
            else:
                self._failures[index] = self._failures.get(index, 0) + 1
            if lost or self._failures[index] >= LOST_AFTER:
                what = "is lost" if lost else "no longer answers"
                self.notes.append(f"GPU {index} ({self.names[index]}) {what}: {error}; see dmesg for Xid errors")
                del handles[index]
                readings.pop(index, None)
        self._readings, self._read_at = readings, time.monotonic()


def read_gpu(handle: Any) -> tuple[GpuReading, pynvml.NVMLError | None]:
    """Returns a reading of a GPU, and its most serious error."""
    errors: list[pynvml.NVMLError] = []

    def ask(question: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return question(handle, *arguments)
        except pynvml.NVMLError as error:
            errors.append(error)
            return None

    rates, memory = ask(pynvml.nvmlDeviceGetUtilizationRates), ask(pynvml.nvmlDeviceGetMemoryInfo)
    milliwatts, millijoules = ask(pynvml.nvmlDeviceGetPowerUsage), ask(pynvml.nvmlDeviceGetTotalEnergyConsumption)
    reasons = ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)  # this name also works with old drivers
    reading = GpuReading(
        utilisation=None if rates is None else float(rates.gpu),
        memory_used_mib=None if memory is None else int(memory.used) / MIB,
        memory_total_mib=None if memory is None else int(memory.total) / MIB,
        power_watts=None if milliwatts is None else milliwatts / 1000,
        temperature_c=_float(ask(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU)),
        sm_clock_mhz=_float(ask(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM)),
        power_capped=None if reasons is None else float(bool(reasons & POWER_REASONS)),
        heat_throttled=None if reasons is None else float(bool(reasons & HEAT_REASONS)),
        energy_joules=None if millijoules is None else millijoules / 1000,
    )
    lost = next((error for error in errors if isinstance(error, pynvml.NVMLError_GpuIsLost)), None)
    return reading, lost or (errors[0] if errors else None)


def _processes(handle: Any) -> set[int]:
    try:
        return {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
        return set()


def _float(value: Any) -> float | None:
    return None if value is None else float(value)
