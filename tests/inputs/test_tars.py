"""Tars: their rows, their images, and what is broken in them."""

import io
import json
import os
import random
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tars import write_tar
from vllm_annotate.errors import ImageFailure, UsageError
from vllm_annotate.inputs.inside import Inside, open_inside

SAMPLE = {"a/1.jpg": b"image", "a/1.txt": "一只猫\n".encode(), "a/1.json": b'{"url": "x", "n": 1e400}'}


def opened(path: Path, image_column: str = "image_path") -> tuple[list[dict[str, Any]], Inside]:
    """The rows of a tar, and its images."""
    rows = path.with_name("rows.jsonl")
    inside = open_inside(path, image_column, "caption", rows)
    assert inside is not None
    return [json.loads(line) for line in rows.read_text().splitlines()], inside


def why_not(inside: Inside, image_path: str) -> str:
    with pytest.raises(ImageFailure) as failed:
        inside.read(image_path, 100)
    assert not inside.has(image_path)
    return f"{failed.value.kind}: {failed.value.message}"


def test_the_members_of_a_key_are_a_row(tmp_path: Path) -> None:
    path = tmp_path / "00000.tar"
    write_tar(path, {"b.json": b"{}", **SAMPLE, "readme.md": b"", "b.PNG": b"png", "a/1.cls": b"3"})
    rows, inside = opened(path)
    assert [row["image_path"] for row in rows] == ["00000.tar/b.PNG", "00000.tar/a/1.jpg"]
    assert rows[1] == {"image_path": "00000.tar/a/1.jpg", "url": "x", "n": float("inf"), "caption": "一只猫"}
    assert '"n":1e400' in tmp_path.joinpath("rows.jsonl").read_text(), "as it is written"
    assert inside.read("00000.tar/a/1.jpg", 100) == b"image"
    assert inside.read("00000.tar/a/1.jpg", 2) == b"im"
    assert inside.read("00000.tar/b.PNG", 100) == b"png"
    assert not inside.is_empty()
    path.unlink()
    assert inside.is_empty()


@pytest.mark.parametrize(
    ("columns", "caption"),
    [
        (b'{"caption": "of the columns"}', "of the columns"),
        (b'{"caption": null}', "of the text"),
        (b'{"caption": ["a", "b"]}', ["a", "b"]),
        (b'\xef\xbb\xbf{\n"image_path":\n"mine"}', "of the text"),
    ],
)
def test_a_caption_is_a_column_or_else_the_text(tmp_path: Path, columns: bytes, caption: Any) -> None:
    write_tar(tmp_path / "x.tar", {"1.jpg": b"i", "1.txt": b"of the text", "1.json": columns})
    ((row,), _) = opened(tmp_path / "x.tar")
    assert row == {"image_path": "x.tar/1.jpg", "caption": caption}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_form_of_tar_are_read(tmp_path: Path, form: int) -> None:
    names = [f"{'d' * 90}/{'n' * 90}.jpg", "./猫.jpg", "with space.jpg"]
    write_tar(tmp_path / "x.tar", [(name, name.encode()) for name in names], form)
    rows, inside = opened(tmp_path / "x.tar")
    assert [row["image_path"] for row in rows] == [f"x.tar/{name.removeprefix('./')}" for name in names]
    assert [inside.read(row["image_path"], 999) for row in rows] == [name.encode() for name in names]


def test_a_row_that_cannot_be_used_fails_alone(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "x.tar",
        [
            ("none.txt", b"a caption"), ("two.jpg", b"1"), ("two.png", b"2"), ("list.json", b"[1]"), ("list.jpg", b"3"),
            ("again.jpg", b"4"), ("again.jpg", b"4"), ("long.jpg", b"5"), ("long.txt", b"x" * (1 << 20) + b"y"),
            *SAMPLE.items(),
        ],
    )  # fmt: skip
    rows, inside = opened(tmp_path / "x.tar")
    paths = [f"x.tar/{name}" for name in ("none", "two.jpg", "list.jpg", "again.jpg", "long.jpg", "a/1.jpg")]
    assert [row["image_path"] for row in rows] == paths
    assert [why_not(inside, path) for path in paths[:-1]] == [
        f"unreadable: 'x.tar/none' in {tmp_path}/x.tar: its key has no image",
        f"unreadable: 'x.tar/two.jpg' in {tmp_path}/x.tar: it has two images, 'two.jpg' and 'two.png'",
        f"unreadable: 'x.tar/list.jpg' in {tmp_path}/x.tar: its .json is no JSON object",
        f"unreadable: 'x.tar/again.jpg' in {tmp_path}/x.tar: it has two images, 'again.jpg' and 'again.jpg'",
        f"unreadable: 'x.tar/long.jpg' in {tmp_path}/x.tar: 'long.txt' is there twice, or has over 1 MiB",
    ]
    assert inside.read(paths[-1], 100) == b"image"
    assert why_not(inside, "x.tar/other.jpg") == f"missing: 'x.tar/other.jpg' in {tmp_path}/x.tar: no such member"


