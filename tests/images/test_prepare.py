"""File → checked, upright JPEG."""

import contextlib
import io
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from demo.scenes import draw_scene, save_turned, save_with_alpha
from tests.grounding.test_parse import native, native_json
from vllm_annotate.errors import ImageFailure
from vllm_annotate.grounding.parse import parse_answer
from vllm_annotate.images.prepare import PreparedImage, prepare, smart_resize, thumbnail
from vllm_annotate.recipe.families import FAMILIES, Family
from vllm_annotate.recipe.image_budget import ImageBudget
from vllm_annotate.recipe.settings import Recipe

BUDGET = ImageBudget(min_pixels=128 * 784, max_pixels=1280 * 784)


def pixels(prepared: PreparedImage) -> Image.Image:
    return Image.open(io.BytesIO(prepared.content))


def failure(root: Path, image_path: str) -> ImageFailure:
    with pytest.raises(ImageFailure) as caught:
        prepare(root, image_path, BUDGET)
    return caught.value


@given(st.integers(28, 6000), st.integers(28, 6000))
def test_the_resized_size_is_a_multiple_of_the_factor_within_the_budget(width: int, height: int) -> None:
    try:
        new_width, new_height = smart_resize(width, height, BUDGET)
    except ImageFailure:
        assert max(width, height) > 100 * min(width, height)  # rounding 41 pixels to 28 makes over 200 of that
        return
    assert new_width % 28 == 0
    assert new_height % 28 == 0
    assert BUDGET.min_pixels <= new_width * new_height <= BUDGET.max_pixels or max(width, height) > 20 * min(
        width, height
    )


@given(st.integers(28, 6000), st.integers(28, 6000))
@example(29, 5615)
def test_resizing_a_second_time_on_the_server_changes_nothing(width: int, height: int) -> None:
    server = ImageBudget(min_pixels=56 * 56, max_pixels=12_845_056)
    try:
        once = smart_resize(width, height, BUDGET)
    except ImageFailure:
        return
    assert smart_resize(*once, server) == once


@pytest.mark.parametrize(
    ("size", "budget", "expected"),
    [  # values of transformers 5.19, for factor 28
        ((640, 480), (3136, 1_003_520), (644, 476)),
        ((4000, 3000), (3136, 1_003_520), (1148, 840)),
        ((100, 50), (100_352, 1_003_520), (448, 224)),
        ((42, 70), (3136, 1_003_520), (56, 56)),  # round(1.5) and round(2.5) are both 2: banker's rounding
        ((5000, 30), (3136, 1_003_520), (5012, 28)),
        ((1275, 1650), (3136, 501_760), (616, 784)),
        ((28, 28), (100_352, 1_003_520), (336, 336)),
        ((6000, 31), (38_416, 63_504), (3500, 28)),
    ],
)
def test_smart_resize_agrees_with_transformers(
    size: tuple[int, int], budget: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert smart_resize(*size, ImageBudget(*budget)) == expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    upright = draw_scene(random.Random(7), 640, 420, 3).image
    save_turned(upright, tmp_path / "a.jpg", orientation)
    prepared = prepare(tmp_path, "a.jpg", BUDGET)
    assert (prepared.width, prepared.height) == (640, 420)
    shown = pixels(prepared)
    assert shown.size == (prepared.sent_width, prepared.sent_height)
    assert shown.getexif().get(274) is None
    expected = upright.resize(shown.size)
    worst = max(
        abs(a - b)
        for x in range(5, shown.width, 37)
        for y in range(5, shown.height, 37)
        for a, b in zip(shown.getpixel((x, y)), expected.getpixel((x, y)), strict=True)  # type: ignore[arg-type]
        if expected.resize((1, 1), box=(x - 4, y - 4, x + 4, y + 4)).getpixel((0, 0)) == expected.getpixel((x, y))
    )
    assert worst < 30


def test_an_upright_jpeg_of_the_right_size_is_sent_unchanged(tmp_path: Path) -> None:
    Image.new("RGB", (644, 476), "red").save(tmp_path / "a.jpg")
    assert prepare(tmp_path, "a.jpg", BUDGET).content == (tmp_path / "a.jpg").read_bytes()


def test_what_follows_a_jpeg_is_not_sent(tmp_path: Path) -> None:
    Image.new("RGB", (644, 476), "red").save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    for more in (b"\0\0\0", b"\n", b"what a phone appends" * 9):
        (tmp_path / "b.jpg").write_bytes(data + more)
        assert prepare(tmp_path, "b.jpg", BUDGET).content == data


@pytest.mark.parametrize("family", FAMILIES.values(), ids=str)
def test_a_jpeg_within_the_budget_keeps_its_size_only_if_the_server_is_known_to_resize(
    tmp_path: Path, family: Family
) -> None:
    budget = Recipe().image_budget(family)
    Image.new("RGB", (650, 470), "red").save(tmp_path / "a.jpg")
    known, unknown = (prepare(tmp_path, "a.jpg", budget, as_they_are=known) for known in (True, False))
    assert (known.sent_as, known.content) == ("original", (tmp_path / "a.jpg").read_bytes())
    assert unknown.sent_as == "jpeg"
    grid = smart_resize(650, 470, budget)
    assert pixels(unknown).size == (unknown.sent_width, unknown.sent_height) == grid
    assert (known.sent_width, known.sent_height) == (grid if family.name.startswith("qwen") else (650, 470))
    assert (known.width, known.height) == (unknown.width, unknown.height) == (650, 470)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(4, 2000), st.integers(4, 2000))
