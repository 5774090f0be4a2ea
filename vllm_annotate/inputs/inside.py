"""Inputs with the images inside: tars and Parquet files. Their rows become a file of JSON lines."""

import re
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from vllm_annotate.errors import EmptyInput, UsageError
from vllm_annotate.inputs.parquet_images import (
    ParquetImages,
    check_bytes,
    columns_with_images,
    image_column_of,
    image_paths,
    lines_of,
)
from vllm_annotate.inputs.source import PARQUET_SUFFIXES, is_parquet
from vllm_annotate.inputs.tar_images import LocalTar, RemoteTar, TarImages
from vllm_annotate.inputs.tars import Place, ending_of_images, is_tar, passed_over, rows_of
from vllm_annotate.storage.disk_errors import disk_is_full, explained
from vllm_annotate.storage.downloads import copied_version, local_copy
from vllm_annotate.storage.file_states import Version, file_version
from vllm_annotate.storage.image_roots import ImageRoot, RemoteFolder
from vllm_annotate.storage.locations import name_of, unreachable
from vllm_annotate.storage.state_folder import state_folder

DEFAULT_COLUMN = "image_path"
PACKED_TAR = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$", re.IGNORECASE)
GZIP = b"\x1f\x8b"
Inside = TarImages | ParquetImages


def open_inside(
    where: Path | str,
    image_column: str = DEFAULT_COLUMN,
    caption_column: str = "",
    rows: Path | None = None,
    stopped: threading.Event | None = None,
    name: str = "",
    *,
    guess: bool = True,
    prefixed: bool = False,
) -> Inside | None:
    """Returns the images inside a tar or a Parquet file, and writes its rows to a file; None if it has none.

    Only with `guess`, a column with images that nobody named is taken. Image paths begin with
    `name`, by default that of the file; those that Parquet files have of their own only if they are `prefixed`. Setting
    `stopped` ends it. Raises UsageError if the file cannot be read.
    """
    name, stopped = name or name_of(where), stopped or threading.Event()
    is_named = guess or image_column != DEFAULT_COLUMN
    if PACKED_TAR.search(name):
        raise _compressed(where)
    if isinstance(where, str):
        if where.lower().endswith(".tar"):
            return _in_tar(where, name, image_column, caption_column, rows, stopped)
        if not where.lower().endswith(PARQUET_SUFFIXES):
            return None
        copy = local_copy(where, state_folder() / "inputs", stopped)
        of = (where, copied_version(copy))
        return _in_parquet(copy, name, image_column, rows, of, prefixed=prefixed) if is_named else None
    where = where.expanduser()
    if not where.is_file():
        return None
    if is_tar(where):
        return _in_tar(where, name, image_column, caption_column, rows, stopped)
    if not (is_named and is_parquet(where)):
        return None
    return _in_parquet(where, name, image_column, rows, (where, file_version(where)), prefixed=prefixed)


def image_columns(where: Path | str) -> list[str]:
    """Returns the columns with images of a Parquet file on this machine; none of any other."""
    if isinstance(where, str) or not where.expanduser().is_file() or not is_parquet(where.expanduser()):
        return []
    return columns_with_images(where.expanduser())


def _in_parquet(
    path: Path, name: str, image_column: str, rows: Path | None, of: tuple[Path | str, Version], *, prefixed: bool
) -> ParquetImages | None:
    """The images of a file, which may be a copy `of` another, in its version."""
    version = file_version(path)
    try:
        column = image_column_of(path, image_column, DEFAULT_COLUMN)
        if not column:
            return None
        check_bytes(path, column)
        paths = image_paths(path, column, name, prefixed=prefixed)
        if rows is not None:
            with rows.open("wb") as file:
                file.writelines(lines_of(path, paths))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        if isinstance(error, OSError) and disk_is_full(error):
            raise UsageError(explained(error, rows or path)) from None
        if file_version(path) != version:
            raise UsageError(f"input {str(path)!r} was replaced while it was read: run again") from None
        raise UsageError(
            f"input {str(path)!r} cannot be read as Parquet ({error!s:.300}): if it is truncated or corrupt, restore it"
        ) from None
    if file_version(path) != version:
        raise UsageError(f"input {str(path)!r} was replaced while it was read: run again")
    return ParquetImages(path, column, paths, name, *of)


def _compressed(where: Path | str) -> UsageError:
    return UsageError(f"input {str(where)!r} is a compressed tar: unpack it, as with gunzip")


def _without_images(where: Path | str, broken: str) -> UsageError:
    if not broken:
        return EmptyInput(f"input {str(where)!r} has no images")
    if isinstance(where, Path):
        with where.open("rb") as file:
            if file.read(len(GZIP)) == GZIP:
                return _compressed(where)
    return UsageError(f"input {str(where)!r} is truncated or corrupt ({broken:.200}): restore it")


def _in_tar(
    where: Path | str,
    name: str,
    image_column: str,
    caption_column: str,
    rows: Path | None,
    stopped: threading.Event,
) -> TarImages:
    try:
        tar = LocalTar(where) if isinstance(where, Path) else RemoteTar(where)
        found = tar.headers(stopped.is_set, ending_of_images(image_column))
    except FileNotFoundError:
        raise UsageError(f"input {str(where)!r} does not exist") from None
    except OSError as error:
        if isinstance(where, str):
            raise unreachable(where, error) from None
        raise UsageError(f"input {str(where)!r} cannot be read: {error.strerror or error}") from None
    if not found.samples:
        raise _without_images(where, found.broken)
    places: dict[str, Place | str] = {}

    def lines() -> Iterator[bytes]:
        for image_path, line, place in rows_of(found, name, caption_column):
            places[image_path] = place
            yield line

    if rows is None:
        deque(lines(), maxlen=0)
    else:
        try:
            with rows.open("wb") as file:
                file.writelines(lines())
        except OSError as error:
            raise UsageError(explained(error, rows)) from None
    return TarImages(tar, places, passed_over(found))


def image_root_at(
    where: Path | str, image_column: str = DEFAULT_COLUMN, stopped: threading.Event | None = None
) -> ImageRoot:
    """Returns the images at a path or URL: of a folder, or of a file that has them inside."""
    inside = open_inside(where, image_column, stopped=stopped)
    if inside is not None:
        return inside
    return where.expanduser() if isinstance(where, Path) else RemoteFolder(where)
