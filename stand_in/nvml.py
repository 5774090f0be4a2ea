"""A libnvidia-ml.so.1 of two cards, compiled on the spot: what it tells stands in fake_nvml.c."""

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parent / "fake_nvml.c"


def compile_nvml(folder: Path) -> Path | None:
    """`folder`, with the library in it, for LD_LIBRARY_PATH; None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-o", folder / "libnvidia-ml.so.1", SOURCE], check=True)
    return folder
