"""What the servers' GPUs do, read by NVML once a second. No NVML, a lost GPU, a reading that a card lacks: all normal.

NVML may take its time, and never comes back from some broken cards: it is asked in a thread of its own.
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
SILENT_SECONDS = 15.0  # without an answer from NVML its last readings no longer count
LOST_AFTER = 10  # readings in a row that all failed
MIB = 1024 * 1024
POWER_REASONS = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
HEAT_REASONS = (
    pynvml.nvmlClocksEventReasonSwThermalSlowdown
    | pynvml.nvmlClocksEventReasonHwThermalSlowdown
    | pynvml.nvmlClocksEventReasonHwSlowdown
)


@dataclass(frozen=True)
class GpuReading:
    """One look at one card; None where it does not tell."""

    utilisation: float | None = None  # percent of the last moment in which a kernel ran
    memory_used_mib: float | None = None
    memory_total_mib: float | None = None
    power_watts: float | None = None
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None
    power_capped: float | None = None  # 1 while clocks are held down for power, else 0
    heat_throttled: float | None = None  # likewise for heat
    energy_joules: float | None = None  # since the driver was loaded


@dataclass(frozen=True)
class WhichGpus:
    """What is known of the GPUs that a run's servers use."""

    ports: Sequence[int] = ()  # of servers on this machine
    indices: Sequence[int] = ()  # given to servers that the run has started
    remote: Sequence[str] = ()  # URLs of servers on other machines


class GpuWatch:
    """Reads the GPUs in a thread for as long as it is open; whoever wants to know looks at `readings` and `notes`."""

    def __init__(self, which: WhichGpus) -> None:
        self.names: dict[int, str] = {}  # NVML's index → the card's name
        self.notes: list[str] = []  # what is missing, and why
        self._which = which
        self._readings: dict[int, GpuReading] = {}
        self._read_at = time.monotonic()
        self.guessed = False  # whether the cards are the right ones
        self._was_silent = False
        self._failures: dict[int, int] = {}  # index → readings in a row that all failed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="nvml", daemon=True)

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def stop(self) -> None:
        """Ends reading, without waiting for an NVML that hangs."""
        self._stop.set()
        self._thread.join(2 * READ_SECONDS)

    @property
    def readings(self) -> dict[int, GpuReading]:
        """The newest reading of each card that still answers."""
        if time.monotonic() - self._read_at < SILENT_SECONDS:
            return self._readings
        if self._thread.is_alive() and not self._was_silent:
            self._was_silent = True
            self.notes.append(
                f"NVML has not answered for {SILENT_SECONDS:.0f} s: nothing is told of the GPUs until it does"
            )
        return {}

    def _watch(self) -> None:
        if self._which.remote:
            urls = ", ".join(self._which.remote)
            self.notes.append(f"the GPUs of {urls} are on other machines: not seen from here")
            if not self._which.ports:
                return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self.notes.append(f"no NVIDIA GPU can be read on this machine: {error}")
            return
        try:
            handles = self._choose()
            while handles and not self._stop.is_set():
                self._read(handles)
                self._stop.wait(READ_SECONDS)
        except Exception as error:  # a driver can be broken in any way, and nobody joins this thread to hear of it
            self.notes.append(f"the GPUs cannot be read: {error!r}")
        finally:
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()

    def _choose(self) -> dict[int, Any]:
        """Handles of the cards that the servers use: by their processes, or else by the best that is known."""
        users = {}
        handles = {}
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                handles[index] = pynvml.nvmlDeviceGetHandleByIndex(index)
                self.names[index] = gpu_name(handles[index])
            except pynvml.NVMLError as error:
                self.notes.append(f"GPU {index} cannot be read: {error}")
                handles.pop(index, None)
                continue
            users[index] = _processes(handles[index])
        servers = set[int]().union(*(processes_behind(port) for port in self._which.ports))
        chosen = {index for index, pids in users.items() if pids & servers}
        if not chosen:
            chosen = set(self._which.indices) & handles.keys()
        if not chosen and handles:
            # NVML numbers processes as the host does: from within a container they are other ones.
            chosen = {index for index, pids in users.items() if pids} or set(handles)
            self.guessed = True
            self.notes.append("which GPUs the servers use cannot be told, so all that are in use are shown")
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
                what = "is lost" if lost else "tells nothing any more"
                self.notes.append(f"GPU {index} ({self.names[index]}) {what}: {error}; see dmesg for Xid errors")
                del handles[index]
                readings.pop(index, None)
        self._readings, self._read_at = readings, time.monotonic()


def read_gpu(handle: Any) -> tuple[GpuReading, pynvml.NVMLError | None]:
    """All that the card tells, and the gravest of the errors with which it did not."""
    errors: list[pynvml.NVMLError] = []

    def ask(question: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return question(handle, *arguments)
        except pynvml.NVMLError as error:
            errors.append(error)
            return None

    rates, memory = ask(pynvml.nvmlDeviceGetUtilizationRates), ask(pynvml.nvmlDeviceGetMemoryInfo)
    milliwatts, millijoules = ask(pynvml.nvmlDeviceGetPowerUsage), ask(pynvml.nvmlDeviceGetTotalEnergyConsumption)
    reasons = ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)  # the name that old drivers know too
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
