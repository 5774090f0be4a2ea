"""Text files, plain or compressed, in pieces."""

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import polars as pl

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.source import PARQUET, Source, input_rows
from vllm_annotate.results.table import lines_of_table
from vllm_annotate.results.written import written_files
from vllm_annotate.storage.locations import local_path

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
LONGEST_LINE_BYTES = 64 << 20


def check_file(path: Path, option: str, *, or_folder: bool = False) -> None:
    """Raises UsageError if the path is not a file with content, nor a folder of outputs where that will do."""
    named = f"{option} {str(path)!r}"
    local_path(path, option)
    if or_folder and path.is_dir():
        if not any(file.stat().st_size for file in written_files(path)):
            raise UsageError(f"{named} is a folder without .jsonl, .jsonl.zst or .parquet: name a run's output")
        return
    if not path.is_file():
        raise UsageError(f"{named} {'is not a file' if path.exists() else 'does not exist'}: correct the path")
    if not path.stat().st_size:
        raise UsageError(f"{named} is empty: a truth or an output has at least one row")


def lines_of(path: Path, named: str, most: int = LONGEST_LINE_BYTES) -> Iterator[tuple[int, bytes]]:
    """Yields the lines that are not blank, with their numbers, those over `most` bytes in pieces.

    Raises UsageError that begins with `named`. Of a folder the lines of all outputs in it.
    """
    if path.is_dir():
        for each in written_files(path):
            yield from lines_of(each, f"{named}, {each.name}", most)
        return
    if (start := _start(path)) == ZSTD or start == PARQUET:
        rows = lines_of_table(path) if start == PARQUET else (row.encode() for row in input_rows(Source(path)))
        try:
            yield from _not_blank(rows)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise UsageError(f"{named} is truncated or corrupt ({error!s:.200}): restore it") from None
        return
    with opened(path, named) as file:
        yield from _not_blank(iter(lambda: file.readline(most), b""))


def _not_blank(lines: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if text.strip():
            yield number, text


@contextmanager
def opened(path: Path, named: str) -> Iterator[IO[bytes]]:
    """The file, unpacked if it is a .gz. Raises UsageError if it is truncated or corrupt."""
    is_gzip = _start(path).startswith(GZIP)
    try:
        file: Any = gzip.open(path) if is_gzip else path.open("rb")  # noqa: SIM115 - closed below
        with file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"{named} is truncated or corrupt ({error}): restore it") from None


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(ZSTD))
