"""The cores that a process may use."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_annotate.cores import CONTROL_GROUPS, usable_cores

ALL = len(os.sched_getaffinity(0))
ASK = "from vllm_annotate.cores import usable_cores; print(usable_cores())"


def grouped(folder: Path, line: str, **quotas: str) -> int:
    """The cores under these quotas: files of control groups, `__` for a slash."""
    (folder / "process").write_text(f"11:memory:/elsewhere\n{line}\n")
    for name, text in quotas.items():
        file = folder / "groups" / name.replace("__", "/").replace("cpu_max", "cpu.max").replace("cpu_cfs", "cpu.cfs")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return usable_cores(folder / "process", folder / "groups")


def test_a_quota_of_version_2_limits_the_cores(tmp_path: Path) -> None:
    assert grouped(tmp_path, "0::/mine", mine__cpu_max="50000 100000") == 1


def test_the_least_quota_of_all_groups_around_the_process_counts(tmp_path: Path) -> None:
    path = "0::/a/b"
    assert grouped(tmp_path, path, a__b__cpu_max="max 100000", a__cpu_max="100000 100000") == 1
    assert grouped(tmp_path, path, a__cpu_max="max 100000") == ALL
    assert grouped(tmp_path, path, cpu_max="1000 100000") == 1, "never 0"


def test_the_root_counts_where_a_container_cannot_see_its_own_path(tmp_path: Path) -> None:
    assert grouped(tmp_path, "0::/docker/0123", cpu_max="70000 100000") == 1


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize("path", ["/", "/mine", "/docker/0123"])
def test_a_quota_of_version_1_limits_the_cores(tmp_path: Path, controllers: str, path: str) -> None:
    folder = "cpu__" + ("mine__" if path == "/mine" else "")
    quotas = {f"{folder}cpu_cfs_quota_us": "90000", f"{folder}cpu_cfs_period_us": "100000"}
    assert grouped(tmp_path, f"4:{controllers}:{path}", **quotas) == 1
    quotas[f"{folder}cpu_cfs_quota_us"] = "-1"
    assert grouped(tmp_path, f"4:{controllers}:{path}", **quotas) == ALL


@pytest.mark.parametrize("text", ["", "max", "max 100000", "x y", "100 0", "-1 100000"])
def test_a_quota_that_makes_no_sense_is_none(tmp_path: Path, text: str) -> None:
    assert grouped(tmp_path, "0::/", cpu_max=text) == ALL


def test_a_machine_without_control_groups_has_all_its_cores(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none", tmp_path) == ALL


def test_only_the_cores_that_affinity_leaves_are_counted() -> None:
    command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-c", ASK]
    assert subprocess.check_output(command, text=True) == "1\n"


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of this machine with half a core."""
    is_v2 = (CONTROL_GROUPS / "cgroup.controllers").exists()
    folder = CONTROL_GROUPS / ("" if is_v2 else "cpu") / f"vllm-annotate-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"this machine lets no test make control groups: {error}")
    try:
        file, text = ("cpu.max", "50000 100000") if is_v2 else ("cpu.cfs_quota_us", "50000")
        (folder / file).write_text(text)
        yield folder
    except OSError as error:
        pytest.skip(f"this machine lets no test limit control groups: {error}")
    finally:
        folder.rmdir()


def test_the_quota_of_a_real_control_group_limits_the_cores(group: Path) -> None:
    enter = f"echo $$ > {group}/cgroup.procs && exec {sys.executable} -c '{ASK}'"
    assert subprocess.check_output(["sh", "-c", enter], text=True) == "1\n"
