"""The image paths of a large output, in Parquet beside it: a start reads only what was appended since.

Size, time and a digest of both ends of the output vouch for it; if they do not, the output is read.
"""

import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path

import polars as pl

from vllm_annotate.inputs.plan_file import read_plan_file
from vllm_annotate.inputs.source import output_lines, output_lines_from
from vllm_annotate.storage.appends import Version, only_appended, read_appends
from vllm_annotate.storage.atomic import read_json, replacing_path, write_json
from vllm_annotate.storage.file_states import file_version
from vllm_annotate.storage.packed import is_packed
from vllm_annotate.storage.workspace import Workspace

SMALLEST_BYTES = 64 * 1024**2  # of an output that is indexed: smaller ones are read within a second
MOST_BYTES = 512 * 1024**2  # of what is read at once; where more was appended, the whole output is read as a stream
END_BYTES = 64 * 1024
BLOCK_BYTES = 4 * 1024**2


@dataclass(frozen=True)
class Index:
    """What done.parquet holds: the lines of the first `indexed` bytes of the output."""

    indexed: int
    lines: int
    ends: str  # digest of the first and last bytes of these
    rows: str  # digest of done.parquet
    version: Version  # of the output, up to which it was only appended to


def written_lines(workspace: Workspace) -> pl.LazyFrame:
    """Returns columns line and image_path of all outputs, as `output_lines`, from the index as far as it goes."""
    output, *others = workspace.outputs
    index = _valid_index(workspace)
    if index is None:
        return output_lines(output, *others)
    indexed = pl.scan_parquet(workspace.done_rows, glob=False)
    return pl.concat([indexed, output_lines_from(output, index.indexed, index.lines), output_lines(*others)])


def count_lines(workspace: Workspace) -> int:
    """Counts the lines of the output. Reads what the index does not have."""
    if is_packed(workspace.output):
        return int(output_lines(workspace.output).select(pl.len()).collect(engine="streaming").item())
    index = _valid_index(workspace)
    try:
        with workspace.output.open("rb") as file:
            file.seek(index.indexed if index else 0)
            read = sum(block.count(b"\n") for block in iter(lambda: file.read(BLOCK_BYTES), b""))
    except FileNotFoundError:
        return 0
    return read + (index.lines if index else 0)


def index_output(workspace: Workspace, smallest_bytes: int = SMALLEST_BYTES) -> None:
    """Brings the index of a large output up to date, or leaves it: what it saves is time, and never worth an error."""
    with suppress(OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        _index(workspace, smallest_bytes)


def _index(workspace: Workspace, smallest_bytes: int) -> None:
    output, version = workspace.output, file_version(workspace.output)
    if version is None or version[0] < max(1, smallest_bytes) or not _ends_with_line(output):
        return
    index = _valid_index(workspace)
    if index is not None and index.indexed == version[0]:
        return
    with replacing_path(workspace.done_rows) as path:
        _lines_of(workspace, index).sink_parquet(path, engine="streaming")
        lines = pl.scan_parquet(path, glob=False).select(pl.col("line").max()).collect().item()
        made = Index(version[0], lines or 0, _ends(output, version[0]), _digest(path), version)
        if file_version(output) != version:
            return
    write_json(workspace.done_index, asdict(made))


def vouch(workspace: Workspace) -> None:
    """Tells the index that the output was only appended to since the plan in progress was made, if that is so."""
    index, began = _read_index(workspace), _begun_with(workspace)
    if index is None or index.version != began:
        return
    if only_appended(workspace.appends, began, workspace.output, whole=True):
        left = read_appends(workspace.appends)[-1].left
        with suppress(OSError):  # then the output is read
            write_json(workspace.done_index, asdict(index) | {"version": left})


def _lines_of(workspace: Workspace, index: Index | None) -> pl.LazyFrame:
    if index is None:
        return output_lines(workspace.output)
    indexed = pl.scan_parquet(workspace.done_rows, glob=False)
    return pl.concat([indexed, output_lines_from(workspace.output, index.indexed, index.lines)])


def _valid_index(workspace: Workspace) -> Index | None:
    """The index, if the output is what it was but for lines that were appended."""
    index, version = _read_index(workspace), file_version(workspace.output)
    if index is None or version is None or version[0] - index.indexed > MOST_BYTES:
        return None
    began, output = _begun_with(workspace), workspace.output
    if index.version not in (version, began):
        return None
    if index.version != version and not only_appended(workspace.appends, began, output, whole=True):
        return None
    return index if _ends(output, index.indexed) == index.ends else None


def _begun_with(workspace: Workspace) -> Version | None:
    """The version of the output when the plan in progress was made or kept."""
    plan = read_plan_file(workspace)
    return plan.outputs[0] if plan is not None and plan.outputs else None


def _read_index(workspace: Workspace) -> Index | None:
    try:
        index = Index(**read_json(workspace.done_index) or {})
        return index if _digest(workspace.done_rows) == index.rows else None
    except (ValueError, TypeError, OSError):
        return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, partial(blake2b, digest_size=16)).hexdigest()


def _ends(output: Path, size: int) -> str:
    with output.open("rb") as file:
        first = file.read(min(size, END_BYTES))
        file.seek(max(0, size - END_BYTES))
        return blake2b(first + file.read(min(size, END_BYTES)), digest_size=16).hexdigest()


def _ends_with_line(output: Path) -> bool:
    with output.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
