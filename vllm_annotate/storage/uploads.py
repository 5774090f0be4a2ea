"""Conditional uploads to an object store: an object that another program changed is not overwritten."""

import errno
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fsspec import AbstractFileSystem

from vllm_annotate.storage.locations import version_of

PIECE_BYTES = 64 * 1024 * 1024  # larger files are uploaded in pieces of this size
MAX_PIECES = 10_000  # S3's limit
MARK = "vllm-annotate-upload"  # metadata key whose value identifies one upload


class ObjectChangedError(OSError):
    """Another program wrote or removed the object since this one last saw it."""

    def __init__(self, url: str) -> None:
        super().__init__(errno.ESTALE, "was changed by another program during this run", url)


def version_there(fs: AbstractFileSystem, path: str) -> str | None:
    """Returns the version of an object, or None if it does not exist."""
    try:
        return version_of(fs.info(path))
    except FileNotFoundError:
        return None


def upload(fs: AbstractFileSystem, source: Path, path: str, before: str | None) -> str:
    """Replaces the object whose version is `before` (None: it does not exist) with a file; returns the new version.

    On S3 the write is conditional, so exactly one of two concurrent uploads wins. On other stores the version is
    compared first. Raises ObjectChangedError.
    """
    if "s3" not in fs.protocol:
        _check_version(fs, path, before)
        fs.put_file(str(source), path)
        return version_of(fs.info(path))
    mark = secrets.token_hex(8)
    try:
        return _put(fs, source, path, before, mark)
    except (FileNotFoundError, FileExistsError):
        pass
    except OSError as error:
        if error.errno != errno.EINVAL:  # "precondition failed"
            raise
    # Also raised if the driver's first attempt succeeded and its retry found the result.
    bucket, key, _ = fs.split_path(path)
    if version_there(fs, path) is not None:
        there = fs.call_s3("head_object", Bucket=bucket, Key=key)
        if there.get("Metadata", {}).get(MARK) == mark:
            return version_of(there)
    raise ObjectChangedError(path)


def remove(fs: AbstractFileSystem, path: str, before: str | None) -> None:
    """Removes the object whose version is `before`. Raises ObjectChangedError."""
    if version_there(fs, path) is not None:
        _check_version(fs, path, before)
        fs.rm_file(path)


def _check_version(fs: AbstractFileSystem, path: str, before: str | None) -> None:
    if version_there(fs, path) != before:
        raise ObjectChangedError(path)


def _put(fs: AbstractFileSystem, source: Path, path: str, before: str | None, mark: str) -> str:
    bucket, key, _ = fs.split_path(path)
    there = {"Bucket": bucket, "Key": key}
    condition = {"IfNoneMatch": "*"} if before is None else {"IfMatch": before}
    marked = {"Metadata": {MARK: mark}}
    with source.open("rb") as file:
        if source.stat().st_size <= PIECE_BYTES:
            return version_of(fs.call_s3("put_object", **there, Body=file.read(), **marked, **condition))
        upload_id = fs.call_s3("create_multipart_upload", **there, **marked)["UploadId"]
        try:
            parts = [
                {"PartNumber": number, "ETag": _put_piece(fs, there, upload_id, number, piece)}
                for number, piece in enumerate(_pieces(file, source.stat().st_size), start=1)
            ]
            _check_version(fs, path, before)  # some stores check conditions for simple uploads only
            done = fs.call_s3(
                "complete_multipart_upload", **there, UploadId=upload_id, MultipartUpload={"Parts": parts}, **condition
            )
        except BaseException:
            fs.call_s3("abort_multipart_upload", **there, UploadId=upload_id)
            raise
    return version_of(done)


def _put_piece(fs: AbstractFileSystem, there: dict[str, str], upload_id: str, number: int, piece: bytes) -> Any:
    return fs.call_s3("upload_part", **there, UploadId=upload_id, PartNumber=number, Body=piece)["ETag"]


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    length = max(PIECE_BYTES, -(-size // MAX_PIECES))
    while piece := file.read(length):
        yield piece
