"""Answers as they come: torn, mixed with junk, and still read."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.parts import PartFile, Row, answer_line, answers_path, whole_lines
from tests.stores import IMAGE, PARSED, Store


def test_an_output_line_has_the_promised_fields_in_order() -> None:
    row = Row("a.jpg", "一只猫", '{"image_path": "a.jpg", "caption": "一只猫", "source": "web", "width": 1}')
    line = answer_line(row, IMAGE, "text", PARSED | {"flags": ["swapped"]})
    assert line.endswith(b"\n")
    assert json.loads(line) == {
        "image_path": "a.jpg", "caption": "一只猫", "source": "web", "width": 640, "vlm_output": "text",
        "annotations": {"rationale": "", "objects": []}, "objects": [], "flags": ["swapped"], "height": 480,
        "sent_size": [644, 476],
    }  # fmt: skip
    assert line.startswith('{"image_path":"a.jpg","caption":"一只猫"'.encode())


def test_a_part_cut_anywhere_in_its_last_line_loses_at_most_that_line(tmp_path: Path) -> None:
    store = Store(tmp_path, 3)
    store.answer(0, 1, 2)
    path = answers_path(store.workspace, store.plan.chunks[0])
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for cut in range(last, len(whole) + 1):
        path.write_bytes(whole[:cut])
        paths = list(whole_lines(path))
        complete = cut >= len(whole) - 1  # without its newline the line is still whole
        assert paths == ["0.jpg", "1.jpg"] + (["2.jpg"] if complete else [])
        assert path.read_bytes() == (whole if complete else whole[:last])
        part = PartFile(path)
        part.append("9.jpg", b'{"image_path": "9.jpg"}\n')
        part.close()
        assert list(whole_lines(path)) == [*paths, "9.jpg"]


def test_blocks_that_a_power_loss_left_empty_cost_only_their_own_lines(tmp_path: Path) -> None:
    store = Store(tmp_path, 3)
    store.answer(0, 1, 2)
    path = answers_path(store.workspace, store.plan.chunks[0])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\0" * (len(lines[1]) - 1) + b"\n" + lines[2])
    assert [row.image_path for row in store.pending()] == ["1.jpg"]
    store.answer(1)
    store.merge()
    assert store.output() == ["0", "1", "2"]


@given(st.binary(max_size=300))
def test_no_bytes_in_a_part_stop_a_run(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "part.jsonl"
    path.write_bytes(b'{"image_path": "a"}\n' + junk)
    assert next(iter(whole_lines(path))) == "a"
    assert next(iter(whole_lines(path))) == "a"


def test_a_failures_file_as_input_leaves_its_old_reasons_behind(tmp_path: Path) -> None:
    store = Store(tmp_path, 2)
    store.answer(failing=(0, 1))
    store.merge()
    store.input = store.workspace.failures
    store.plan = store.replan()
    assert all("failure" not in dict(json.loads(answer_line(row, IMAGE, "", PARSED))) for row in store.pending())
