"""What a failed image probably is, or where it probably lies: for messages only."""

import os
import posixpath
import time
import unicodedata
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

from vllm_annotate.storage.image_roots import ImageRoot

MOST_NAMES = 10_000  # of a folder, compared without regard to case
LISTED_SECONDS = 60  # a listing serves many missing images
CONVERT = "convert it to JPEG or PNG"
KINDS = {  # how a file begins → what it is, and what to do
    b"version https://git-lfs": "a Git LFS pointer: fetch the files with git lfs pull",
    b"%PDF": f"a PDF: {CONVERT}",
    b"8BPS": f"a Photoshop file: {CONVERT}",
    b"%!PS": f"PostScript: {CONVERT}",
    b"\xff\x0a": f"JPEG XL, which Pillow does not read: {CONVERT}",
    b"\0\0\0\x0cJXL ": f"JPEG XL, which Pillow does not read: {CONVERT}",
    b"PK\x03\x04": "a ZIP archive: unpack it",
    b"\x1f\x8b": "compressed with gzip: unpack it",
    b"{": "JSON, perhaps the answer of a server in place of the image: download it again",
}
MARKUP = (b"<!doctype html", b"<html")
AVIF = (b"avif", b"avis")
HEIF = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevx", b"mif1", b"msf1")


def what_it_is(data: bytes) -> str:
    """Returns what a file that is no image is, with the remedy; empty if unknown."""
    for start, what in KINDS.items():
        if data.startswith(start):
            return what
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(MARKUP):
        return "an HTML page, perhaps the error of a server in place of the image: download it again"
    if head.startswith(b"<svg") or (head.startswith(b"<?xml") and b"<svg" in data[:4096].lower()):
        return f"an SVG drawing: {CONVERT}"
    if data[4:8] == b"ftyp":
        if data[8:12] in AVIF:
            return "a truncated AVIF image: restore it"
        kind = "HEIC or HEIF, which Pillow does not read" if data[8:12] in HEIF else "a video"
        return f"{kind}: {CONVERT}"
    if head.startswith(b"<?xml"):
        return "XML, perhaps the error of a store in place of the image: download it again"
    if data and not data.strip(b"\0"):
        return "zeros only, perhaps an unfinished download: restore it"
    return ""


def similar_path(image_root: ImageRoot, image_path: str) -> str:
    """Returns the path of an image that exists under a similar name; empty if none does."""
    for candidate in dict.fromkeys(_candidates(str(image_root), image_path)):
        if candidate == image_path:
            continue
        if _exists(image_root, candidate) if isinstance(image_root, Path) else image_root.has(candidate):
            return candidate
    return _in_other_case(image_root, image_path) if isinstance(image_root, Path) else ""


def _candidates(root: str, image_path: str) -> Iterator[str]:
    changes: list[Callable[[str], str]] = [_with_slashes, unquote, _trimmed, partial(_below, root)]
    all_at_once = image_path
    for change in changes:
        yield change(image_path)
        all_at_once = change(all_at_once)
    for path in (image_path, all_at_once):
        yield path
        yield unicodedata.normalize("NFC", path)
        yield unicodedata.normalize("NFD", path)


def _with_slashes(path: str) -> str:
    return path.replace("\\", "/")


def _trimmed(path: str) -> str:
    return "/".join(part.strip() for part in path.strip().split("/"))


def _below(root: str, path: str) -> str:
    """Removes a folder that the image root has already: `images/a.jpg` under /data/images."""
    first, _, rest = path.removeprefix("./").partition("/")
    return rest if rest and first == posixpath.basename(root.rstrip("/")) else path


def _exists(image_root: Path, path: str) -> bool:
    root, whole = os.path.normpath(image_root), os.path.normpath(image_root / path)
    try:
        return whole.startswith(root.rstrip(os.sep) + os.sep) and os.path.lexists(whole)
    except ValueError:
        return False


def _in_other_case(image_root: Path, image_path: str) -> str:
    path = image_root
    for part in Path(image_path).parts:
        if part in (os.sep, ".."):
            return ""
        path /= part if _exists(image_root, str(path / part)) else _names(path, _period()).get(_folded(part), part)
    found = str(path.relative_to(image_root))
    return found if _exists(image_root, found) else ""


def _period() -> int:
    return int(time.monotonic()) // LISTED_SECONDS


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


@lru_cache(maxsize=16)
def _names(folder: Path, _: int) -> dict[str, str]:
    try:
        with os.scandir(folder) as entries:
            return {_folded(entry.name): entry.name for entry in islice(entries, MOST_NAMES)}
    except (OSError, ValueError):
        return {}
