"""Image paths with bytes that are not UTF-8. Polars reads each such byte as U+FFFD, and different paths become one."""

import gzip
import json
from collections.abc import Collection

import polars as pl

from vllm_annotate.inputs.source import Source

REPLACEMENT = "\ufffd"
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def without_broken_paths(source: Source, keys: pl.LazyFrame) -> pl.LazyFrame:
    """Returns columns line and image_path with null for each path that is not UTF-8 in the input."""
    if source.is_parquet:
        return keys
    replaced = keys.filter(pl.col("image_path").str.contains(REPLACEMENT, literal=True)).select("line")
    lines = replaced.collect(engine="streaming")["line"].to_list()
    if not lines or not (broken := _broken(source, set(lines))):
        return keys
    is_broken = pl.col("line").is_in(broken)
    return keys.with_columns(image_path=pl.when(is_broken).then(None).otherwise("image_path"))


def _broken(source: Source, lines: Collection[int]) -> list[int]:
    """Returns which of these lines have no UTF-8 in their path: with U+FFFD itself there, a path is valid."""
    with source.path.open("rb") as file:
        start = file.read(len(ZSTD))
    if start == ZSTD:  # Python before 3.14 cannot read it
        return list(lines)
    opened = gzip.open if start.startswith(GZIP) else open
    with opened(source.path, "rb") as file:
        return [
            number
            for number, line in enumerate(file, start=1)
            if number in lines and not _is_utf_8(line, source.image_column)
        ]


def _is_utf_8(line: bytes, column: str) -> bool:
    try:
        json.loads(line.decode("utf-8", "surrogateescape"))[column].encode()
    except ValueError:  # of the encoding, or the line has changed since
        return False
    return True
