"""Filters and splits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.export.conftest import Done, write_audit
from vllm_annotate.export.selection import read_splits

Rows = list[dict[str, Any]]
SHARES = "train=0.9,val=0.05,test=0.05"


def images(path: Path) -> list[str]:
    return [image["file_name"] for image in json.loads(path.read_text())["images"]]


def labeled(path: str, name: str = "cat", bbox: tuple[int, ...] = (0, 0, 500, 500), **more: Any) -> dict[str, Any]:
    return {"image_path": path, "objects": [{"name": name, "bbox": bbox}], "width": 100, "height": 100} | more


def test_splits_are_disjoint_complete_and_the_same_whatever_other_rows_there_are(
    rows: Rows, write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    found: list[dict[str, set[str]]] = []
    for number, some in enumerate((rows, list(reversed(rows[::2])))):
        to = tmp_path / str(number) / "boxes.json"
        to.parent.mkdir()
        done = export(write_output(*some), "coco", to, "--split", SHARES)
        assert done.code == 0, done.err
        files = {name: to.with_name(f"boxes.{name}.json") for name in ("train", "val", "test")}
        assert sorted(to.parent.iterdir()) == sorted(files.values())
        found.append({name: set(images(path)) for name, path in files.items()})
        assert sum(map(len, found[-1].values())) == len(some)
        assert set.union(*found[-1].values()) == {each["image_path"] for each in some}
        assert len({json.dumps(json.loads(path.read_text())["categories"]) for path in files.values()}) == 1
    assert all(found[1][name] <= found[0][name] for name in found[0])


def test_splits_have_about_their_shares() -> None:
    splits = read_splits([SHARES])
    names = [splits.of(f"{number}.jpg") for number in range(20_000)]
    assert names.count("train") / len(names) == pytest.approx(0.9, abs=0.01)
    assert names.count("val") / len(names) == pytest.approx(0.05, abs=0.01)


def test_the_split_of_a_path_never_changes() -> None:
    splits = read_splits(["a=0.25,b=0.25", "c=0.5"])
    assert [splits.of(f"{number}.jpg") for number in range(12)] == list("bbbccbcbbbca")


ROWS = [
    labeled("plain.jpg"), labeled("flagged.jpg", flags=["swapped", "truncated"]), labeled("odd.jpg", flags="swapped"),
    labeled("tiny.jpg", bbox=(0, 0, 10, 10)), labeled("dog.jpg", name="ＤＯＧ"), labeled("sure.jpg", agreement=0.2),
    labeled("unsure.jpg", agreement=0.9), labeled("unknown.jpg", agreement=0.1),  # columns of the input
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "left_out", "why"),
    [
        (["--without-flag", "swapped"], {"flagged.jpg"}, "1 flag swapped"),
        (["--without-flag", "beyond_edge", "--without-flag", "truncated"], {"flagged.jpg"}, "1 flag truncated"),
        (["--without-flag", "any"], {"flagged.jpg"}, "1 flag swapped"),
        (["--min-size", "0.001"], {"tiny.jpg"}, "1 under 0.001 of the image"),
        (["--min-agreement", "0.5"], {"unsure.jpg"}, "1 agreement below 0.5"),
        (["--min-count", "2"], {"dog.jpg"}, "1 rare name"),
        (["--names", "Dog"], {row["image_path"] for row in ROWS} - {"dog.jpg"}, "7 name not chosen"),
        (["--names", "names.txt"], {row["image_path"] for row in ROWS} - {"dog.jpg"}, "7 no object left"),
    ],
)
def test_a_filter_leaves_out_what_it_says_and_counts_it(
    options: list[str],
    left_out: set[str],
    why: str,
    write_output: Callable[..., Path],
    export: Callable[..., Done],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("\ufeffdog\r\n\n", "utf-8")
    write_audit(tmp_path, {"sure.jpg": 0.9, "unsure.jpg": 0.2})
    done = export(write_output(*ROWS), "coco", tmp_path / "boxes.json", *options)
    assert done.code == 0, done.err
    assert {row["image_path"] for row in ROWS} - set(images(tmp_path / "boxes.json")) == left_out
    assert why in done.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "train=0.9"], "--split 'train=0.9' adds up to 0.9: make the shares add up to 1"),
        (["--split", "a=0.5,a=0.5"], "--split 'a=0.5': give each split one name"),
        (["--split", "../a=1"], "--split '../a=1': give each split one name"),
        (["--split", "train"], "--split train '' is not a share: write a number from 0 to 1"),
        (["--split", "a=nan,b=1"], "--split a 'nan' is not a share"),
        (["--without-flag", "sawpped"], "--without-flag 'sawpped' is not a flag: use one of any, swapped, "),
        (["--min-size", "2"], "--min-size '2' is not a share"),
        (["--min-agreement", "x"], "--min-agreement 'x' is not a share"),
        (["--min-count", "0"], "--min-count '0' is not a count: write a whole number from 1"),
        (["--min-count", "99"], "no name in"),
        (["--names", "empty.txt"], "--names 'empty.txt' is empty: write one name per line"),
        (["--names", "unicorn"], "nothing to export: objects left out: 8 name not chosen"),
    ],
)
def test_a_wrong_value_is_refused_with_the_rule(
    options: list[str],
    message: str,
    write_output: Callable[..., Path],
    export: Callable[..., Done],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    done = export(write_output(*ROWS), "coco", tmp_path / "boxes.json", *options)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "boxes.json").exists()


def test_the_agreement_of_an_audit_counts_but_not_for_what_people_corrected(
    write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    output, to = (
        write_output(labeled("low.jpg"), labeled("high.jpg"), labeled("other.jpg"), labeled("new.jpg")),
        tmp_path / "b",
    )
    write_audit(tmp_path, {"low.jpg": 0.2, "high.jpg": 0.9, "new.jpg": 0.1})
    output.with_name("labeled.reviewed.jsonl").write_text(json.dumps(labeled("new.jpg", reviewed=True)) + "\n")
    assert export(output, "coco", to, "--min-agreement", 0.5).code == 0
    assert images(to) == ["high.jpg", "other.jpg", "new.jpg"]
