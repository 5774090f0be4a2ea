"""Tars of samples, as the webdataset package writes them, and with members of any kind."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import webdataset

from tests.conftest import Job


def write_webdataset(path: Path, job: Job) -> list[str]:
    """Writes the job's images and captions; returns their image paths."""
    with webdataset.TarWriter(str(path), encoder=True) as tar:
        for row in job.rows():
            name = row["image_path"]
            columns = {"url": f"https://example.org/{name}", "n": 2**70}
            image = job.images.joinpath(name).read_bytes()
            tar.write({"__key__": Path(name).stem, "jpg": image, "txt": row["caption"], "json": columns})
    return [f"{path.name}/{Path(name).with_suffix('.jpg')}" for name in job.names]


def write_tar(
    path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT
) -> None:
    """Writes members of these names."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
