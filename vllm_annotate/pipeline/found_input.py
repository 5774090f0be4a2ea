"""Finds the input of a job, and its images."""

import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.inside import DEFAULT_COLUMN, image_columns, image_root_at, open_inside
from vllm_annotate.inputs.listing import shown
from vllm_annotate.inputs.parquet_images import ParquetImages
from vllm_annotate.inputs.source import Source, check_source
from vllm_annotate.inputs.tar_images import TarImages
from vllm_annotate.job import Job
from vllm_annotate.storage.downloads import local_copy
from vllm_annotate.storage.image_roots import ImageRoot
from vllm_annotate.storage.shard import Shard
from vllm_annotate.storage.state_folder import state_folder


@dataclass(frozen=True)
class FoundInput:
    """An input that can be read, its columns, and its images, which may be inside it."""

    source: Source
    columns: list[str]
    images: ImageRoot
    is_inside: bool


def find_input(
    job: Job,
    folder: Path,
    retried: Path | None = None,
    stopped: threading.Event | None = None,
    name: str = "",
    *,
    prefixed: bool = False,
) -> FoundInput:
    """The input of a job, one file, downloaded if needed. The rows of one with images inside are written to the folder.

    `retried` is where a retry has its rows; paths of images inside begin with `name`, also own ones if they are
    `prefixed`. Setting `stopped` cancels a download. Raises UsageError if input or image root cannot be read, or a
    column is missing.
    """
    if isinstance(job.input, list):
        raise UsageError(f"input {shown(job.input)!r} are several files: name one")
    root = None if job.image_root is None else found_image_root(job.image_root, job.image_column, stopped)
    # What a run writes has its paths in image_path; the images may be in a column of another name, in a file.
    is_ours = job.input == retried or isinstance(root, TarImages | ParquetImages)
    column = DEFAULT_COLUMN if is_ours else job.image_column
    shard = Shard.parse(job.shard) if job.shard else None
    rows, stopped = folder / "rows.jsonl", stopped or threading.Event()
    dropped = tuple({job.image_column, job.caption_column} - {"image_path", "caption", ""})
    dropped = dropped if job.own_names == "drop" else ()
    inside = open_inside(
        job.input, column, job.caption_column, rows, stopped, name, guess=root is None, prefixed=prefixed
    )
    if inside is not None:
        source = Source(rows, DEFAULT_COLUMN, job.caption_column, shard, dropped=dropped)
        source = replace(source, origin=inside.where, origin_version=inside.version, origin_column=job.image_column)
        return FoundInput(source, check_source(source), inside, is_inside=True)
    path = local_copy(job.input, state_folder() / "inputs", stopped)
    source = Source(path, column, job.caption_column, shard, dropped=dropped)
    columns = check_source(source)
    if root is None:
        with_images = ", ".join(map(repr, image_columns(job.input)))
        named = f", or image_column to that with the images: {with_images}" if with_images else ""
        raise UsageError(f"no image is inside {job.input}: set image_root to the folder with the images{named}")
    return FoundInput(source, columns, root, is_inside=False)


def found_image_root(
    where: Path | str, image_column: str = DEFAULT_COLUMN, stopped: threading.Event | None = None
) -> ImageRoot:
    """The image root. Raises UsageError if it is not a readable folder, and no file with images inside."""
    root = image_root_at(where, image_column, stopped)
    if isinstance(root, Path) and not root.is_dir():
        raise UsageError(f"image root {str(root)!r} is not a folder: set --image-root to the folder with the images")
    if isinstance(root, Path) and not os.access(root, os.R_OK | os.X_OK):
        raise UsageError(f"this user cannot read image root {str(root)!r}: change its permissions")
    return root
