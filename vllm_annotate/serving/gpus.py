"""Lists this machine's NVIDIA GPUs by NVML. A missing, old or broken driver is not an error."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pynvml


@dataclass(frozen=True)
class Gpu:
    """One GPU; memory in bytes."""

    index: int
    name: str
    memory: int
    free: int


def find_gpus() -> tuple[list[Gpu], str]:
    """The GPUs in NVML's order, and the reason if there are none."""
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
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(index, gpu_name(handle), int(memory.total), int(memory.free))


def gpu_name(handle: Any) -> str:
    """The product name of a GPU. Raises NVMLError."""
    name = pynvml.nvmlDeviceGetName(handle)
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)
