"""The NVIDIA GPUs of this machine, by NVML; a driver that is missing, old or broken is a reason, never an error."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pynvml


@dataclass(frozen=True)
class Gpu:
    """One card; memory in bytes."""

    index: int
    name: str
    memory: int
    free: int


def find_gpus() -> tuple[list[Gpu], str]:
    """The GPUs in NVML's order, and why there are none."""
    try:
        with _nvml():
            return [_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())], ""
    except pynvml.NVMLError as error:
        return [], str(error)


@contextmanager
def _nvml() -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    name = pynvml.nvmlDeviceGetName(handle)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    return Gpu(index, text, int(memory.total), int(memory.free))