def test_links_and_devices_are_never_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    rows, inside = opened(tmp_path / "x.tar")
    assert len(rows) == 4
    assert all("is a link, or no plain file" in why_not(inside, row["image_path"]) for row in rows)


def test_a_tar_cut_anywhere_gives_what_comes_before_the_cut(tmp_path: Path) -> None:
    rng = random.Random(1)
    path = tmp_path / "x.tar"
    write_tar(path, {f"{number}.jpg": rng.randbytes(700) for number in range(4)})
    whole = path.read_bytes()
    end = whole.rindex(b"3.jpg") + 512 + 1024  # of the last member's last block
    for cut in [*range(0, end, 256), *range(3, end, 509)]:
        path.write_bytes(whole[:cut])
        complete = sum(cut >= whole.index(f"{number}.jpg".encode()) + 512 + 700 for number in range(4))
        try:
            rows, inside = opened(path)
        except UsageError as error:
            said = str(error)
            assert (complete, said.startswith(f"input '{path}' is truncated or corrupt (")) == (0, True), cut
            continue
        complete = complete if len(rows) > 2 else 0  # of a single one nobody can say whether texts followed
        assert [inside.read(row["image_path"], 999) for row in rows[:complete]] == [
            whole[(start := whole.index(f"{number}.jpg".encode()) + 512) : start + 700] for number in range(complete)
        ]
        assert rows[-1]["image_path"] == "x.tar"
        assert "the tar is truncated or corrupt after" in why_not(inside, "x.tar")
        assert all(why_not(inside, row["image_path"]) for row in rows[complete:])


def test_garbage_in_the_middle_costs_what_follows_and_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, {f"{number}.jpg": b"x" for number in range(4)})
    content = bytearray(path.read_bytes())
    at = content.index(b"2.jpg")
    content[at : at + 512] = b"\xff" * 512
    path.write_bytes(content)
    rows, inside = opened(path)
    assert [row["image_path"] for row in rows] == ["x.tar/0.jpg", "x.tar/1.jpg", "x.tar"]
    why = f"truncated or corrupt after 2 rows (no header and no end mark at byte {at:,}): restore it"
    assert why_not(inside, "x.tar") == f"unreadable: 'x.tar' in {path}: the tar is {why}"


def test_a_tar_that_is_replaced_gives_no_image_of_the_other(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, {"1.jpg": b"first", "2.jpg": b"second"})
    _, inside = opened(path)
    other = io.BytesIO()
    with tarfile.open(fileobj=other, mode="w") as tar:
        for name in ("2.jpg", "1.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 6
            tar.addfile(member, io.BytesIO(b"others"))
    with path.open("r+b") as file:  # in place: the descriptor is the same
        file.write(other.getvalue())
    with pytest.raises(UsageError, match=r"x\.tar was replaced while it was read"):
        inside.read("x.tar/1.jpg", 100)


@given(st.binary(max_size=3000), st.integers(0, 3000), st.booleans())
def test_bytes_of_any_kind_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int, inserted: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "junk.tar"
    write_tar(path, SAMPLE)
    content = path.read_bytes()
    path.write_bytes(content[:at] + junk + content[at + (0 if inserted else len(junk)) :])
    try:
        rows, inside = opened(path)
    except UsageError:
        return
    for row in rows:
        try:
            read = inside.read(row["image_path"], 100)
        except ImageFailure:
            continue
        assert row["image_path"].startswith("junk.tar/")
        assert read in path.read_bytes(), "its own bytes, or none"


def test_an_image_of_another_length_than_its_header_says_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, {"1.jpg": b"i" * 3000})
    _, inside = opened(path)
    os.truncate(path, 2000)
    with pytest.raises(UsageError, match=r"x\.tar was replaced while it was read"):
        inside.read("x.tar/1.jpg", 9999)


def test_tars_that_were_joined_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, {"1.jpg": b"i"})
    path.write_bytes(path.read_bytes() * 2)
    rows, inside = opened(path)
    assert [row["image_path"] for row in rows] == ["x.tar/1.jpg", "x.tar"]
    assert "more after the end mark at byte" in why_not(inside, "x.tar")


