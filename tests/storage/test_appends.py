"""The log of appends: whether a file is as they left it."""

import os
from pathlib import Path

import pytest

from vllm_annotate.storage.appends import Append, appended_ranges, log_begin, log_end, only_appended

BEFORE = [50, 1]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "appends.jsonl"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    os.utime(path, ns=(9, 9))
    return path


def logged(log: Path, file: Path, *appends: tuple[list[int] | None, int, int, list[int] | None]) -> None:
    for found, start, end, left in appends:
        log_begin(log, Append(file.stat().st_ino, found, start, end))
        if left is not None:
            log_end(log, left)


@pytest.mark.parametrize(
    "appends",
    [
        [(BEFORE, 50, 100, [100, 9])],
        [(BEFORE, 51, 80, [80, 5]), ([80, 5], 80, 100, [100, 9])],  # a line break was added first
        [(BEFORE, 40, 80, [80, 5]), ([80, 5], 80, 100, None)],  # half a line was cut away first
        [(BEFORE, 50, 80, None), ([50, 5], 50, 100, [100, 9])],  # the first one was taken back
        [(BEFORE, 50, 80, None), ([70, 5], 70, 100, [100, 9])],  # it was killed half-way
        [(BEFORE, 50, 200, None)],
    ],
)
def test_a_file_that_only_grew_by_appends_is_known(log: Path, file: Path, appends: list) -> None:  # type: ignore[type-arg]
    logged(log, file, *appends)
    assert only_appended(log, BEFORE, file)


@pytest.mark.parametrize(
    "appends",
    [
        [],
        [([60, 2], 60, 100, [100, 9])],  # somebody added lines before the first
        [(BEFORE, 50, 80, [80, 5]), ([90, 6], 90, 100, [100, 9])],  # and between two
        [(BEFORE, 50, 90, [90, 5])],  # and after the last
        [(BEFORE, 50, 90, None)],
        [(BEFORE, 50, 100, [100, 8])],  # or changed it in place
        [(BEFORE, 50, 110, [110, 5])],  # or cut it
    ],
)
def test_a_file_that_somebody_else_wrote_to_is_not(log: Path, file: Path, appends: list) -> None:  # type: ignore[type-arg]
    logged(log, file, *appends)
    assert not only_appended(log, BEFORE, file)


def test_a_file_that_was_replaced_is_not(log: Path, file: Path) -> None:
    logged(log, file, (BEFORE, 50, 100, None))
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    other.replace(file)
    assert not only_appended(log, BEFORE, file)


def test_a_file_that_did_not_exist_before_may_have_been_created(log: Path, file: Path) -> None:
    logged(log, file, (None, 0, 100, [100, 9]))
    assert only_appended(log, None, file)
    file.unlink()
    assert not only_appended(log, None, file)


def test_the_lines_are_where_the_appends_put_them(log: Path, file: Path) -> None:
    logged(
        log, file, (BEFORE, 51, 60, [60, 5]), ([60, 5], 60, 70, None), ([60, 6], 60, 80, None), ([75, 7], 75, 90, None)
    )
    assert list(appended_ranges(log, 88)) == [(51, 60), (60, 75), (75, 88)]


def test_the_lines_of_a_file_that_was_cut_end_with_it(log: Path, file: Path) -> None:
    logged(log, file, (BEFORE, 50, 60, [60, 5]), ([60, 5], 60, 70, [70, 5]))
    assert list(appended_ranges(log, 55)) == [(50, 55)]


def test_half_a_line_at_the_end_of_the_log_is_no_line(log: Path, file: Path) -> None:
    logged(log, file, (BEFORE, 50, 100, [100, 9]))
    log.write_bytes(log.read_bytes() + b'{"inode": 1, "fo')
    assert only_appended(log, BEFORE, file)


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"[1", b"[1,2,3]\n", b'{"a": 1}\n', b"\xff\n", b"null\n", b'{"left": [1, 2]}\n',
        b'{"inode": 1e999, "found": [50, 1], "start": 50, "end": 100}\n',
        b'{"inode": 1, "found": "50", "start": 50, "end": 100}\n',
    ],
)  # fmt: skip
def test_a_damaged_log_vouches_for_nothing(log: Path, file: Path, damage: bytes) -> None:
    log.write_bytes(damage)
    assert not only_appended(log, BEFORE, file)
    assert list(appended_ranges(log, 100)) == []
