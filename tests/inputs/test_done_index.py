"""The index of done images: what it saves, and when it is not believed."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tests.support.stores import Store
from vllm_annotate.inputs.done_index import count_lines, index_output, written_lines
from vllm_annotate.inputs.plan import keep_plan, remove_plan
from vllm_annotate.inputs.rows import Row
from vllm_annotate.inputs.source import Source, output_lines
from vllm_annotate.results.merge import Merge, settle


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Nine images, of which the output has three, with a broken line between, and an index."""
    made = Store(tmp_path, 9)
    made.workspace.output.write_bytes(
        b'{"image_path": "0.jpg"}\n\nbroken\n{"image_path": "1.jpg"}\n{"image_path": "2.jpg"}\n'
    )
    made.plan = made.replan()
    index_output(made.workspace, smallest_bytes=0)
    return made


def lines(store: Store) -> list[tuple[int, str | None]]:
    return list(written_lines(store.workspace).collect().iter_rows())


def indexed_to(store: Store) -> int:
    return int(json.loads(store.workspace.done_index.read_text())["indexed"])


EXPECTED = [(1, "0.jpg"), (3, None), (4, "1.jpg"), (5, "2.jpg")]


def test_it_holds_what_the_output_says(store: Store) -> None:
    assert lines(store) == EXPECTED == list(output_lines(store.workspace.output).collect().iter_rows())
    assert indexed_to(store) == store.workspace.output.stat().st_size


def test_a_small_output_has_none(store: Store) -> None:
    store.workspace.done_index.unlink()
    index_output(store.workspace)
    assert not store.workspace.done_index.exists()


def test_after_a_run_only_what_it_appended_is_read(store: Store) -> None:
    store.answer(3, 4, 5, 6, 7, 8)
    merge = Merge(store.workspace, store.plan)
    merge.end_chunk(store.plan.chunks[0])
    merge.finish()
    remove_plan(store.workspace)
    before = indexed_to(store)
    assert before < store.workspace.output.stat().st_size
    assert lines(store) == [*EXPECTED, *((number + 3, f"{number}.jpg") for number in range(3, 9))]
    index_output(store.workspace, smallest_bytes=0)
    assert indexed_to(store) == store.workspace.output.stat().st_size
    assert lines(store) == [*EXPECTED, *((number + 3, f"{number}.jpg") for number in range(3, 9))]
    store.write_input(range(10))
    assert [row.image_path for row in replanned(store)] == ["9.jpg"]


def test_lines_are_counted_with_and_without_it(store: Store) -> None:
    store.answer(3, 4, 5, 6, 7, 8)
    Merge(store.workspace, store.plan).finish()
    assert count_lines(store.workspace) == 5 + 6
    store.workspace.done_index.unlink()
    assert count_lines(store.workspace) == 5 + 6
    store.workspace.output.unlink()
    assert count_lines(store.workspace) == 0


def replanned(store: Store) -> list[Row]:
    store.plan = store.replan()
    return store.pending()


def test_in_a_run_that_was_killed_it_still_counts(store: Store) -> None:
    store.answer(3, 4, 5)
    Merge(store.workspace, store.plan).end_chunk(store.plan.chunks[0])
    store.plan = store.reopen()
    assert [row.image_path for row in store.pending()] == ["6.jpg", "7.jpg", "8.jpg"]


def test_after_an_append_that_did_not_come_to_its_end_the_output_is_read(store: Store) -> None:
    store.answer(3, 4, 5)
    Merge(store.workspace, store.plan).end_chunk(store.plan.chunks[0])
    log = store.workspace.appends.read_bytes().splitlines(keepends=True)
    store.workspace.appends.write_bytes(b"".join(log[:-1]))
    with store.workspace.output.open("rb+") as theirs:  # an edit that keeps the size
        theirs.write(b'{"image_path": "8.jpg"}')
    assert lines(store)[0] == (1, "8.jpg")


def test_after_a_plan_that_was_given_up_it_counts(store: Store) -> None:
    store.answer(3, 4, 5)
    settle(store.workspace, store.reopen())
    remove_plan(store.workspace)
    before = indexed_to(store)
    assert len(lines(store)) == len(EXPECTED) + 3
    assert indexed_to(store) == before < store.workspace.output.stat().st_size


def test_after_a_run_that_keeps_its_plan_it_counts(store: Store) -> None:
    store.answer(3, 4, 5)
    merge = Merge(store.workspace, store.plan)
    merge.finish()
    keep_plan(store.workspace, Source(store.input), merge.plan)
    assert len(lines(store)) == len(EXPECTED) + 3
    store.plan = store.reopen()
    assert [row.image_path for row in store.pending()] == ["6.jpg", "7.jpg", "8.jpg"]


def append_a_row(store: Store) -> None:
    with store.workspace.output.open("ab") as theirs:
        theirs.write(b'{"image_path": "8.jpg"}\n')


def delete_a_row(store: Store) -> None:
    content = store.workspace.output.read_bytes()
    store.workspace.output.write_bytes(content.replace(b'{"image_path": "1.jpg"}\n', b""))


def replace_a_row(store: Store) -> None:
    content = store.workspace.output.read_bytes()
    store.workspace.output.write_bytes(content.replace(b"1.jpg", b"7.jpg"))


def damage_the_index(store: Store) -> None:
    store.workspace.done_index.write_text('{"indexed": "all"}')


def remove_its_rows(store: Store) -> None:
    store.workspace.done_rows.unlink()


def damage_its_rows(store: Store) -> None:
    store.workspace.done_rows.write_bytes(b"PAR1")


def flip_a_bit_of_its_rows(store: Store) -> None:
    content = bytearray(store.workspace.done_rows.read_bytes())
    content[content.index(b"1.jpg")] ^= 1
    store.workspace.done_rows.write_bytes(content)


def restore_older_rows(store: Store) -> None:
    schema = {"line": pl.UInt32, "image_path": pl.String}
    pl.DataFrame({"line": [1], "image_path": ["5.jpg"]}, schema=schema).write_parquet(store.workspace.done_rows)


CHANGES = [
    append_a_row, delete_a_row, replace_a_row, damage_the_index, remove_its_rows, damage_its_rows,
    flip_a_bit_of_its_rows, restore_older_rows,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_not_believed_after(store: Store, change: Callable[[Store], None]) -> None:
    change(store)
    assert lines(store) == list(output_lines(store.workspace.output).collect().iter_rows())
    done = {path for _, path in lines(store)}
    assert {row.image_path for row in replanned(store)} == {f"{number}.jpg" for number in range(9)} - done


def test_what_is_indexed_is_not_read_again(store: Store) -> None:
    store.workspace.output.write_bytes(store.workspace.output.read_bytes() + b'{"image_path": "z.jpg"}\n' * 9000)
    index_output(store.workspace, smallest_bytes=0)
    middle = b'{"image_path": "z.jpg"}\n' * 4500 + b'{"image_path": "y.jpg"}\n' + b'{"image_path": "z.jpg"}\n' * 4499
    content = store.workspace.output.read_bytes()
    status = store.workspace.output.stat()
    start = content.index(b'{"image_path": "z.jpg"}')
    store.workspace.output.write_bytes(content[:start] + middle)
    os.utime(store.workspace.output, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "y.jpg" not in {path for _, path in lines(store)}, "nobody changes a file and sets back its time"
