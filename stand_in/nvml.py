"""Compiles fake_nvml.c, a libnvidia-ml.so.1 with two GPUs."""

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parent / "fake_nvml.c"


def compile_nvml(folder: Path) -> Path | None:
    """Compiles the library into `folder` and returns it, for LD_LIBRARY_PATH; None if there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-o", folder / "libnvidia-ml.so.1", SOURCE], check=True)
    return folder
