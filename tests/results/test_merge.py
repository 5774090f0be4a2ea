"""Parts, merges and failures, and kills in between."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import lines_of
from tests.support.stores import Store
from vllm_annotate.errors import ImageFailure
from vllm_annotate.inputs.plan import keep_plan, plan_is_for
from vllm_annotate.inputs.source import Source
from vllm_annotate.results.asked_failures import put_back_asked
from vllm_annotate.results.merge import Merge, settle
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
    store.merge()  # 0 is in the output, 1 and 2 are not
    store.plan = store.replan()
    paths = ["0.jpg", "1.jpg", "elsewhere.jpg"]
    set_aside = [json.dumps({"image_path": path, "failure": {"kind": "missing"}}) for path in paths]
    store.workspace.set_aside.write_text("\n".join(set_aside) + "\n")
    store.answer(1)
    merged = Merge(store.workspace, store.plan).finish()
    assert [row["image_path"] for row in lines_of(store.workspace.failures)] == ["2.jpg", "elsewhere.jpg"]
    assert merged.left_alone == 1
    assert not store.workspace.set_aside.exists()


def test_chunks_reach_the_output_as_they_settle_and_in_input_order(tmp_path: Path) -> None:
    store = Store(tmp_path, 7)
    store.workspace.output.write_text('{"image_path": "old.jpg"}\n')
    store.plan = store.replan()
    store.answer(0, 1, 3, 4, 5, failing=(2,))
    inode, merge = store.workspace.output.stat().st_ino, Merge(store.workspace, store.plan)
    first, second, third = store.plan.chunks
    merge.end_chunk(second)
    assert store.output() == ["old"], "the chunk before it is not settled"
    merge.end_chunk(first)
    assert store.output() == ["old", "0", "1", "3", "4", "5"]
    assert [path.name for path in store.workspace.parts.glob("*.jsonl") if path.stat().st_size] == [
        "000001.failures.jsonl"
    ]
    assert store.failures() == {}
    store.answer(6)
    merge.end_chunk(third)
    merged = merge.finish()
    assert store.output() == ["old", "0", "1", "3", "4", "5", "6"]
    assert store.failures() == {"2": "rejected"}
    assert (merged.answered, merged.failures.total()) == (6, 1)
    assert store.workspace.output.stat().st_ino == inode


def test_a_stopped_chunk_does_not_hold_back_the_next(tmp_path: Path) -> None:
    store = Store(tmp_path, 6)
    store.answer(1, 3, 4, 5)
    merge = Merge(store.workspace, store.plan)
    merge.end_chunk(store.plan.chunks[0], ImageFailure("server", "gone"))
    merge.end_chunk(store.plan.chunks[1])
    assert store.output() == ["1", "3", "4", "5"]
    merge.finish()
    assert store.failures() == {"0": "server", "2": "server"}


def test_a_run_killed_after_some_chunks_goes_on_with_its_plan(tmp_path: Path) -> None:
    store = Store(tmp_path, 7)
    source = Source(store.input)
    store.answer(0, 2, 3, failing=(1,))
    Merge(store.workspace, store.plan).end_chunk(store.plan.chunks[0])
    assert plan_is_for(store.workspace, source)
    store.plan = store.reopen()
    assert [row.image_path for row in store.pending()] == ["4.jpg", "5.jpg", "6.jpg"], "1 has failed for good"
    store.answer(4, 5, 6)
    store.merge()
    assert store.output() == ["0", "2", "3", "4", "5", "6"]
    assert store.failures() == {"1": "rejected"}


def test_no_image_is_in_both_files_while_failures_are_asked_again(tmp_path: Path) -> None:
    store = Store(tmp_path, 6)
    store.answer(0, 2, 3, 5, failing=(1, 4))
    store.merge()
    store.plan = store.replan()
    store.answer(1)
    merge = Merge(store.workspace, store.plan)
    merge.end_chunk(store.plan.chunks[0], ImageFailure("server", "gone"))
    assert store.output() == ["0", "2", "3", "5", "1"]
    assert store.failures() == {}, "4 is asked, too"
    put_back_asked(store.workspace)
    assert store.failures() == {"4": "rejected"}, "as after a kill"


def test_rows_that_another_program_adds_between_two_chunks_stay_and_are_not_repeated(tmp_path: Path) -> None:
    store = Store(tmp_path, 6)
    store.answer(0, 1, 2, 3, 4, 5)
    merge = Merge(store.workspace, store.plan)
    merge.end_chunk(store.plan.chunks[0])
    with store.workspace.output.open("ab") as theirs:
        theirs.write(b'{"image_path": "4.jpg"}\n')
    merge.end_chunk(store.plan.chunks[1])
    assert store.output() == ["0", "1", "2", "4"], "who knows what comes next"
    assert not plan_is_for(store.workspace, Source(store.input)), "a run after a kill would look at the whole output"
    merge.finish()
    assert store.output() == ["0", "1", "2", "4", "3", "5"]
    assert store.failures() == {}


def test_appended_rows_that_somebody_removes_during_the_run_are_failures(tmp_path: Path) -> None:
    store = Store(tmp_path, 6)
    store.answer(0, 1, 2, 3, 4, 5)
    merge = Merge(store.workspace, store.plan)
    merge.end_chunk(store.plan.chunks[0])
    edited = tmp_path / "edited"
    edited.write_bytes(store.workspace.output.read_bytes().splitlines(keepends=True)[0])
    edited.replace(store.workspace.output)
    merge.end_chunk(store.plan.chunks[1])
    merge.finish()
    assert store.output() == ["0", "3", "4", "5"]
    assert store.failures() == {"1": "unasked", "2": "unasked"}


def test_an_output_that_is_cut_short_after_several_chunks_is_merged_at_the_end(tmp_path: Path) -> None:
    store = Store(tmp_path, 9)
    store.workspace.output.write_text('{"image_path": "old.jpg"}\n{"image_path": "older.jpg"}\n')
    store.plan = store.replan()
    store.answer(*range(9))
    merge = Merge(store.workspace, store.plan)
    for chunk in store.plan.chunks[:2]:
        merge.end_chunk(chunk)
    edited = tmp_path / "edited"
    edited.write_bytes(b"".join(store.workspace.output.read_bytes().splitlines(keepends=True)[1:4]))
    edited.replace(store.workspace.output)
    merge.end_chunk(store.plan.chunks[2])
    merged = merge.finish()
    assert store.output() == ["older", "0", "1", "6", "7", "8"]
    assert store.failures() == {"2": "unasked", "3": "unasked", "4": "unasked", "5": "unasked"}
    assert (merged.answered, merged.failures.total()) == (5, 4)


def test_answers_that_were_reported_are_not_counted_again(tmp_path: Path) -> None:
    store = Store(tmp_path, 6)
    store.answer(0, 1, 2)
    merge = Merge(store.workspace, store.plan)
    merge.end_chunk(store.plan.chunks[0])
    merge.end_chunk(store.plan.chunks[1], ImageFailure("server", "gone"))
    log = store.workspace.appends.read_bytes()
    assert merge.finish().answered == 3
    keep_plan(store.workspace, Source(store.input), merge.plan)
    store.workspace.appends.write_bytes(log)  # as an error would have left it
    store.plan = store.reopen()
    store.answer(3, 4, 5)
    assert Merge(store.workspace, store.plan).finish().answered == 3


def test_parts_without_a_plan_leave_no_image_in_both_files(tmp_path: Path) -> None:
    store = Store(tmp_path, 3)
    store.answer(0, failing=(1, 2))
    store.merge()
    store.plan = store.replan()
    store.answer(1)
    store.workspace.plan_file.unlink()
    assert settle(store.workspace, None) == 1
    assert store.output() == ["0", "1"]
    assert store.failures() == {"2": "rejected"}


def test_an_old_output_without_a_line_break_at_its_end_grows_too(tmp_path: Path) -> None:
    store = Store(tmp_path, 3)
    store.workspace.output.write_text('{"image_path": "old.jpg"}')
    store.plan = store.replan()
    store.answer(0, 1, 2)
    Merge(store.workspace, store.plan).end_chunk(store.plan.chunks[0])
    assert store.output() == ["old", "0", "1", "2"]


def test_failures_of_a_killed_run_that_were_answered_since_are_none(tmp_path: Path) -> None:
    store = Store(tmp_path, 6)
    store.answer(0)
    Merge(store.workspace, store.plan).end_chunk(store.plan.chunks[0], ImageFailure("server", "gone"))
    store.plan = store.reopen()
    assert [row.image_path for row in store.pending()][:2] == ["1.jpg", "2.jpg"], "they cost no request"
    store.answer(1, 2, 3, 4, failing=(5,))
    merge = Merge(store.workspace, store.plan)
    for chunk in store.plan.chunks:
        merge.end_chunk(chunk)
    merged = merge.finish()
    assert store.output() == ["0", "1", "2", "3", "4"]
    assert store.failures() == {"5": "rejected"}
    assert (merged.answered, merged.failures.total()) == (5, 1), "also what the killed run appended"


def test_chunks_that_end_in_many_threads_are_all_appended_in_order(tmp_path: Path) -> None:
    store = Store(tmp_path, 60)
    store.answer(*range(60))
    merge = Merge(store.workspace, store.plan)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(merge.end_chunk, reversed(store.plan.chunks)))
    assert store.output() == [str(number) for number in range(60)]
    assert merge.finish().answered == 60


def test_an_output_that_does_not_grow_is_written_at_the_end(tmp_path: Path) -> None:
    store = Store(tmp_path, 3)
    store.answer(0, 1, 2)
    merge = Merge(store.workspace, store.plan, grows=False)
    merge.end_chunk(store.plan.chunks[0])
    assert not store.workspace.output.exists()
    merge.finish()
    assert store.output() == ["0", "1", "2"]