@example(5600, 20, 4, 2000)
@example(308, 322, 128, 1280)  # within the budget, and under it on the grid
def test_an_image_that_would_be_scaled_to_the_budget_is_resized_here(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, least: int, most: int
) -> None:
    budget = ImageBudget(min(least, most) * 784, max(least, most) * 784)
    folder = tmp_path_factory.getbasetemp()
    Image.new("L", (width, height)).save(folder / "a.jpg")
    try:
        prepared = prepare(folder, "a.jpg", budget, as_they_are=True)
    except ImageFailure:
        return
    rounded = round(width / 28) * 28, round(height / 28) * 28
    fits = budget.min_pixels <= rounded[0] * rounded[1] <= budget.max_pixels and min(width, height) >= 28
    assert prepared.sent_as == ("original" if fits else "jpeg")
    assert pixels(prepared).size == ((width, height) if fits else (prepared.sent_width, prepared.sent_height))


def test_half_a_jpeg_with_an_end_behind_it_is_not_sent(tmp_path: Path) -> None:
    whole = Image.effect_noise((644, 476), 50)
    whole.save(tmp_path / "a.jpg", exif=Image.Exif())
    data = (tmp_path / "a.jpg").read_bytes()
    for at in (30, 60, 100, data.index(b"\xff\xda") + 2):
        (tmp_path / "b.jpg").write_bytes(data[:at] + b"\xff\xd9")
        assert failure(tmp_path, "b.jpg").kind == "unreadable", at


def test_no_metadata_of_an_image_are_sent_or_shown(tmp_path: Path) -> None:
    secret = b"52.5163 N 13.3777 E"
    text = PngInfo()
    text.add_text("Comment", secret.decode())
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"comment": secret, "xmp": secret, "exif": secret}, "GIF": {"comment": secret},
        "PNG": {"pnginfo": text}, "WEBP": {"exif": secret, "xmp": secret}, "TIFF": {"description": secret.decode()},
    }  # fmt: skip
    for file_format, metadata in options.items():
        Image.new("RGB", (1000, 1300), "red").save(tmp_path / "a", file_format, **metadata)
        assert secret in (tmp_path / "a").read_bytes()
        for as_they_are in (True, False):
            assert secret not in prepare(tmp_path, "a", BUDGET, as_they_are=as_they_are).content
        assert secret not in thumbnail(tmp_path, "a", 200)[0]


def test_a_jpeg_that_draft_mode_reduces_to_the_target_is_not_sent_in_full(tmp_path: Path) -> None:
    Image.new("RGB", (644 * 4, 476 * 4), "red").save(tmp_path / "a.jpg")
    prepared = prepare(tmp_path, "a.jpg", ImageBudget(min_pixels=3136, max_pixels=644 * 476))
    assert pixels(prepared).size == (644, 476)
    assert (prepared.width, prepared.height) == (2576, 1904)


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    save_with_alpha(Image.new("RGB", (644, 476), "red"), tmp_path / "a.png")
    shown = pixels(prepare(tmp_path, "a.png", BUDGET))
    assert min(shown.getpixel((640, 100))) > 245  # type: ignore[arg-type]


def test_broken_files_are_unreadable(tmp_path: Path) -> None:
    Image.new("RGB", (300, 300), "blue").save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image at all")
    (tmp_path / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "fifo.jpg")
    for name in ("empty.jpg", "text.jpg", "torn.jpg", "folder.jpg", "fifo.jpg"):
        assert failure(tmp_path, name).kind == "unreadable", name


