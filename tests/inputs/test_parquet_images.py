"""Parquet files with the images inside."""

import json
import os
import random
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pytest
from datasets.table import embed_table_storage

from tests.conftest import Job
from vllm_annotate.errors import ImageFailure, UsageError
from vllm_annotate.inputs.inside import Inside, open_inside
from vllm_annotate.inputs.source import Source, check_source


def opened(path: Path, column: str = "image_path") -> tuple[list[dict[str, Any]], Inside]:
    """The rows of a file, and its images."""
    rows = path.with_name("rows.jsonl")
    inside = open_inside(path, column, "caption", rows)
    assert inside is not None
    return [json.loads(line) for line in rows.read_text().splitlines()], inside


def test_a_data_set_of_a_hub_has_its_images_inside(make_job: Any, tmp_path: Path) -> None:
    job: Job = make_job(250, distinct=5)
    images = [str(job.images / name) for name in job.names]
    data = datasets.Dataset.from_dict({"image": images, "caption": job.names, "n": list(range(250))})
    path = tmp_path / "train-00000-of-00001.parquet"
    data = data.cast_column("image", datasets.Image())
    data.to_parquet(str(path))
    with pytest.raises(UsageError, match=r"column 'image' of .* has no bytes, but paths at most"):
        opened(path)
    embedded = data.with_format("arrow").map(embed_table_storage, batched=True)  # as push_to_hub does
    embedded.with_format(None).to_parquet(str(path))
    rows, inside = opened(path)
    assert rows == [{"image_path": name, "caption": name, "n": n} for n, name in enumerate(job.names)]
    assert all(inside.read(name, 1 << 20) == job.images.joinpath(name).read_bytes() for name in job.names)


def test_a_path_that_occurs_twice_or_not_is_the_rows_number(tmp_path: Path) -> None:
    images = [{"bytes": bytes([n]), "path": path} for n, path in enumerate(["a.jpg", "b.jpg", "a.jpg", None, ""])]
    pl.DataFrame({"image": images, "image_path": ["x"] * 5, "caption": ["c"] * 5}).write_parquet(tmp_path / "t.parquet")
    rows, inside = opened(tmp_path / "t.parquet", "image")
    paths = ["t.parquet/0", "b.jpg", "t.parquet/2", "t.parquet/3", "t.parquet/4"]
    assert [row["image_path"] for row in rows] == paths
    assert [inside.read(path, 9) for path in paths] == [bytes([n]) for n in range(5)]


def test_a_column_of_bytes_alone_will_do(tmp_path: Path) -> None:
    pl.DataFrame({"jpg": [b"one", None, b"three"]}).write_parquet(tmp_path / "t.parquet", row_group_size=2)
    rows, inside = opened(tmp_path / "t.parquet")
    assert rows == [{"image_path": f"t.parquet/{n}"} for n in range(3)]
    assert inside.read("t.parquet/2", 9) == b"three"
    with pytest.raises(ImageFailure, match=r"row 1 of .*t\.parquet has no image in column 'jpg'"):
        inside.read("t.parquet/1", 9)
    with pytest.raises(ImageFailure, match=r"no row of .*t\.parquet has the image path 't\.parquet/3'"):
        inside.read("t.parquet/3", 9)
    assert inside.has("t.parquet/0")
    assert not inside.has("0.jpg")


