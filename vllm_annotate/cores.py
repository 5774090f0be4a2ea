"""How many processor cores this process may use: in a container, often fewer than the machine has."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

PROCESS = Path("/proc/self/cgroup")
CONTROL_GROUPS = Path("/sys/fs/cgroup")


def usable_cores(process: Path = PROCESS, control_groups: Path = CONTROL_GROUPS) -> int:
    """Returns the number of cores that affinity and the quotas of all control groups around this process allow."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS
    for folder in _groups(process, control_groups):
        with suppress(OSError, ValueError, ZeroDivisionError):  # no limit, or a controller that is not used
            cores = min(cores, max(1, math.ceil(_quota(folder))))
    return cores


def _groups(process: Path, control_groups: Path) -> Iterator[Path]:
    """Yields the folders of the process's control group and of those around it, in versions 1 and 2.

    Inside a container, the root that is mounted may be the container's own group, so that its path does not exist.
    """
    with suppress(OSError):
        for line in process.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            inside = PurePosixPath(path.lstrip("/"))
            if not controllers:
                mounts = [control_groups, control_groups / "unified"]
            elif "cpu" in controllers.split(","):
                mounts = [control_groups / "cpu", control_groups / controllers]
            else:
                continue
            for mount in mounts:
                yield from (mount / group for group in (inside, *inside.parents))


def _quota(folder: Path) -> float:
    """Returns the cores that a control group may use. Raises OSError or ValueError if it has no limit."""
    if (limit := folder / "cpu.max").exists():
        quota, period = limit.read_text().split()  # "max 100000" without a limit
    else:
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    if int(quota) <= 0:
        raise ValueError("no limit")
    return int(quota) / int(period)
