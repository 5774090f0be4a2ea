"""The rows of an output: those of its file, or of the files of one that is a folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.source import Source, input_rows
from vllm_annotate.results.table import lines_of_table
from vllm_annotate.storage.atomic import replacing_path
from vllm_annotate.storage.packed import BESIDE, ENDINGS, TABLE, is_packed


def written_files(output: Path) -> list[Path]:
    """The file of an output, or those of a folder, by name; none if it is neither."""
    if not output.is_dir():
        return [output] if output.is_file() else []
    found = (path for path in output.rglob("*.*") if path.name.endswith(ENDINGS))
    # A folder has the name of an input folder, which Spark ends like a file.
    return sorted(path for path in found if not path.name.endswith(BESIDE) and path.is_file())


def lines_of(path: Path) -> Iterator[bytes]:
    """Yields the lines of an output file. Raises UsageError if that is no plain file, and truncated or corrupt."""
    if not is_packed(path):
        with path.open("rb") as file:
            yield from file
        return
    try:
        if path.suffix == TABLE:
            yield from lines_of_table(path)
            return
        for row in input_rows(Source(path)):
            yield row.encode() + b"\n"
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UsageError(f"{path} is truncated or corrupt ({error!s:.200}): restore it") from None


def unpack(source: Path, target: Path) -> None:
    """Replaces `target` with the lines of an output file. Raises UsageError as `lines_of`."""
    with replacing_path(target) as unfinished, unfinished.open("wb") as file:
        file.writelines(lines_of(source))


@dataclass(frozen=True)
class Written:
    """What an output has now: a run may append meanwhile, and all passes over it read the same."""

    files: list[tuple[Path, int]]  # with their sizes in bytes

    @classmethod
    def of(cls, output: Path) -> "Written":
        """The rows of the output at this path."""
        return cls([(path, path.stat().st_size) for path in written_files(output)])

    def lines(self) -> Iterator[bytes]:
        """Yields all lines."""
        for path, left in self.files:
            if is_packed(path):  # it is only replaced
                yield from lines_of(path)
                continue
            for line in lines_of(path):
                left -= len(line)
                if left < 0:
                    break
                yield line
