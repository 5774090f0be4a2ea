"""Image files inside the root."""

import errno
import os
import resource
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from vllm_annotate.errors import ImageFailure, MachineFault
from vllm_annotate.images.files import FOLDER_SECONDS, close_folders, read_image
from vllm_annotate.storage.image_roots import RemoteFolder


def failure(root: Path, image_path: str) -> ImageFailure:
    with pytest.raises(ImageFailure) as caught:
        read_image(root, image_path)
    return caught.value


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_only_regular_files_inside_the_root_are_read_whatever_links_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    for where in (root / "a.jpg", tmp_path / "outside.jpg"):
        where.write_bytes(b"read")
    for name, target in {
        "inside.jpg": "a.jpg", "sub/up.jpg": "../a.jpg", "out.jpg": "../outside.jpg", "loop.jpg": "loop.jpg",
        "device.jpg": "/dev/zero", "dangling.jpg": "nothing.jpg", "folder": "..", "twin": "sub",
    }.items():  # fmt: skip
        (root / name).symlink_to(target)
    os.mkfifo(root / "fifo.jpg")
    found = {}
    names = ["a.jpg", "inside.jpg", "sub/up.jpg", "sub/../a.jpg", "twin/../a.jpg", "twin/up.jpg", str(root / "a.jpg"),
             "out.jpg", "../outside.jpg", "../gone.jpg", "folder/outside.jpg", "/etc/passwd", "device.jpg",
             "loop.jpg", "dangling.jpg", "fifo.jpg", "sub", "", ".", "sub/"]  # fmt: skip
    for name in names:
        try:
            found[name] = read_image(root, name).decode()
        except ImageFailure as failure:
            found[name] = failure.kind
    assert found == dict.fromkeys(names[:7], "read") | dict.fromkeys(names[7:13], "outside_root") | {
        "loop.jpg": "unreadable", "dangling.jpg": "missing", "fifo.jpg": "unreadable", "sub": "unreadable",
        "": "unreadable", ".": "unreadable", "sub/": "unreadable",
    }  # fmt: skip


def test_a_folder_whose_name_starts_with_the_roots_is_outside(tmp_path: Path) -> None:
    for name in ("root", "root-twin"):
        (tmp_path / name).mkdir()
    (tmp_path / "root-twin" / "a.jpg").write_bytes(b"secret")
    assert failure(tmp_path / "root", "../root-twin/a.jpg").kind == "outside_root"


def test_a_root_can_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(b"read")
    (tmp_path / "root").symlink_to(tmp_path / "real")
    assert read_image(tmp_path / "root", "a.jpg") == b"read"


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "another.jpg").touch()
    assert failure(tmp_path, "nothing.jpg").kind == "missing"
    assert failure(tmp_path, "a" * 5000).kind == "missing"
    assert failure(tmp_path, "nul\0.jpg").kind == "missing"
    assert failure(tmp_path, "\ud800.jpg").kind == "missing"


def test_a_replaced_folder_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"old")
    assert read_image(tmp_path, "images/a.jpg") == b"old"
    (tmp_path / "images").rename(tmp_path / "gone")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"new")
    (tmp_path / "images" / "b.jpg").write_bytes(b"more")
    assert read_image(tmp_path, "images/b.jpg") == b"more"
    time.sleep(FOLDER_SECONDS)
    assert read_image(tmp_path, "images/a.jpg") == b"new"


def test_a_root_that_is_gone_or_empty_is_no_images_fault(tmp_path: Path) -> None:
    with pytest.raises(MachineFault, match=r"image root .* is empty: check whether it is mounted"):
        read_image(tmp_path, "a.jpg")
    with pytest.raises(MachineFault, match=r"gone cannot be read \(No such file or directory\)"):
        read_image(tmp_path / "gone", "a.jpg")


def test_a_root_that_is_a_link_may_lead_elsewhere_in_the_next_run(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(name.encode())
    (tmp_path / "root").symlink_to("old")
    assert read_image(tmp_path / "root", "a.jpg") == b"old"
    (tmp_path / "root").unlink()
    (tmp_path / "root").symlink_to("new")
    assert read_image(tmp_path / "root", "a.jpg") == b"old", "a run reads one folder to its end"
    close_folders()
    assert read_image(tmp_path / "root", "a.jpg") == b"new"


class FaultyStore(MemoryFileSystem):  # type: ignore[misc]
    """A store that cannot give one object, and says so in its own way."""

    protocol = "faulty"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("faulty:/")))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Returns the content of an object."""
        if path.endswith("timeout.jpg"):
            raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")
        if path.endswith("cut.jpg"):
            raise EOFError("the store sent half of it")
        return bytes(super().cat_file(path, start, end))


def test_an_error_of_a_store_at_one_object_is_that_images_failure() -> None:
    fsspec.register_implementation("faulty", FaultyStore, clobber=True)
    root = RemoteFolder("faulty://bucket/images")
    fsspec.filesystem("faulty").pipe_file("/bucket/images/whole.jpg", b"read")
    for name, cause in {"timeout.jpg": "Connection timed out", "cut.jpg": "EOFError: the store sent half"}.items():
        with pytest.raises(ImageFailure, match=f"{cause}.*'{name}' under faulty://bucket/images.*run again") as caught:
            read_image(root, name)
        assert caught.value.kind == "unreadable"
    assert read_image(root, "whole.jpg") == b"read"


def test_folders_are_closed(tmp_path: Path) -> None:
    def descriptors() -> set[str]:
        return {str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()}

    for number in range(200):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "a.jpg").write_bytes(b"read")
        read_image(tmp_path, f"{number}/a.jpg")
    assert len([path for path in descriptors() if path.startswith(str(tmp_path))]) < 70
    close_folders()
    assert not [path for path in descriptors() if path.startswith(str(tmp_path))]


def test_a_lack_of_file_descriptors_is_not_the_images_fault(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"read")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1], hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            read_image(tmp_path, "a.jpg")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)
