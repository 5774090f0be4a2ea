"""Two outputs: what changed, and which one is better."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation.scenes import answers_to, box_of, write_rows
from vllm_annotate.errors import UsageError
from vllm_annotate.evaluation.compare import compare, probability, verdict
from vllm_annotate.evaluation.comparison_page import comparison_page
from vllm_annotate.evaluation.comparison_tables import comparison_text

BOXES = {"cat": [0, 0, 100, 100], "dog": [200, 200, 400, 400], "emu": [500, 500, 900, 900]}


def row(path: str, **boxes: list[int]) -> dict[str, Any]:
    return {"image_path": path, "objects": [{"name": name, "bbox": box} for name, box in boxes.items()]}


@pytest.fixture
def outputs(tmp_path: Path) -> tuple[Path, Path]:
    """A and B, in which one box of `changed` is kept, one has moved, one is lost and one is gained."""
    one = [row("changed", **BOXES), row("same", **BOXES), row("empty"), row("only in A")]
    other = [row("empty"), row("only in B"), row("only in B too"), row("same", **BOXES)]
    other.append(row("changed", cat=[2, 0, 102, 100], dog=[200, 240, 400, 440], fox=[1, 1, 9, 9]))
    return write_rows(tmp_path / "a.jsonl", one), write_rows(tmp_path / "b.jsonl", other)


def test_boxes_are_kept_moved_lost_or_gained(outputs: tuple[Path, Path]) -> None:
    found = compare(*outputs)
    figures = found.figures
    assert figures["images"] == {"compared": 3, "output_only": 1, "with_only": 2}
    assert figures["boxes"] == {"output": 6, "with": 6, "kept": 4, "moved": 1, "lost": 1, "gained": 1}
    assert figures["agreement"] == pytest.approx((2 / 3 + 1 + 1) / 3, abs=1e-6)
    assert [list(each.values()) for each in sorted(figures["by_name"], key=lambda each: str(each["name"]))] == [
        ["dog", 2, 2, 0, 0, 1], ["emu", 2, 1, 1, 0, 0], ["fox", 0, 1, 0, 1, 0],
    ]  # fmt: skip
    assert figures["most_different"] == [
        {
            "image_path": "changed",
            "f1": pytest.approx(2 / 3, abs=1e-6),
            "lost": ["emu"],
            "gained": ["fox"],
            "moved": ["dog"],
        }
    ]
    assert figures["truth"] is None
    assert found.most_different[0].names("kept") == ["cat"]
    assert "4 kept, 1 moved, 1 lost, 1 gained" in comparison_text(figures)
    page = comparison_page(figures, found.most_different, None).decode()
    assert page.count("<article") == 1
    assert "better" not in page


def test_the_other_way_round_what_was_lost_is_gained(outputs: tuple[Path, Path]) -> None:
    figures = compare(*reversed(outputs)).figures
    assert figures["boxes"] == {"output": 6, "with": 6, "kept": 4, "moved": 1, "lost": 1, "gained": 1}
    assert figures["most_different"][0]["lost"] == ["fox"]
    assert figures["most_different"][0]["gained"] == ["emu"]


def test_a_box_that_only_moved_is_shown_though_the_images_agree(tmp_path: Path) -> None:
    one = write_rows(tmp_path / "a.jsonl", [row("a", cat=[0, 0, 100, 100])])
    other = write_rows(tmp_path / "b.jsonl", [row("a", cat=[0, 20, 100, 120])])
    figures = compare(one, other).figures
    assert figures["agreement"] == 1
    assert figures["most_different"] == [{"image_path": "a", "f1": 1, "lost": [], "gained": [], "moved": ["cat"]}]


def drawn(folder: Path, images: int) -> tuple[Path, Path, Path]:
    """A truth, answers with many errors, and answers of which every other image is right; rows in any order."""
    rng = random.Random(images)
    truth: list[dict[str, Any]] = [
        {"image_path": f"{at}", "objects": [{"name": "cat", "bbox": box_of(rng)} for _ in range(3)]}
        for at in range(images)
    ]
    worse = [each | {"objects": answers_to(rng, each["objects"])} for each in truth]
    better = [known if at % 2 else said for at, (known, said) in enumerate(zip(truth, worse, strict=True))]
    for rows in (truth, worse, better):
        rng.shuffle(rows)
    names = {"truth": truth, "worse": worse, "better": better}
    first, second, third = (write_rows(folder / f"{name}.jsonl", rows) for name, rows in names.items())
    return first, second, third


def test_the_truth_tells_which_one_is_better(tmp_path: Path) -> None:
    truth, worse, better = drawn(tmp_path, 80)
    forwards, backwards = compare(worse, better, truth).figures["truth"], compare(better, worse, truth).figures["truth"]
    assert forwards["with_is_better"] > 0.99
    assert forwards["verdict"].startswith("B is better with probability")
    assert backwards["verdict"].startswith("A is better with probability")
    assert forwards["f1_difference"] == pytest.approx(forwards["with"]["f1"]["0.5"] - forwards["output"]["f1"]["0.5"])
    low, high = forwards["f1_difference_interval"]
    assert 0 < low < forwards["f1_difference"] < high
    assert backwards["f1_difference_interval"] == pytest.approx([-high, -low])
    alone = [each["intervals"]["f1"]["0.5"] for each in (forwards["output"], forwards["with"])]
    assert high - low < sum(end - start for start, end in alone), "pairs of the same images tell more"


def test_the_same_output_twice_is_equally_good(tmp_path: Path) -> None:
    truth, worse, _ = drawn(tmp_path, 20)
    found = compare(worse, worse, truth)
    assert found.figures["agreement"] == 1
    assert found.figures["truth"]["verdict"] == "A and B are equally good"
    assert "A and B are equally good." in comparison_text(found.figures)
    assert b"Both outputs have the same boxes" in comparison_page(found.figures, found.most_different, None)


def test_only_images_of_all_three_files_are_scored(tmp_path: Path) -> None:
    cat = {"cat": [1, 1, 99, 99]}
    one = write_rows(tmp_path / "a.jsonl", [row("a", **cat), row("b", **cat), row("c")])
    other = write_rows(tmp_path / "b.jsonl", [row("b", **cat), row("c", **cat), row("d")])
    truth = write_rows(tmp_path / "t.jsonl", [row("a"), row("b", **cat), row("d", **cat)])
    against = compare(one, other, truth).figures["truth"]
    assert against["images"] == {"scored": 1, "truth_only": 2}
    assert against["output"]["f1"]["0.5"] == against["with"]["f1"]["0.5"] == 1


def test_outputs_without_a_common_image_are_refused(tmp_path: Path) -> None:
    one, other = (write_rows(tmp_path / f"{name}.jsonl", [row(name)]) for name in "ab")
    with pytest.raises(UsageError, match=r"--with .*b.jsonl' and --output .*a.jsonl' have no image in common"):
        compare(one, other)


@pytest.mark.parametrize(
    ("differences", "better", "text"),
    [
        ([1, 1, 1, -1], 0.75, "B is better with probability 0.75"),
        ([-1, -1, 0, 0], 0.25, "A is better with probability 0.75"),
        ([1] * 9, 1.0, "B is better with probability over 0.999"),
        ([0, 0], 0.5, "A and B are equally good"),
        ([np.nan, 1], 1.0, "B is better with probability over 0.999"),
        ([np.nan], None, "the truth cannot tell: its common images have no boxes"),
    ],
)
def test_the_verdict_says_how_sure_it_is(differences: list[float], better: float | None, text: str) -> None:
    assert probability(np.array(differences, np.float64)) == better
    assert verdict(better) == text
