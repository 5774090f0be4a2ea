"""JPEGs by the faster libraries: the pictures that Pillow makes, and Pillow's word on every file that is not sound."""

import io
import random
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from tests.images.test_jpeg import FILES, METADATA, picture, saved
from vllm_annotate.errors import ImageFailure
from vllm_annotate.images.fast import fast_jpeg
from vllm_annotate.images.prepare import prepare
from vllm_annotate.images.upright import Upright, upright
from vllm_annotate.recipe.image_budget import ImageBudget

pytest.importorskip("simplejpeg")
pytest.importorskip("cv2")
BUDGET = ImageBudget(min_pixels=128 * 784, max_pixels=1280 * 784)


def opened(file: bytes) -> Upright:
    return upright(Image.open(io.BytesIO(file)))


def difference(jpeg: bytes, expected: Image.Image) -> float:
    """The mean difference of a channel's pixels, of 255, once both are JPEGs."""
    image, expected = Image.open(io.BytesIO(jpeg)), Image.open(io.BytesIO(saved(expected)))
    assert (image.size, image.mode) == (expected.size, expected.mode)
    assert not image.info.keys() & {"exif", "xmp", "comment", "icc_profile"}
    return max(ImageStat.Stat(ImageChops.difference(image, expected)).mean)


@pytest.mark.parametrize("size", [(644, 476), (308, 224), (1288, 952), (112, 84), (644, 1400)], ids=str)
@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "CMYK"])
def test_pixels_size_and_orientation_are_those_of_pillow(kind: str, turn: int, size: tuple[int, int]) -> None:
    file = METADATA[f"EXIF {turn}"](FILES[kind](picture(random.Random(kind), 640, 480)))
    jpeg = fast_jpeg(file, opened(file), size, 90)
    assert jpeg is not None
    assert difference(jpeg, opened(file).resized(size)) < 3


def test_large_files_are_decoded_at_reduced_size_as_pillow_does() -> None:
    file = saved(picture(random.Random(2), 4000, 3000))
    jpeg = fast_jpeg(file, opened(file), (1148, 840), 90)
    assert jpeg is not None
    assert difference(jpeg, opened(file).resized((1148, 840))) < 2


def test_other_formats_and_colours_are_left_to_pillow() -> None:
    image = picture(random.Random(3), 640, 480)
    for file in (FILES["CMYK"](image), *(saved(image, format=kind) for kind in ("PNG", "WEBP", "TIFF", "GIF"))):
        assert fast_jpeg(file, opened(file), (644, 476), 90) is None


def test_pillow_judges_every_file_that_is_not_sound(tmp_path: Path) -> None:
    rng = random.Random(4)
    file = saved(picture(rng, 700, 500))
    scan = file.index(b"\xff\xda")
    damaged = [file[:at] for at in range(scan + 20, len(file), len(file) // 20)]
    for _ in range(40):
        at = rng.randrange(scan + 20, len(file))
        damaged.append(file[:at] + rng.randbytes(9) + file[at + 9 :])
    seen = set()
    for data in damaged:
        (tmp_path / "a.jpg").write_bytes(data)
        try:
            pillow: Image.Image | None = opened(data).resized((700, 504))
        except OSError:
            pillow = None
        try:
            jpeg: bytes | None = prepare(tmp_path, "a.jpg", BUDGET).content
        except ImageFailure:
            jpeg = None
        assert (jpeg is None) is (pillow is None)
        if jpeg is not None and pillow is not None:
            assert difference(jpeg, pillow) < 3
        seen.add(jpeg is None)
    assert seen == {True, False}