def test_a_decompression_bomb_is_too_large_and_is_not_decoded(tmp_path: Path) -> None:
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    Image.new("1", (12_000, 9_000)).save(tmp_path / "large.png")
    for name, size in (("bomb.png", "900000000 pixels"), ("large.png", "12000×9000")):
        refused = failure(tmp_path, name)
        assert refused.kind == "too_large"
        assert refused.message == f"{size} is over 89,478,485 pixels: shrink the image"


def test_an_aspect_ratio_over_200_is_refused_with_the_size(tmp_path: Path) -> None:
    Image.new("RGB", (3000, 10)).save(tmp_path / "sliver.png")
    assert "3000×10" in failure(tmp_path, "sliver.png").message


@pytest.mark.parametrize(("size", "resized"), [((29, 5615), "28×5628"), ((5640, 41), "5628×28")])
def test_an_aspect_ratio_over_200_after_rounding_is_refused_with_both_sizes(
    tmp_path: Path, size: tuple[int, int], resized: str
) -> None:
    Image.new("RGB", size).save(tmp_path / "long.png")
    refused = failure(tmp_path, "long.png")
    assert refused.kind == "unreadable"
    assert refused.message == (
        f"{size[0]}×{size[1]} pixels, resized to {resized}: the aspect ratio is over 200; crop the image"
    )


def test_a_long_image_that_stays_within_the_aspect_ratio_is_sent(tmp_path: Path) -> None:
    Image.new("RGB", (29, 5600)).save(tmp_path / "long.png")
    assert pixels(prepare(tmp_path, "long.png", BUDGET)).size == (28, 5600)


@given(data=st.binary(max_size=2000), cut=st.integers(0, 3000), at=st.integers(0, 3000))
def test_no_bytes_raise_anything_but_a_failure(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cut: int, at: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    buffer = io.BytesIO()
    draw_scene(random.Random(3), 80, 60, 1).image.save(
        buffer, random.Random(at).choice(["PNG", "JPEG", "GIF", "TIFF", "WEBP"])
    )
    whole = buffer.getvalue()
    (folder / "fuzzed").write_bytes(whole[:at] + data + whole[at + cut :])
    try:
        prepared = prepare(folder, "fuzzed", BUDGET)
    except ImageFailure:
        return
    assert pixels(prepared).mode in ("RGB", "L")


def test_eps_never_reaches_ghostscript(tmp_path: Path) -> None:
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n")
    assert failure(tmp_path, "a.eps").kind == "unreadable"


def test_a_broken_avif_is_unreadable(tmp_path: Path) -> None:
    Image.effect_noise((200, 200), 50).convert("RGB").save(tmp_path / "a.avif")
    whole = (tmp_path / "a.avif").read_bytes()
    for at in range(200, len(whole), 97):
        (tmp_path / "b.avif").write_bytes(whole[:at] + b"\xff" * 40 + whole[at + 40 :])
        with contextlib.suppress(ImageFailure):
            prepare(tmp_path, "b.avif", BUDGET)


def test_the_location_in_exif_is_not_sent(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.0)}
    Image.new("RGB", (644, 476), "red").save(tmp_path / "a.jpg", exif=exif)
    assert b"Exif" not in prepare(tmp_path, "a.jpg", BUDGET).content


def test_the_first_frame_of_an_animated_image_is_sent(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (644, 476), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        red, _, blue = pixels(prepare(tmp_path, name, BUDGET)).getpixel((300, 200))  # type: ignore[misc]
        assert red > 200 > 50 > blue


@pytest.mark.parametrize("family", FAMILIES.values(), ids=str)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_every_family_are_of_the_upright_image(tmp_path: Path, family: Family, orientation: int) -> None:
    rng = random.Random(orientation)
    width, height = rng.randint(28, 2000), rng.randint(28, 2000)
    save_turned(Image.new("RGB", (width, height), "white"), tmp_path / "a.jpg", orientation)
    budget = Recipe().image_budget(family)
    prepared = prepare(tmp_path, "a.jpg", budget)
    assert (prepared.width, prepared.height) == (width, height)
    assert (prepared.sent_width, prepared.sent_height) == smart_resize(width, height, budget) == pixels(prepared).size
    shares = [0.1, 0.2, 0.7, 0.9]
    sent = (prepared.sent_width, prepared.sent_height)
    across, down = family.denominators(*sent)
    box = parse_answer(native_json(family, native(family, shares, sent), "x"), family, *sent).objects[0]["bbox"]
    steps = [1 / across, 1 / down] * 2 if family.space != "unit" else [0.001] * 4
    for ours, exact, step in zip(box, shares, steps, strict=True):
        assert abs(ours - exact * 1000) <= 1 + step * 500
