"""Memory and open files that run short."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_annotate.errors import MachineFault
from vllm_annotate.storage.disk_errors import explained, stops_the_run
from vllm_annotate.storage.shortage import MOST_FILES, is_shortage, most_connections, patiently, raise_limit


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    """The limits of open files, restored afterwards."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_of_open_files_is_raised_as_far_as_allowed(limits: tuple[int, int]) -> None:
    hard = limits[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    expected = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    assert raise_limit() == expected
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (expected, hard)
    assert raise_limit() == expected


@pytest.mark.parametrize(("limit", "most"), [(65_536, 65_024), (1024, 512), (256, 128), (1, 1)])
def test_connections_leave_room_for_other_files(limit: int, most: int) -> None:
    assert most_connections(limit) == most


def test_a_shortage_is_found_behind_the_error_of_a_library() -> None:
    for cause in (MemoryError(), OSError(errno.EMFILE, ""), OSError("out of memory when reading image file")):
        wrapped = ValueError("wrapped")
        wrapped.__cause__ = cause
        assert is_shortage(wrapped)
    assert not is_shortage(OSError(errno.EIO, ""))
    assert not is_shortage(ValueError("out of memory"))


def test_a_shortage_that_passes_costs_nothing() -> None:
    errors: list[Exception] = [OSError(errno.EMFILE, "Too many open files"), MemoryError()]

    def work() -> str:
        if errors:
            raise errors.pop(0)
        return "done"

    assert patiently(work) == "done"
    errors += [OSError(errno.EMFILE, "Too many open files"), ValueError("own")]
    with pytest.raises(ValueError, match="own"):
        patiently(work)


def test_too_many_open_files_stop_the_run_with_the_limit_and_the_remedy() -> None:
    def work() -> None:
        raise OSError(errno.ENFILE, "Too many open files in system")

    with pytest.raises(MachineFault) as fault:
        patiently(work)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert stops_the_run(fault.value)
    assert explained(fault.value, "anything") == (
        f"too many open files (this process may open {limit}): raise the limit (ulimit -n), or lower max_concurrency, "
        "and run again; all answers are saved"
    )


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_shortage_anywhere_else_is_explained_with_the_remedy(number: int) -> None:
    said = explained(OSError(number, os.strerror(number), "/out/labeled.work/parts/000001.jsonl"), "/out/labeled.jsonl")
    assert said.startswith(f"/out/labeled.work/parts/000001.jsonl: {os.strerror(number)}; ")
    assert said.endswith(", and run again, all answers are saved")
    assert "fix that" not in said


WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from vllm_annotate.images.prepare import prepare
from vllm_annotate.recipe.image_budget import ImageBudget
from vllm_annotate.storage.shortage import patiently

folder, mib = Path(sys.argv[1]), int(sys.argv[2])
budget = ImageBudget(100352, 1003520)
prepare(folder, "small.png", budget)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (mib << 20), -1))
for name in ("large.png", "small.png"):
    try:
        print(name, patiently(lambda: prepare(folder, name, budget)).sent_width)
    except Exception as error:
        print(name, type(error).__name__)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not limit address space")
def test_only_an_image_that_is_too_large_for_the_memory_is_blamed_for_it(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (9000, 9000), "red").save(tmp_path / "large.png")
    Image.new("RGB", (644, 476), "red").save(tmp_path / "small.png")
    for mib, expected in ((64, ["large.png MemoryError", "small.png 644"]), (2, ["MachineFault"])):
        done = subprocess.run(
            [sys.executable, "-c", WITH_LITTLE_MEMORY, tmp_path, str(mib)], capture_output=True, text=True, check=True
        )
        assert all(line in done.stdout for line in expected), done.stdout + done.stderr
