"""Atomic replacement of files."""

import errno
import os
from pathlib import Path

import polars as pl
import pytest

from vllm_annotate.inputs.polars_faults import polars_faults
from vllm_annotate.storage.atomic import replacing, unfinished_name
from vllm_annotate.storage.disk_errors import disk_is_full, explained


@pytest.mark.parametrize("name", ["a.jsonl", "x" * 240 + ".jsonl", "图" * 80 + ".jsonl", ".hidden", "\udcff.jsonl"])
def test_every_valid_name_has_a_valid_temporary_name(tmp_path: Path, name: str) -> None:
    with replacing(tmp_path / name) as file:
        file.write(b"x")
        assert len(list(tmp_path.iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_two_names_with_the_same_end_have_different_temporary_names(tmp_path: Path) -> None:
    first, second = (tmp_path / f"{prefix}{'x' * 120}.jsonl" for prefix in "ab")
    with replacing(first) as one, replacing(second) as two:
        one.write(b"one")
        two.write(b"two")
    assert (first.read_bytes(), second.read_bytes()) == (b"one", b"two")
    assert unfinished_name(first.name) == unfinished_name(first.name)


def test_an_io_error_of_polars_gets_an_errno(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing, polars_faults(tmp_path / "to.parquet"):
        pl.LazyFrame({"a": [1]}).sink_parquet(tmp_path / "no folder" / "to.parquet")
    assert missing.value.errno == errno.ENOENT
    with pytest.raises(pl.exceptions.ColumnNotFoundError), polars_faults(tmp_path):
        pl.DataFrame({"a": [1]}).select("b")


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, "make room"), (errno.EDQUOT, "quota"), (errno.EROFS, "mount it for writing")]
)
def test_a_full_disk_is_distinguished_from_a_failing_file(number: int, advice: str) -> None:
    error = OSError(number, os.strerror(number), "/data/x.jsonl")
    assert disk_is_full(error)
    assert advice in explained(error, "/data/labeled.jsonl")
    assert "/data/x.jsonl" in explained(error, "/data/labeled.jsonl")
    other = OSError(errno.EIO, os.strerror(errno.EIO))
    assert not disk_is_full(other)
    assert explained(other, "/data/labeled.jsonl").startswith("/data/labeled.jsonl: Input/output error")
