"""Parts, merges and failures, and kills in between."""

import json
from pathlib import Path

import pytest

from tests.conftest import lines_of
from tests.support.stores import Store
from vllm_annotate.errors import ImageFailure
from vllm_annotate.results.merge import merge, settle
from vllm_annotate.storage.atomic import replacing


def test_new_rows_follow_the_old_ones_in_input_order(tmp_path: Path) -> None:
    store = Store(tmp_path, 7)
    store.workspace.output.write_bytes(b'{"image_path": "6.jpg",   "odd":"spacing"}\n')
    store.plan = store.replan()
    store.answer(5, 2, 0, 1, 4, 3)
    store.merge()
    assert store.output() == ["6", "0", "1", "2", "3", "4", "5"]
    assert store.workspace.output.read_bytes().startswith(b'{"image_path": "6.jpg",   "odd":"spacing"}\n')
    assert not store.workspace.failures.exists()
    assert not any(store.workspace.parts.iterdir())


def test_every_row_is_in_the_output_or_in_the_failures(tmp_path: Path) -> None:
    store = Store(tmp_path, 7)
    store.answer(0, 2, failing=(1,))
    store.merge({2: ImageFailure("server", "gone"), 3: ImageFailure("unasked", "stopped")})
    assert store.output() == ["0", "2"]
    assert store.failures() == {"1": "rejected", "3": "server", "4": "server", "5": "server", "6": "unasked"}
    failed = lines_of(store.workspace.failures)[0]
    assert failed == {
        "image_path": "1.jpg", "caption": "caption 1", "other": [1],
        "failure": {"kind": "rejected", "message": "no", "attempts": 2},
    }  # fmt: skip


def test_after_a_merge_failed_rows_are_open_and_answered_rows_are_not(tmp_path: Path) -> None:
    store = Store(tmp_path, 4)
    store.answer(0, 3, failing=(1,))
    assert [row.image_path for row in store.pending()] == ["2.jpg"]
    store.merge({1: ImageFailure("server", "gone")})
    store.plan = store.reopen()
    assert [row.image_path for row in store.pending()] == ["1.jpg", "2.jpg"]
    store.answer(1, 2)
    store.merge()
    assert store.output() == ["0", "3", "1", "2"]
    assert store.failures() == {}


def test_a_merge_killed_before_it_removed_the_parts_adds_nothing_twice(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path, 5)
    store.answer(0, 1, 2, 3, 4)
    parts = {path: path.read_bytes() for path in store.workspace.parts.iterdir()}
    store.merge()
    for path, content in parts.items():
        path.write_bytes(content)
    store.plan = store.reopen()
    assert store.pending() == []
    store.merge()
    assert store.output() == ["0", "1", "2", "3", "4"]


def test_a_row_deleted_from_the_output_is_open(tmp_path: Path) -> None:
    store = Store(tmp_path, 3)
    store.answer(0, 1, 2)
    store.merge({1: ImageFailure("server", "keeps the plan")})
    kept = [line for line in store.workspace.output.read_bytes().splitlines(keepends=True) if b'"1.jpg"' not in line]
    store.workspace.output.write_bytes(b"".join(kept))
    store.plan = store.reopen()
    assert [row.image_path for row in store.pending()] == ["1.jpg"]


@pytest.mark.parametrize(
    ("tail", "kept"),
    [
        (b"", b""), (b'{"image_path": "x.jpg"}', b'{"image_path": "x.jpg"}\n'), (b'{"image_path": "x.j', b""),
        *((line, line + b"\n") for line in (
            b'{"image_path": "x.jpg", "t": "caf\xe9"}', b'[{"image_path": "x.jpg"}]', b'# comment', b'"text', b"\0\0",
            b'{"image_path": "x.jpg"}\r{"image_path": "y.jpg"}', b'{"image_path": "x.jpg"},', b'{"a":1}{"a":2}',
        )),
    ],
)  # fmt: skip
def test_a_last_line_without_a_newline_is_completed_and_a_torn_row_moved_out(
    tmp_path: Path, tail: bytes, kept: bytes
) -> None:
    store = Store(tmp_path, 1)
    before = b'{"image_path": "old.jpg"}\nnot ours but left alone\n'
    store.workspace.output.write_bytes(before + tail)
    store.plan = store.replan()
    store.answer(0)
    store.merge()
    content = store.workspace.output.read_bytes()
    assert content.startswith(before + kept + b'{"image_path":"0.jpg"')
    torn = store.workspace.torn.read_bytes() if store.workspace.torn.exists() else b""
    assert torn == (tail + b"\n" if tail and not kept else b"")


def test_an_abandoned_plan_is_settled_in_its_own_order(tmp_path: Path) -> None:
    store = Store(tmp_path, 5)
    store.answer(4, 3, 0, failing=(1,))
    assert settle(store.workspace, store.reopen()) == 3
    assert store.output() == ["0", "3", "4"]


def test_parts_without_a_plan_are_merged_too(tmp_path: Path) -> None:
    store = Store(tmp_path, 5)
    store.workspace.output.write_text('{"image_path": "3.jpg"}\n')
    store.answer(4, 3, 0)
    store.workspace.plan_file.unlink()
    assert settle(store.workspace, None) == 2
    assert store.output() == ["3", "0", "4"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), replacing(path) as file:  # noqa: PT012
        file.write(b"half")
        raise OSError("disk full")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_a_failure_set_aside_and_answered_since_is_not_moved_back(tmp_path: Path) -> None:
    store = Store(tmp_path, 3)
    store.answer(0)
    merge(store.workspace, store.plan, {})  # 0 is in the output, 1 and 2 are not
    store.plan = store.replan()
    paths = ["0.jpg", "1.jpg", "elsewhere.jpg"]
    set_aside = [json.dumps({"image_path": path, "failure": {"kind": "missing"}}) for path in paths]
    store.workspace.set_aside.write_text("\n".join(set_aside) + "\n")
    store.answer(1)
    merged = merge(store.workspace, store.plan, {})
    assert [row["image_path"] for row in lines_of(store.workspace.failures)] == ["2.jpg", "elsewhere.jpg"]
    assert merged.left_alone == 1
    assert not store.workspace.set_aside.exists()