def test_images_whose_names_have_further_dots_fail_or_are_told(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"a.v2.jpg": b"1", "a.v3.jpg": b"1", "a.txt": b"a", "b.jpg": b"2", "b.seg.png": b"3"})
    rows, inside = opened(tmp_path / "x.tar")
    assert [row["image_path"] for row in rows] == ["x.tar/a.v2.jpg", "x.tar/a.v3.jpg", "x.tar/b.jpg"]
    for number in (2, 3):
        why = why_not(inside, f"x.tar/a.v{number}.jpg")
        assert why.endswith(f"rename it, or set --image-column v{number}.jpg if all images end like it")
    assert inside.read("x.tar/b.jpg", 9) == b"2"
    assert getattr(inside, "passed_over", None) == ["seg.png"]


def test_the_ending_of_the_images_can_be_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"a.input.jpg": b"1", "a.mask.png": b"2", "a.png": b"3", "a.txt": b"one"})
    rows, inside = opened(tmp_path / "x.tar", "input.jpg")
    assert rows == [{"image_path": "x.tar/a.input.jpg", "caption": "one"}]
    assert inside.read("x.tar/a.input.jpg", 9) == b"1"


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_no_row_of_a_tar_that_breaks_off_lacks_what_may_come_behind(tmp_path: Path, kept: int) -> None:
    texts = [(f"{key}.{kind}", b"{}") for key in "12" for kind in ("txt", "json")]
    members = [("1.jpg", b"i"), ("2.jpg", b"i"), *texts]
    path = tmp_path / "x.tar"
    write_tar(path, members)
    content, next_one = path.read_bytes(), members[2 + kept][0]
    path.write_bytes(content[: content.index(next_one.encode())])
    rows, inside = opened(path)
    usable = [row for row in rows if inside.has(row["image_path"])]
    assert [row["image_path"] for row in usable] == [["x.tar/1.jpg", "x.tar/2.jpg"], [], [], ["x.tar/1.jpg"]][kept]
    assert all("caption" in row for row in usable) or not kept, "of texts nothing is known"


def test_names_that_are_no_utf_8_stay_distinct_whatever_the_locale(tmp_path: Path) -> None:
    names = ["鸟".encode("gbk"), "狗".encode("gbk")]
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for name in names:
            member = tarfile.TarInfo(f"{name.decode('latin-1')}.jpg")
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name))
    rows, inside = opened(tmp_path / "x.tar")
    assert [row["image_path"] for row in rows] == ["x.tar/%C4%F1.jpg", "x.tar/%B9%B7.jpg"]
    assert [inside.read(row["image_path"], 9) for row in rows] == names


@pytest.mark.parametrize("name", ["README.txt", "a/LICENSE.txt"])
def test_a_text_about_the_tar_is_no_caption(tmp_path: Path, name: str) -> None:
    write_tar(tmp_path / "x.tar", {name: b"about", "1.jpg": b"i", "1.json": b'{"text": "one"}'})
    assert opened(tmp_path / "x.tar")[0] == [{"image_path": "x.tar/1.jpg", "text": "one"}]


def test_a_header_with_a_negative_size_ends_the_tar(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, {"1.jpg": b"i", "2.jpg": b"i"})
    content = bytearray(path.read_bytes())
    header = content.index(b"2.jpg")
    content[header + 124 : header + 136] = b"\xff" * 10 + b"\xfc\x00"  # base 256: -1024
    content[header + 148 : header + 156] = b" " * 8
    content[header + 148 : header + 156] = b"%06o\0 " % sum(content[header : header + 512])
    path.write_bytes(content)
    rows, inside = opened(path)
    assert rows[0]["image_path"] == "x.tar/1.jpg"
    assert "truncated or corrupt" in why_not(inside, "x.tar")


def test_a_caption_that_looks_like_a_tars_header_makes_none(tmp_path: Path) -> None:
    line = json.dumps({"image_path": "a.jpg", "caption": ""})
    line = json.dumps({"image_path": "a.jpg", "caption": "x" * (257 - len(line) + 2) + "ustar"})
    assert line.encode()[257:262] == b"ustar"
    tmp_path.joinpath("food.jsonl").write_text(line + "\n" * 600)
    assert open_inside(tmp_path / "food.jsonl") is None


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz"])
def test_a_compressed_tar_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    tmp_path.joinpath(name).write_bytes(b"\x1f\x8b")
    with pytest.raises(UsageError, match="is a compressed tar: unpack it, as with gunzip"):
        open_inside(tmp_path / name)


def test_reading_the_headers_can_be_stopped(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", SAMPLE)
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(UsageError, match="Operation canceled"):
        open_inside(tmp_path / "x.tar", stopped=stopped)
