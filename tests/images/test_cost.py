"""What an image costs the client, in counts: times say little on a busy machine."""

import random
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import PIL
import pytest

from tests.images.test_jpeg import picture, saved, with_exif
from vllm_annotate.images.prepare import PreparedImage, prepare
from vllm_annotate.recipe.families import resolve_family
from vllm_annotate.recipe.request import RequestTemplate
from vllm_annotate.recipe.settings import Recipe

FAMILY = resolve_family("auto", "qwen2.5-vl")
BUDGET = Recipe().image_budget(FAMILY)
IMAGES = 20
WORK = {"PIL open", "decode", "resize", "encode_to_file"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photo = saved(picture(random.Random(1), 1000, 750), quality=100)
    (tmp_path / "bare.jpg").write_bytes(photo)
    (tmp_path / "with metadata.jpg").write_bytes(photo[:2] + with_exif(1) + photo[2:] + b"more" * 1000)
    (tmp_path / "turned.jpg").write_bytes(photo[:2] + with_exif(6) + photo[2:])
    prepare(tmp_path, "turned.jpg", BUDGET)  # what is loaded and cached once
    return tmp_path


def as_it_is(folder: Path, name: str) -> PreparedImage:
    return prepare(folder, name, BUDGET, as_they_are=True)


def calls(function: Callable[[], Any]) -> Counter[str]:
    """The calls of Pillow's functions, by name, and those of any function written in C."""
    counts, pillow = Counter[str](), str(Path(PIL.__file__).parent)

    def count(frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call":
            counts[argument.__name__] += 1
        elif event == "call" and frame.f_code.co_filename.startswith(pillow):
            counts[f"PIL {frame.f_code.co_name}"] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return counts


def reads() -> int:
    """The read calls of this thread so far."""
    return int(Path("/proc/thread-self/io").read_text().split("syscr: ")[1].split()[0])


def memory(function: Callable[[], Any]) -> int:
    """The most bytes that the function held at once."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_jpeg_within_the_budget_is_neither_decoded_nor_encoded(folder: Path) -> None:
    bare = calls(lambda: as_it_is(folder, "bare.jpg"))
    assert not [name for name in bare if name.startswith("PIL")]
    tagged = calls(lambda: as_it_is(folder, "with metadata.jpg"))
    turned = calls(lambda: as_it_is(folder, "turned.jpg"))
    assert not WORK & tagged.keys()
    assert {"PIL open", "resize"} <= turned.keys(), "or these names have changed"
    assert sum(bare.values()) < 100 < sum(turned.values())


@pytest.mark.parametrize("name", ["bare.jpg", "with metadata.jpg"])
def test_a_file_is_read_with_one_call(folder: Path, name: str) -> None:
    nothing = -reads() + reads()
    before = reads()
    for _ in range(IMAGES):
        as_it_is(folder, name)
    assert reads() - before - nothing == IMAGES


def test_a_jpeg_that_is_sent_as_it_is_is_copied_only_without_its_metadata_and_into_the_request(folder: Path) -> None:
    size = (folder / "bare.jpg").stat().st_size
    assert size > 200_000
    assert memory(lambda: as_it_is(folder, "bare.jpg")) < 1.05 * size
    assert memory(lambda: as_it_is(folder, "with metadata.jpg")) < 2.1 * size
    template = RequestTemplate(Recipe(), FAMILY, "qwen2.5-vl")
    assert memory(lambda: template.body("caption", as_it_is(folder, "bare.jpg").url())) < 3.8 * size
