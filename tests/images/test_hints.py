"""What a failed image is, and where it lies."""

import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from vllm_annotate.errors import ImageFailure
from vllm_annotate.images.hints import MOST_NAMES, similar_path
from vllm_annotate.images.prepare import prepare
from vllm_annotate.recipe.image_budget import ImageBudget

BUDGET = ImageBudget(min_pixels=128 * 784, max_pixels=1280 * 784)
NFC, NFD = (unicodedata.normalize(form, "é/ü.jpg") for form in ("NFC", "NFD"))


def failure(root: Path, image_path: str) -> ImageFailure:
    with pytest.raises(ImageFailure) as caught:
        prepare(root, image_path, BUDGET)
    return caught.value


@pytest.mark.parametrize(
    ("written", "there"),
    [
        (NFC, NFD), (NFD, NFC), ("a\\b.jpg", "a/b.jpg"), ("a%20b/c%C3%A9.jpg", "a b/cé.jpg"), (" a/b.jpg ", "a/b.jpg"),
        ("a/ b.jpg", "a/b.jpg"), ("A/B.JPG", "a/b.jpg"), ("images/a/b.jpg", "a/b.jpg"), ("a/b.jpg", "a/B.JPG"),
        ("images\\a%20b\\c.jpg", "a b/c.jpg"), (NFC.upper(), NFD),
    ],
)  # fmt: skip
def test_a_missing_image_that_exists_under_a_similar_name_is_pointed_out(
    tmp_path: Path, written: str, there: str
) -> None:
    root = tmp_path / "images"
    (root / there).parent.mkdir(parents=True)
    Image.new("RGB", (200, 100)).save(root / there)
    missing = failure(root, written)
    assert missing.kind == "missing"
    assert missing.message.endswith(f"; {there!r} exists: correct the path")


@pytest.mark.parametrize(
    "written",
    [
        "nothing.jpg",
        "%2e%2e/outside.jpg",
        "..\\outside.jpg",
        "%2Fetc%2Fpasswd",
        "\0 .jpg",
        "\ud800 .jpg",
        "x" * 999,
    ],
)
def test_nothing_outside_the_root_is_pointed_out(tmp_path: Path, written: str) -> None:
    (tmp_path / "outside.jpg").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").touch()
    missing = failure(tmp_path / "images", written)
    assert missing.kind == "missing"
    assert "exists" not in missing.message


def test_a_large_folder_is_listed_once_and_in_part(tmp_path: Path) -> None:
    for number in range(MOST_NAMES + 10):
        os.close(os.open(tmp_path / f"{number}.jpg", os.O_CREAT))
    found = [similar_path(tmp_path, f"{number}.JPG") for number in range(MOST_NAMES + 10)]
    assert len([path for path in found if path]) == MOST_NAMES


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC or HEIF, which Pillow does not read: convert it to JPEG"),
        (b"\0\0\0\x18ftypisom\0\0\2\0", "a video: convert"), (b"%PDF-1.7\n", "a PDF: convert"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "a truncated AVIF image: restore it"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML, perhaps the error of a store"),
        (b"<!DOCTYPE html><html>", "an HTML page, perhaps the error of a server"), (b"\n<html>", "an HTML page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="">', "an SVG drawing"), (b"<svg>", "an SVG drawing"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer: fetch the files with git lfs pull"),
        (b'{"error": "not found"}', "JSON, perhaps the answer of a server"), (bytes(999), "zeros only"),
        (b"\x1f\x8b\x08", "compressed with gzip"), (b"\xff\x0a\0", "JPEG XL"), (b"words", "not an image that Pillow"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    refused = failure(tmp_path, "a.jpg")
    assert refused.kind == "unreadable"
    assert said in refused.message
