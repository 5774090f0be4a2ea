"""Part files: torn or with junk in them, and still readable."""

import json
from pathlib import Path

import pytest

from tests.support.stores import IMAGE, PARSED, Store
from vllm_annotate.errors import ImageFailure
from vllm_annotate.inputs.rows import Row
from vllm_annotate.results.lines import answer_line, failure_line
from vllm_annotate.results.parts import answers_path


def test_an_output_line_has_the_promised_fields_in_order() -> None:
    row = Row("a.jpg", "一只猫", '{"image_path": "a.jpg", "caption": "一只猫", "source": "web", "width": 1}')
    line = answer_line(row, IMAGE, "text", PARSED | {"flags": ["swapped"]})
    assert line.endswith(b"\n")
    assert json.loads(line) == {
        "image_path": "a.jpg", "caption": "一只猫", "source": "web", "width": 640, "vlm_output": "text",
        "annotations": {"rationale": "", "objects": []}, "objects": [], "flags": ["swapped"], "height": 480,
        "sent_size": [644, 476], "sent_as": "jpeg",
    }  # fmt: skip
    assert line.startswith('{"image_path":"a.jpg","caption":"一只猫"'.encode())


def test_blocks_emptied_by_a_power_loss_cost_only_their_own_lines(tmp_path: Path) -> None:
    store = Store(tmp_path, 3)
    store.answer(0, 1, 2)
    path = answers_path(store.workspace, store.plan.chunks[0])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\0" * (len(lines[1]) - 1) + b"\n" + lines[2])
    assert [row.image_path for row in store.pending()] == ["1.jpg"]
    store.answer(1)
    store.merge()
    assert store.output() == ["0", "1", "2"]


def test_a_failures_file_as_input_loses_its_old_failures(tmp_path: Path) -> None:
    store = Store(tmp_path, 2)
    store.answer(failing=(0, 1))
    store.merge()
    store.input = store.workspace.failures
    store.plan = store.replan()
    assert all("failure" not in dict(json.loads(answer_line(row, IMAGE, "", PARSED))) for row in store.pending())


ROWS = [
    ('{"image_path": "a", "failure": "mine"}', '"failure":"mine"'),
    ('{"image_path": "a", "failure": {"kind": "x"}}', '"failure":{"kind": "x"}'),
    ('{"image_path": "a", "failure": [1e400], "n": 1}', '"failure":[1e400]'),
    ('{"image_path": "a", "n": 1}', ""),
]


@pytest.mark.parametrize(("text", "column"), ROWS)
def test_an_input_column_named_failure_is_restored_when_its_row_is_answered(text: str, column: str) -> None:
    for kind in ("timeout", "rejected"):
        text = failure_line(text, "a", ImageFailure(kind, "why", 2)).decode()
        assert json.loads(text)["failure"]["kind"] == kind
    line = answer_line(Row("a", "c", text), IMAGE, "text", PARSED).decode()
    assert column in line
    assert ('"failure"' in line) == bool(column)
    assert "why" not in line


def test_without_a_caption_column_a_column_named_caption_passes_through() -> None:
    text = '{"image_path": "a", "caption": ["x", 1.10], "": 5}'
    line = answer_line(Row("a", "", text, has_caption=False), IMAGE, "text", PARSED)
    assert line.startswith(b'{"image_path":"a","caption":["x", 1.10],"":5,"vlm_output":')
    line = answer_line(Row("a", "", '{"image_path": "a"}', has_caption=False), IMAGE, "text", PARSED)
    assert line.startswith(b'{"image_path":"a","caption":"","vlm_output":')


def test_columns_that_are_dropped_are_in_the_failure_and_not_in_the_answer() -> None:
    text = '{"file": "a", "text": "c", "score": 1.10}'
    line = answer_line(Row("a", "c", text, ("file", "text")), IMAGE, "text", PARSED)
    assert line.startswith(b'{"image_path":"a","caption":"c","score":1.10,"vlm_output":')
    assert b'"file":"a","text":"c"' in failure_line(text, "a", ImageFailure("timeout", "why", 2))
