"""Parts, merge and failures, and what a kill leaves behind."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.errors import ImageFailure
from flows.images import PreparedImage
from flows.plan import Plan, Source, make_plan, open_plan
from flows.store import Part, PartFile, Row, answer_line, answers_path, heal, merge, pending_rows, settle
from flows.workspace import Workspace, replacing
from tests.conftest import lines_of

IMAGE = PreparedImage(b"", 640, 480, 644, 476)
PARSED = {"annotations": {"rationale": "", "objects": []}, "objects": []}


class Store:
    """A workspace with a plan over `count` rows in chunks of three."""

    def __init__(self, folder: Path, count: int) -> None:
        self.workspace = Workspace.at(folder / "labeled.jsonl")
        self.workspace.parts.mkdir(parents=True)
        self.input = folder / "input.jsonl"
        self.write_input(range(count))
        self.plan = self.replan()

    def write_input(self, numbers: range | list[int]) -> None:
        rows = [{"image_path": f"{n}.jpg", "caption": f"caption {n}", "other": [n]} for n in numbers]
        self.input.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def replan(self) -> Plan:
        return make_plan(Source(self.input), self.workspace, 3)

    def reopen(self) -> Plan:
        plan = open_plan(self.workspace)
        assert plan is not None
        return plan

    def pending(self) -> list[Row]:
        return [row for chunk in self.plan.chunks for row in pending_rows(self.workspace, chunk, "caption")]

    def answer(self, *numbers: int, failing: tuple[int, ...] = ()) -> None:
        """Answers rows in the order given, as completions arrive."""
        for chunk in self.plan.chunks:
            rows = {row.image_path: row for row in pending_rows(self.workspace, chunk, "caption")}
            part = Part(self.workspace, chunk)
            for number in numbers:
                if (row := rows.get(f"{number}.jpg")) is not None:
                    part.answer(row, answer_line(row, IMAGE, f"text {number}", PARSED))
            for number in failing:
                if (row := rows.get(f"{number}.jpg")) is not None:
                    part.fail(row, ImageFailure("rejected", "no", 2))
            part.close()

    def merge(self, stopped: dict[int, ImageFailure] | None = None) -> None:
        merge(self.workspace, self.plan, stopped or {})

    def output(self) -> list[str]:
        return [row["image_path"].removesuffix(".jpg") for row in lines_of(self.workspace.output)]

    def failures(self) -> dict[str, str]:
        rows = lines_of(self.workspace.failures)
        return {row["image_path"].removesuffix(".jpg"): row["failure"]["kind"] for row in rows}


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[[int], Store]:
    return lambda count: Store(tmp_path, count)


def test_an_output_line_has_the_promised_fields_in_order() -> None:
    row = Row("a.jpg", "一只猫", {"image_path": "a.jpg", "caption": "一只猫", "source": "web", "width": 1})
    line = answer_line(row, IMAGE, "text", PARSED | {"flags": ["swapped"]})
    assert line.endswith(b"\n")
    assert json.loads(line) == {
        "image_path": "a.jpg", "caption": "一只猫", "source": "web", "width": 640, "vlm_output": "text",
        "annotations": {"rationale": "", "objects": []}, "objects": [], "flags": ["swapped"], "height": 480,
        "sent_size": [644, 476],
    }  # fmt: skip
    assert line.startswith('{"image_path":"a.jpg","caption":"一只猫"'.encode())


def test_new_rows_follow_the_old_ones_in_input_order(make_store: Callable[[int], Store]) -> None:
    store = make_store(7)
    store.workspace.output.write_bytes(b'{"image_path": "6.jpg",   "odd":"spacing"}\n')
    store.plan = store.replan()
    store.answer(5, 2, 0, 1, 4, 3)
    store.merge()
    assert store.output() == ["6", "0", "1", "2", "3", "4", "5"]
    assert store.workspace.output.read_bytes().startswith(b'{"image_path": "6.jpg",   "odd":"spacing"}\n')
    assert not store.workspace.failures.exists()
    assert not any(store.workspace.parts.iterdir())


def test_every_row_is_in_the_output_or_in_the_failures(make_store: Callable[[int], Store]) -> None:
    store = make_store(7)
    store.answer(0, 2, failing=(1,))
    store.merge({2: ImageFailure("server", "gone"), 3: ImageFailure("unasked", "stopped")})
    assert store.output() == ["0", "2"]
    assert store.failures() == {"1": "rejected", "3": "server", "4": "server", "5": "server", "6": "unasked"}
    failed = lines_of(store.workspace.failures)[0]
    assert failed == {
        "image_path": "1.jpg", "caption": "caption 1", "other": [1],
        "failure": {"kind": "rejected", "message": "no", "attempts": 2},
    }  # fmt: skip


def test_after_a_merge_failed_rows_are_open_again_and_answered_ones_are_not(make_store: Callable[[int], Store]) -> None:
    store = make_store(4)
    store.answer(0, 3, failing=(1,))
    assert [row.image_path for row in store.pending()] == ["2.jpg"]
    store.merge({1: ImageFailure("server", "gone")})
    store.plan = store.reopen()
    assert [row.image_path for row in store.pending()] == ["1.jpg", "2.jpg"]
    store.answer(1, 2)
    store.merge()
    assert store.output() == ["0", "3", "1", "2"]
    assert store.failures() == {}


def test_a_merge_that_was_cut_off_before_it_removed_the_parts_adds_nothing_twice(
    make_store: Callable[[int], Store],
) -> None:
    store = make_store(5)
    store.answer(0, 1, 2, 3, 4)
    parts = {path: path.read_bytes() for path in store.workspace.parts.iterdir()}
    store.merge()
    for path, content in parts.items():
        path.write_bytes(content)
    store.plan = store.reopen()
    assert store.pending() == []
    store.merge()
    assert store.output() == ["0", "1", "2", "3", "4"]


def test_a_row_deleted_from_the_output_is_open_again(make_store: Callable[[int], Store]) -> None:
    store = make_store(3)
    store.answer(0, 1, 2)
    store.merge({1: ImageFailure("server", "keeps the plan")})
    kept = [line for line in store.workspace.output.read_bytes().splitlines(keepends=True) if b'"1.jpg"' not in line]
    store.workspace.output.write_bytes(b"".join(kept))
    store.plan = store.reopen()
    assert [row.image_path for row in store.pending()] == ["1.jpg"]


def test_a_part_cut_anywhere_in_its_last_line_loses_at_most_that_line(make_store: Callable[[int], Store]) -> None:
    store = make_store(3)
    store.answer(0, 1, 2)
    path = answers_path(store.workspace, store.plan.chunks[0])
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for cut in range(last, len(whole) + 1):
        path.write_bytes(whole[:cut])
        paths = heal(path)
        complete = cut >= len(whole) - 1  # without its newline the line is still whole
        assert paths == ["0.jpg", "1.jpg"] + (["2.jpg"] if complete else [])
        assert path.read_bytes() == (whole if complete else whole[:last])
        part = PartFile(path)
        part.append("9.jpg", b'{"image_path": "9.jpg"}\n')
        part.close()
        assert heal(path) == [*paths, "9.jpg"]


def test_blocks_that_a_power_loss_left_empty_cost_only_their_own_lines(make_store: Callable[[int], Store]) -> None:
    store = make_store(3)
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
    assert heal(path)[0] == "a"
    assert heal(path)[0] == "a"


@pytest.mark.parametrize(
    ("tail", "kept"),
    [(b"", b""), (b'{"image_path": "x.jpg"}', b'{"image_path": "x.jpg"}\n'), (b'{"image_path": "x.j', b"")],
)
def test_a_torn_last_line_of_the_output_is_healed(make_store: Callable[[int], Store], tail: bytes, kept: bytes) -> None:
    store = make_store(1)
    before = b'{"image_path": "old.jpg"}\nnot ours but left alone\n'
    store.workspace.output.write_bytes(before + tail)
    store.plan = store.replan()
    store.answer(0)
    store.merge()
    content = store.workspace.output.read_bytes()
    assert content.startswith(before + kept + b'{"image_path":"0.jpg"')


def test_an_abandoned_plan_is_settled_in_its_own_order(make_store: Callable[[int], Store]) -> None:
    store = make_store(5)
    store.answer(4, 3, 0, failing=(1,))
    assert settle(store.workspace, store.reopen()) == 3
    assert store.output() == ["0", "3", "4"]


def test_parts_whose_plan_is_gone_are_kept_all_the_same(make_store: Callable[[int], Store]) -> None:
    store = make_store(5)
    store.workspace.output.write_text('{"image_path": "3.jpg"}\n')
    store.answer(4, 3, 0)
    store.workspace.plan_file.unlink()
    assert settle(store.workspace, None) == 2
    assert store.output() == ["3", "0", "4"]


def test_a_failures_file_as_input_leaves_its_old_reasons_behind(make_store: Callable[[int], Store]) -> None:
    store = make_store(2)
    store.answer(failing=(0, 1))
    store.merge()
    store.input = store.workspace.failures
    store.plan = store.replan()
    assert all("failure" not in row.columns for row in store.pending())


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), replacing(path) as file:  # noqa: PT012
        file.write(b"half")
        raise OSError("disk full")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_a_failure_that_was_set_aside_and_answered_since_is_not_put_back(make_store: Callable[[int], Store]) -> None:
    store = make_store(3)
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
