"""Choosing rows to show, from files of any size and in any state."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vllm_annotate.report import gallery
from vllm_annotate.report.gallery import MOST, choose_rows, doubtful_first, newest_parts, newest_rows, spread_lines
from vllm_annotate.results.audited import Audited
from vllm_annotate.results.doubt import doubt
from vllm_annotate.storage.workspace import Workspace

SOUND: dict[str, Any] = {"objects": [{"name": "cat", "bbox": [100, 100, 400, 400]}]}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    # Compact, like our own lines.
    path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.at(tmp_path / "labeled.jsonl")


def test_rare_flags_and_every_kind_of_failure_are_among_the_chosen(workspace: Workspace) -> None:
    rows: list[dict[str, Any]] = [{"image_path": f"{n}", "objects": []} for n in range(20_000)]
    for number in range(0, 20_000, 10):
        rows[number]["flags"] = ["duplicate"]
    rows[7]["flags"] = ["swapped"]
    rows[8]["annotations_error"] = True
    write(workspace.output, rows)
    kinds = ["missing"] * 500 + ["timeout"]
    write(workspace.failures, [{"image_path": f"f{n}", "failure": {"kind": kind}} for n, kind in enumerate(kinds)])
    chosen = choose_rows(workspace)
    assert 100 <= len(chosen) <= MOST
    assert len({row["image_path"] for row in chosen}) == len(chosen)
    assert {"7", "8", "f500"} <= {row["image_path"] for row in chosen}
    failed = Counter(row["failure"]["kind"] for row in chosen if "failure" in row)
    assert failed == {"missing": gallery.FAILED_EACH, "timeout": 1}


def test_complete_lines_from_all_over_a_large_file_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.jsonl"
    write(path, [{"image_path": f"{number:06d}", "text": "x" * (number % 300)} for number in range(50_000)])
    monkeypatch.setattr(gallery, "READ_BYTES", 1024 * 1024)
    monkeypatch.setattr(gallery, "WINDOW_BYTES", 64 * 1024)
    numbers = [int(json.loads(line)["image_path"]) for line in spread_lines(path)]
    assert len(numbers) == len(set(numbers)) < 10_000
    assert {number // 5000 for number in numbers} == set(range(10)), "every tenth of the file"
    assert {0, 49_999} <= set(numbers)


def test_truncated_endless_and_corrupt_lines_are_skipped(workspace: Workspace) -> None:
    endless = b'{"image_path":"endless","x":"' + b"x" * 3_000_000 + b'"}\n'
    workspace.output.write_bytes(
        b'{"image_path":"one"}\n' + endless + b'not json\n["no row"]\n{"image_path":"two","flags":7}\n{"image_path":"to'
    )
    assert {row["image_path"] for row in choose_rows(workspace)} == {"one", "two"}
    assert [row["image_path"] for row in newest_rows([workspace.output], 5)] == ["two"]


def test_missing_files_have_no_rows(workspace: Workspace) -> None:
    assert choose_rows(workspace) == newest_rows([workspace.output], 5) == []
    assert newest_parts(workspace, "jsonl") == []


def test_the_newest_parts_belong_to_the_last_chunks(workspace: Workspace) -> None:
    workspace.parts.mkdir(parents=True)
    for number in range(30):
        (workspace.parts / f"{number:06d}.jsonl").touch()
        (workspace.parts / f"{number:06d}.failures.jsonl").touch()
    assert [path.name for path in newest_parts(workspace, "jsonl")][:2] == ["000029.jsonl", "000028.jsonl"]
    assert newest_parts(workspace, "failures.jsonl")[0].name == "000029.failures.jsonl"


def test_no_kind_of_doubt_crowds_out_another(workspace: Workspace) -> None:
    audited = Audited(workspace.output)
    rows = [SOUND | {"flags": ["truncated"]}] * 20 + [SOUND | {"flags": ["swapped"]}] * 2 + [SOUND]
    rows += [{"objects": [], "annotations_error": True}] * 20
    first = doubtful_first(rows, audited)[:3]
    assert [doubt(row, None) for row in first] == [1, doubt(rows[0], None), doubt(rows[20], None)]
    assert doubtful_first(rows, audited)[-1] == SOUND


def test_what_an_audit_doubts_comes_first(workspace: Workspace) -> None:
    own = {"agreement": 0}  # a column of the input
    write(workspace.output, [SOUND | own | {"image_path": f"{number}"} for number in range(9)])
    write(workspace.output.with_name("labeled.audit.jsonl"), [{"image_path": "6", "agreement": 0.25}])
    assert choose_rows(workspace)[0] == SOUND | own | {"image_path": "6"}
