"""Matching: COCO's, box by box."""

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.evaluation.scenes import in_pixels, write_scenes
from vllm_annotate.evaluation.answers import Answers
from vllm_annotate.evaluation.joining import Join
from vllm_annotate.evaluation.matching import match
from vllm_annotate.evaluation.names import Names
from vllm_annotate.evaluation.scores import SIZES, THRESHOLDS, Tally, scores
from vllm_annotate.evaluation.truth_file import read_truth


def reference(coco: dict[str, Any], outputs: list[dict[str, Any]]) -> dict[tuple[str, float], list[float]]:
    """True positives, false positives, false negatives and the sum of IoU by (size, threshold), by pycocotools."""
    ids = {image["file_name"]: image["id"] for image in coco["images"]}
    categories = {category["name"]: category["id"] for category in coco["categories"]}
    found = [
        {
            "image_id": ids[row["image_path"]],
            "category_id": categories[item["name"]],
            "bbox": in_pixels(item["bbox"], (row["width"], row["height"])),
            "score": 1 - number / 1000,  # falling in answer order
        }
        for row in outputs
        for number, item in enumerate(row["objects"])
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = coco
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.params.iouThrs = np.array(THRESHOLDS)
        evaluation.evaluate()
    labels = ["all", *SIZES]
    counts = {(label, threshold): [0, 0, 0, 0.0] for label in labels for threshold in THRESHOLDS}
    for one in filter(None, evaluation.evalImgs):
        label = labels[[list(area) for area in evaluation.params.areaRng].index(list(one["aRng"]))]
        ious = evaluation.ious[one["image_id"], one["category_id"]]
        for number, threshold in enumerate(THRESHOLDS):
            hit = (one["dtMatches"][number] > 0) & (one["dtIgnore"][number] == 0)
            extra = (one["dtMatches"][number] == 0) & (one["dtIgnore"][number] == 0)
            missed = (one["gtMatches"][number] == 0) & (one["gtIgnore"] == 0)
            shared = sum(ious[i][_column(truth, one, one["dtMatches"][number][i])] for i in np.flatnonzero(hit))
            for at, value in enumerate((hit.sum(), extra.sum(), missed.sum(), shared)):
                counts[label, threshold][at] += value
    return counts


def _column(truth: Any, one: Any, matched: float) -> int:
    """Where the matched annotation stands among those of its image and category."""
    ids = [each["id"] for each in truth.imgToAnns[one["image_id"]] if each["category_id"] == one["category_id"]]
    return ids.index(int(matched))


@pytest.mark.parametrize("seed", range(5))
def test_counts_and_iou_equal_those_of_pycocotools_on_scenes_with_every_error(seed: int, tmp_path: Path) -> None:
    coco = write_scenes(tmp_path, 100, seed)
    outputs = [json.loads(line) for line in (tmp_path / "labeled.jsonl").read_text().splitlines()]
    names, tally = Names(), Tally()
    truth = read_truth(tmp_path / "truth.json", names)
    join = Join(Answers(tmp_path / "labeled.jsonl", names), truth)
    whole = sum(tally.add(batch, len(names.texts))[0].sum(axis=0) for batch in join.batches())
    expected = reference(coco, outputs)
    for label, counts in [("all", whole), *zip(SIZES, tally.by_size, strict=True)]:
        for number, threshold in enumerate(THRESHOLDS):
            assert counts[3 * number : 3 * number + 3].tolist() == expected[label, threshold][:3], (label, threshold)
        assert math.isclose(counts[-1], expected[label, 0.5][3], abs_tol=1e-6)
    hit, extra, missed = expected["all", 0.5][:3]
    assert scores(whole)["f1"]["0.5"] == pytest.approx(2 * hit / (2 * hit + extra + missed), abs=1e-6)
    assert tally.by_name.sum(axis=0) == pytest.approx(whole), "the names add up"


def test_each_answer_in_turn_takes_the_closest_free_box_and_of_equal_ones_the_last() -> None:
    truth = [[0, 0, 10, 10], [0, 0, 10, 10], [50, 0, 60, 10]]
    answer = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8], [50, 0, 60, 4]]
    found = match(truth, answer, [7, 7, 7], [7, 7, 7, 7])
    assert found.truth.tolist() == [1, 0, -1, -1]
    assert found.iou.tolist() == [1.0, 0.9, 0.0, 0.0]
    assert match(truth, answer, [7, 7, 7], [7, 7, 7, 7], 0.3).truth.tolist() == [1, 0, -1, 2]


def test_boxes_of_different_groups_never_match() -> None:
    assert match([[0, 0, 1, 1]], [[0, 0, 1, 1]], [1], [2]).truth.tolist() == [-1]


def test_a_crowd_takes_any_number_and_only_what_no_box_takes() -> None:
    truth = [[0, 0, 100, 100], [0, 0, 10, 10]]
    found = match(truth, [[0, 0, 10, 10]] * 3, [0, 0], [0, 0, 0], crowd=[True, False])
    assert found.truth.tolist() == [1, 0, 0]


@pytest.mark.parametrize(("truth", "answer"), [([], []), ([[0, 0, 1, 1]], []), ([], [[0, 0, 1, 1]])])
def test_nothing_matches_nothing(truth: list[Any], answer: list[Any]) -> None:
    found = match(truth, answer, [0] * len(truth), [0] * len(answer))
    assert found.truth.tolist() == [-1] * len(answer)
