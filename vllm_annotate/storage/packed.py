"""Output files that are written when their input file is finished: Zstandard and Parquet. Until then, lines grow."""

import shutil
from pathlib import Path

import zstandard

from vllm_annotate.storage.atomic import replacing_path

PLAIN, ZSTD, TABLE = ENDINGS = (".jsonl", ".jsonl.zst", ".parquet")  # of output files
BESIDE = (".failures.jsonl", ".audit.jsonl", ".reviewed.jsonl")  # what commands write beside an output
ROW = "row"  # column of a Parquet output: the whole row as JSON
LEVEL = 6  # rows with the stand-in's answers become an eighth; level 12 saves a tenth more, in three times the time


def is_packed(path: Path) -> bool:
    """Whether an output file has another form than lines, by its name."""
    return path.name.endswith((ZSTD, TABLE))


def names_of(name: str) -> list[str]:
    """The names that an output file may have, from its name in any form; plain lines first."""
    stem = name.removesuffix(next((ending for ending in ENDINGS if name.endswith(ending)), ""))
    return [stem + ending for ending in ENDINGS]


def may_be_output(path: Path) -> bool:
    """Whether a file of an output may be what it is: of this name, and a table only with a column of rows."""
    if path.suffix == TABLE:
        import polars as pl  # where help is printed, this module is imported too

        try:
            return pl.read_parquet_schema(path).get(ROW) == pl.String
        except (OSError, pl.exceptions.PolarsError):
            return False
    return path.name.endswith(ENDINGS)


def add_frame(target: Path, rows: Path) -> None:
    """Replaces a compressed file with what it had, byte for byte, and a frame with the content of another file."""
    with replacing_path(target) as unfinished, unfinished.open("wb") as file:
        if target.exists():
            with target.open("rb") as before:
                shutil.copyfileobj(before, file)
        with rows.open("rb") as added:
            zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).copy_stream(added, file)