def test_of_several_columns_with_images_one_has_to_be_named(tmp_path: Path) -> None:
    pl.DataFrame({"image": [b"1"], "mask": [b"2"]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(UsageError, match=r"several columns: set --image-column to one of 'image', 'mask'"):
        opened(tmp_path / "t.parquet")
    _, inside = opened(tmp_path / "t.parquet", "mask")
    assert inside.read("t.parquet/0", 9) == b"2"


def test_a_file_with_paths_alone_has_none_inside(tmp_path: Path) -> None:
    pl.DataFrame({"image_path": ["a.jpg"], "thumbnail": [b"1"]}).write_parquet(tmp_path / "t.parquet")
    assert open_inside(tmp_path / "t.parquet") is None


def test_a_file_that_is_replaced_gives_no_image_of_the_other(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame({"image": [b"1"]}).write_parquet(path)
    _, inside = opened(path)
    pl.DataFrame({"image": [b"22"]}).write_parquet(path)
    with pytest.raises(UsageError, match="was replaced while it was read: run again"):
        inside.read("t.parquet/0", 9)


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    tmp_path.joinpath("t.parquet").write_bytes(b"PAR1 and more")
    with pytest.raises(UsageError, match=r"cannot be read as Parquet .*: if it is truncated or corrupt, restore it"):
        opened(tmp_path / "t.parquet")


def test_an_own_path_that_looks_like_a_rows_number_is_none(tmp_path: Path) -> None:
    images = [{"bytes": b"0", "path": "t.parquet/1"}, {"bytes": b"1", "path": None}]
    pl.DataFrame({"image": images}).write_parquet(tmp_path / "t.parquet")
    rows, inside = opened(tmp_path / "t.parquet")
    assert [row["image_path"] for row in rows] == ["t.parquet/0", "t.parquet/1"]
    assert [inside.read(row["image_path"], 9) for row in rows] == [b"0", b"1"]


def test_only_a_named_column_is_taken_where_there_is_an_image_root(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame({"file": ["a.jpg"], "thumbnail": [b"1"]}).write_parquet(path)
    assert open_inside(path, guess=False) is None
    assert open_inside(path, "thumbnail", guess=False) is not None


def test_a_corrupt_page_costs_its_images_alone(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "t.parquet"
    images = [rng.randbytes(40_000_000) for _ in range(2)]  # each a block
    pl.DataFrame({"image": images}).write_parquet(path, row_group_size=1, compression="zstd", statistics=False)
    _, inside = opened(path)
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(status.st_size * 3 // 4)
        file.write(bytes(1_000_000))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert inside.read("t.parquet/0", 4) == images[0][:4]
    with pytest.raises(ImageFailure, match=r"row 1 of .*t\.parquet is corrupt \(.*\): restore it"):
        inside.read("t.parquet/1", 4)


def test_blocks_that_are_read_in_any_order_give_the_same_images(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "t.parquet"
    images = [rng.randbytes(1_000_000) for _ in range(200)]
    pl.DataFrame({"image": images}).write_parquet(path, row_group_size=70)
    _, inside = opened(path)
    with ThreadPoolExecutor(8) as threads:
        orders = [list(range(200)), rng.sample(range(200), 60)]
        for order in orders:
            read = threads.map(lambda row: inside.read(f"t.parquet/{row}", 2_000_000), order)
            assert all(image == images[row] for row, image in zip(order, read, strict=True))


def test_own_paths_of_several_files_begin_with_the_name_of_theirs(tmp_path: Path) -> None:
    images = [{"bytes": bytes([n]), "path": path} for n, path in enumerate(["a.jpg", "0", "t.parquet/1", "b", "b"])]
    path = tmp_path / "t.parquet"
    pl.DataFrame({"image": images}).write_parquet(path)
    inside = open_inside(path, rows=tmp_path / "rows.jsonl", name="d/t.parquet", prefixed=True)
    assert inside is not None
    paths = [json.loads(line)["image_path"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert paths == [f"d/t.parquet/{own}" for own in ("a.jpg", "1", "t.parquet/1", "3", "4")]
    assert [inside.read(path, 9) for path in paths] == [bytes([n]) for n in range(5)]


def test_a_read_that_fails_costs_one_image_and_a_lack_of_descriptors_none(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame({"image": [b"0", b"1"]}).write_parquet(path)
    _, inside = opened(path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            inside.read("t.parquet/0", 9)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert inside.read("t.parquet/0", 9) == b"0"


def test_columns_that_do_not_reach_the_rows_are_known(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame({"image": [b"0"], "image_path": ["my/1.jpg"], "mask": [b"1"], "n": [1]}).write_parquet(path)
    rows, inside = opened(path, "image")
    assert rows == [{"image_path": "t.parquet/0", "n": 1}]
    assert (getattr(inside, "left_out", None), getattr(inside, "replaced", None)) == (["mask"], ["image_path"])


def test_a_copy_has_the_content_of_its_file_and_another_file_has_not(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.parquet" for name in "abc"]
    for path, images in zip(files, ([b"0", b"1"], [b"0", b"1"], [b"1", b"0"]), strict=True):
        pl.DataFrame({"image": images}).write_parquet(path)
    one, copy, other = (getattr(opened(path)[1], "content", None) for path in files)
    assert one == copy
    assert one != other


def test_a_table_with_any_wrong_bytes_is_read_or_refused(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "t.parquet"
    rows = {"image_path": [f"{n}.jpg" for n in range(200)], "caption": ["c"] * 200, "l": [["a", "b"]] * 200}
    pl.DataFrame(rows).write_parquet(path)
    whole, refused = path.read_bytes(), 0
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 2, 8))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            check_source(Source(path))
        except UsageError:  # also where Polars panics
            refused += 1
    assert 0 < refused < 150
