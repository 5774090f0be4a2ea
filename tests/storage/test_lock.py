"""Locks on files that their holders may remove."""

import multiprocessing
import os
import re
from contextlib import suppress
from pathlib import Path

import pytest

from vllm_annotate.storage.lock import AlreadyLockedError, locked


def test_a_lock_on_a_removed_file_is_not_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path):
        path.unlink()  # as a refused run does
        with (
            locked(path),
            pytest.raises(AlreadyLockedError, match=rf"process {os.getpid()} on .* since \S+T\S+[+-]\d\d:\d\d$"),
            locked(path),
        ):
            pass
    with locked(path):
        assert re.match(rf"process {os.getpid()} on ", path.read_text())


def count_up(path: Path, times: int) -> None:
    counter = path.with_name("counter")
    while times:
        with suppress(AlreadyLockedError), locked(path):
            counter.write_text(str(int(counter.read_text()) + 1))
            times -= 1
            path.unlink()


def test_one_process_holds_a_lock_at_a_time_although_each_removes_the_file(tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=count_up, args=(tmp_path / "lock", 500)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert (tmp_path / "counter").read_text() == "2000"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error, locked(tmp_path / "nowhere" / "lock"):
        pass
    assert error.value.filename == str(tmp_path / "nowhere" / "lock")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"", "another process"), (b"\xff\0\x1b[31m\r\n", "\ufffd [31m"), (b"x" * 10_000, "x" * 200),
        (b"process 1 on a since 9e999\nmore\n", "process 1 on a since 9e999 more"),
    ],
)  # fmt: skip
def test_whatever_a_lock_says_of_its_holder_becomes_one_short_line(tmp_path: Path, written: bytes, said: str) -> None:
    path = tmp_path / "lock"
    with locked(path):
        path.write_bytes(written)
        with pytest.raises(AlreadyLockedError) as holder, locked(path):
            pass
    assert str(holder.value) == said
