"""Parquet files with the images inside, as data sets on hubs have them: a column of bytes, or of {bytes, path}."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from threading import Lock

import polars as pl

from vllm_annotate.errors import EmptyInput, ImageFailure, InputFault, UsageError
from vllm_annotate.inputs.polars_faults import polars_faults
from vllm_annotate.inputs.source import holds_bytes, json_rows
from vllm_annotate.storage.file_states import Version, file_version
from vllm_annotate.storage.json_text import dumped

# Decoded at once. Polars reads a whole row group for each block, and keeps the rows of the block: smaller blocks would
# read more, larger ones hold more.
BLOCK_BYTES = 64 * 1024**2
BLOCKS = 3  # in memory: rows are asked in order, a few lag behind, and the next block is decoded ahead
HEAD_ROWS = 100
METADATA_BYTES = 1 << 16  # at the end of the file


def columns_with_images(path: Path) -> list[str]:
    """Returns the columns of a Parquet file that may hold images."""
    schema = pl.scan_parquet(path, glob=False).collect_schema()
    return [name for name, dtype in schema.items() if _bytes_in(dtype)]


def image_column_of(path: Path, wanted: str, default: str) -> str:
    """Returns the column with images; empty if there is none.

    It is the one that is `wanted`, or if that is the `default`, and no column has that name, the only one with images.
    Raises UsageError if there are several.
    """
    schema, with_images = pl.scan_parquet(path, glob=False).collect_schema(), columns_with_images(path)
    if wanted in schema or wanted != default or not with_images:
        return wanted if wanted in with_images else ""
    if len(with_images) > 1:
        names = ", ".join(map(repr, with_images))
        raise UsageError(f"{path} has images in several columns: set --image-column to one of {names}")
    return with_images[0]


def _bytes_in(dtype: pl.DataType) -> bool:
    """Whether a column of this type holds bytes, or {bytes, path}."""
    if isinstance(dtype, pl.Struct):
        return any(field.name == "bytes" and field.dtype == pl.Binary for field in dtype.fields)
    return dtype == pl.Binary


def check_bytes(path: Path, column: str) -> None:
    """Raises UsageError if no row has an image: a column of {bytes, path} may hold paths alone."""
    head = _images(path, column, 0, HEAD_ROWS)
    if not len(head):
        raise EmptyInput(f"input {str(path)!r} has no rows: write one per image")
    if head.is_null().all() and not _has_bytes(path, column):
        raise UsageError(
            f"column {column!r} of {path} has no bytes, but paths at most: write the "
            "images into it (datasets: as push_to_hub does, or embed_table_storage before to_parquet), or "
            "write a column with the paths as texts, and set --image-column to it"
        )


def _has_bytes(path: Path, column: str) -> bool:
    rows = pl.scan_parquet(path, glob=False)
    images = pl.col(column)
    if isinstance(rows.collect_schema()[column], pl.Struct):
        images = images.struct.field("bytes")
    return bool(rows.select(images.is_not_null().any()).collect(engine="streaming").item())


def _images(path: Path, column: str, first: int, rows: int) -> pl.Series:
    """The images of some rows."""
    images = pl.scan_parquet(path, glob=False).slice(first, rows).select(column).collect().to_series()
    return images.struct.field("bytes") if isinstance(images.dtype, pl.Struct) else images


def image_paths(path: Path, column: str, name: str, *, prefixed: bool = False) -> list[str]:
    """Returns the image path of each row: its own if that is the only one of its name, else `<name>/<row from 0>`.

    Also if its own begins like that. Where they are `prefixed`, its own is `<name>/<own>`: of several files each may
    have the same ones.
    """
    rows = pl.scan_parquet(path, glob=False)
    dtype = rows.collect_schema()[column]
    if isinstance(dtype, pl.Struct) and pl.Field("path", pl.String) in dtype.fields:
        own = rows.select(pl.col(column).struct.field("path")).collect(engine="streaming").to_series().to_list()
    else:
        own = [None] * int(rows.select(pl.len()).collect().item())
    times, prefix = Counter(own), f"{name}/" if prefixed else ""

    def is_usable(own_path: str | None) -> bool:
        if not own_path or times[own_path] > 1:
            return False
        return not (own_path.isdecimal() if prefixed else own_path.startswith(f"{name}/"))

    return [f"{prefix}{own_path}" if is_usable(own_path) else f"{name}/{row}" for row, own_path in enumerate(own)]


def lines_of(path: Path, paths: list[str]) -> Iterator[bytes]:
    """Yields each row as a line of JSON, with its image path and all columns that can be written as JSON."""
    rows = json_rows(path, but="image_path")
    for image_path, row in zip(paths, rows, strict=True):
        members = dumped({"image_path": image_path})
        yield b"{" + members + (b"," if len(row) > len("{}") else b"") + row.encode()[1:] + b"\n"


def content_of(path: Path) -> str:
    """A digest of a file's size and metadata, which have the places and sizes of all columns: its copy has it, too."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - METADATA_BYTES))
        return blake2b(f"{size} ".encode() + file.read(), digest_size=16).hexdigest()


