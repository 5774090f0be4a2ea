"""What other answers say about a sample, from files."""

from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.scenes import write_rows
from vllm_annotate.evaluation.agreement import MOST_EXTRAS
from vllm_annotate.evaluation.audit import Audit, audit
from vllm_annotate.evaluation.names import Names
from vllm_annotate.evaluation.shown import MOST_SHOWN

SIZE = {"width": 1000, "height": 1000}
CAT, DOG = {"name": "cat", "bbox": [0, 0, 500, 500]}, {"name": "dog", "bbox": [500, 500, 900, 900]}
TINY = {"name": "fly", "bbox": [0, 0, 9, 9]}
UFO = {"name": "ufo", "bbox": [600, 0, 900, 200]}


def row(path: str, *objects: Any) -> dict[str, Any]:
    return {"image_path": path, "objects": list(objects), **SIZE}


def audited(folder: Path, first: list[dict[str, Any]], *others: list[dict[str, Any]]) -> Audit:
    sample = write_rows(folder / "sample.jsonl", first)
    answers = [write_rows(folder / f"ask-{number}.jsonl", rows) for number, rows in enumerate(others, start=1)]
    return audit(sample, answers, Names())


def test_answers_to_other_images_are_told_and_the_rest_is_compared(tmp_path: Path) -> None:
    found = audited(tmp_path, [row("a", CAT)], [row("elsewhere", CAT)], [row("a", CAT)])
    assert found.figures["agreement"] == 1
    assert found.figures["notes"] == ["ask-1.jsonl: it has no image of the sample"]


def test_what_other_answers_add_is_shown_and_only_for_images_that_are(tmp_path: Path) -> None:
    images = [f"{number:03d}" for number in range(MOST_SHOWN + 20)]
    first = [row(path, CAT, DOG) for path in images]
    wrong = [row(path, CAT, *[UFO] * (3 * MOST_EXTRAS)) for path in images[:20]]
    slightly = [row(path, CAT, DOG, UFO) for path in images[20:]]
    found = audited(tmp_path, first, wrong + slightly, wrong[:1])
    assert [shown.image_path for shown in found.doubtful] == images[:MOST_SHOWN]
    added = [len(shown.names("not in the output")) for shown in found.doubtful]
    assert added == [MOST_EXTRAS] * 20 + [1] * (MOST_SHOWN - 20)
    assert found.agreement.extras([0, 70]).keys() == {0, 70}


def test_names_that_the_output_never_has_are_not_listed_as_doubtful(tmp_path: Path) -> None:
    found = audited(tmp_path, [row("a", CAT), row("b", CAT, DOG)], [row("a", CAT, UFO), row("b", CAT, UFO)])
    assert [(each["name"], each["agreement"], each["boxes"]) for each in found.figures["by_name"]] == [
        ("dog", 0, 1), ("cat", 1, 2),
    ]  # fmt: skip


@pytest.mark.parametrize("asks", [1, 3])
def test_boxes_are_those_of_the_output_however_many_answers_an_image_got(asks: int, tmp_path: Path) -> None:
    first = [row("a", CAT, CAT, TINY), row("b", CAT), row("never asked", DOG)]
    others = [[row("a", CAT), row("b", CAT)]] + [[row("b", CAT)]] * (asks - 1)
    figures = audited(tmp_path, first, *others).figures
    assert {each["name"]: each["boxes"] for each in figures["by_name"]} == {"cat": 3, "fly": 1}
    assert {size: each["boxes"] for size, each in figures["by_size"].items()} == {"small": 1, "medium": 0, "large": 3}
    assert figures["boxes"] == 4