class ParquetImages:
    """The images of a column, decoded in blocks of rows."""

    is_remote = False

    def __init__(
        self, path: Path, column: str, paths: list[str], name: str, where: Path | str, version: Version
    ) -> None:
        """The images of these paths, one for each row, in the file of this name.

        `where` is that of which it is a copy, in this version; or the path itself.
        """
        self.path, self.where, self.version = path, where, version
        self.content = content_of(path)
        schema = pl.scan_parquet(path, glob=False).collect_schema()
        self.left_out = [name for name, dtype in schema.items() if name != column and holds_bytes(dtype)]
        self.replaced = [name for name in schema if name == "image_path" != column]
        self._version = file_version(path)
        self.is_numbered = any(own == f"{name}/{row}" for row, own in enumerate(paths))
        self._column = column
        self._rows = {image_path: row for row, image_path in enumerate(paths)}
        self._block_rows = max(1, BLOCK_BYTES * len(paths) // max(1, path.stat().st_size))
        self._blocks: OrderedDict[int, Future[pl.Series]] = OrderedDict()
        self._lock = Lock()
        self._decoding = ThreadPoolExecutor(1, thread_name_prefix="decode")

    def __str__(self) -> str:
        return str(self.where)

    def read(self, image_path: str, max_bytes: int) -> bytes:
        """Returns the first bytes of an image. Raises ImageFailure; InputFault if the file was replaced."""
        row = self._rows.get(image_path)
        if row is None:
            raise ImageFailure("missing", f"no row of {self} has the image path {image_path!r:.300}")
        number, place = divmod(row, self._block_rows)
        try:
            with polars_faults(self.path):
                image = self._block(number, place).result()[place]
        except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            with self._lock:  # the next image may find the disk well again
                self._blocks.pop(number, None)
            self._check_version()
            if isinstance(error, OSError):
                raise
            raise ImageFailure("unreadable", f"row {row} of {self} is corrupt ({error!s:.200}): restore it") from None
        if image is None:
            raise ImageFailure("missing", f"row {row} of {self} has no image in column {self._column!r}")
        return bytes(image[:max_bytes])

    def _block(self, number: int, place: int) -> "Future[pl.Series]":
        """A block, and when its second half is read, the next one ahead."""
        with self._lock:
            block = self._started(number)
            if place >= self._block_rows // 2 and (number + 1) * self._block_rows < len(self._rows):
                self._started(number + 1)
            return block

    def _started(self, number: int) -> "Future[pl.Series]":
        if number not in self._blocks:
            self._blocks[number] = self._decoding.submit(self._decoded, number)
            if len(self._blocks) > BLOCKS:
                self._blocks.popitem(last=False)
        return self._blocks[number]

    def _decoded(self, number: int) -> pl.Series:
        images = _images(self.path, self._column, number * self._block_rows, self._block_rows)
        self._check_version()
        return images

    def in_turn(self, image_paths: Sequence[str]) -> Iterable[int]:
        """By their rows."""
        return sorted(range(len(image_paths)), key=lambda at: self._rows.get(image_paths[at], 0))

    def _check_version(self) -> None:
        if file_version(self.path) != self._version:
            raise InputFault(f"{self} was replaced while it was read: run again")

    def is_empty(self) -> bool:
        """Whether the file is gone."""
        return not self.path.exists()

    def has(self, image_path: str) -> bool:
        """Whether a row has this image path."""
        return image_path in self._rows
