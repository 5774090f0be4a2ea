"""Input → pending rows → chunks."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.conftest import lines_of
from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.plan import make_plan, open_plan, plan_is_for, read_chunk
from vllm_annotate.inputs.plan_file import Plan
from vllm_annotate.inputs.source import Source, check_source, left_out, output_lines
from vllm_annotate.results.append import appending
from vllm_annotate.results.lines import path_of
from vllm_annotate.results.parts import pending_rows
from vllm_annotate.storage.file_states import file_state
from vllm_annotate.storage.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace.at(tmp_path / "labeled.jsonl")
    workspace.parts.mkdir(parents=True)
    return workspace


def source(folder: Path, text: str | bytes, name: str = "input.jsonl", **columns: str) -> Source:
    data = text.encode() if isinstance(text, str) else text
    (folder / name).write_bytes(data)
    return Source(folder / name, **columns)  # type: ignore[arg-type]


def planned(workspace: Workspace, plan: Plan) -> list[str]:
    return [path for chunk in plan.chunks for path in read_chunk(workspace, chunk)["image_path"]]


UGLY = (
    b'{"image_path": "a.jpg", "caption": "x", "tags": [1, {"deep": null}]}\n'
    b"not json\n"
    b"\n"
    b'{"caption": "no path"}\n'
    b'{"image_path": "b\\u00e9 \\"q\\".jpg", "caption": 5, "other": "type than before"}\r\n'
    b'{"image_path": "a.jpg", "caption": "again"}\n'
    b'\xff\xfe{"image_path": "bytes"}\n'
    b'{"image_path": null}\n{"image_path": ""}\n[1, 2]\n'
    b'{"image_path": "last.jpg", "caption": "no newline"}'
)


def test_malformed_pathless_and_duplicate_lines_are_reported_with_their_numbers(
    tmp_path: Path, workspace: Workspace
) -> None:
    plan = make_plan(source(tmp_path, UGLY), workspace, 2)
    assert planned(workspace, plan) == ["a.jpg", 'bé "q".jpg', "last.jpg"]
    assert [chunk.length for chunk in plan.chunks] == [2, 1]
    counts = plan.counts
    assert (counts.input, counts.distinct, counts.malformed, counts.without_path, counts.duplicates) == (10, 3, 2, 4, 1)
    assert [(row["line"], row["reason"]) for row in lines_of(workspace.skipped)] == [
        (2, "malformed"),
        (4, "without_path"),
        (6, "duplicate of line 1"),
        (7, "malformed"),
        (8, "without_path"),
        (9, "without_path"),
        (10, "without_path"),
    ]


def test_rows_keep_their_line_number_and_their_text(tmp_path: Path, workspace: Workspace) -> None:
    plan = make_plan(source(tmp_path, UGLY), workspace, 10)
    rows = read_chunk(workspace, plan.chunks[0])
    assert rows["line"].to_list() == [1, 5, 11]
    assert rows["row"][0] == '{"image_path": "a.jpg", "caption": "x", "tags": [1, {"deep": null}]}'


@pytest.mark.parametrize("name", ["input.jsonl", "input.jsonl.gz", "input.jsonl.zst", "input.parquet"])
def test_every_format_gives_the_same_plan(tmp_path: Path, workspace: Workspace, name: str) -> None:
    rows: list[dict[str, Any]] = [{"image_path": f"{n}.jpg", "caption": f"第{n}张", "n": n} for n in range(7)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = tmp_path / name
    if name.endswith(".parquet"):
        pl.DataFrame(rows).with_columns(thumbnail=pl.lit(b"\x00")).write_parquet(path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(text))
    elif name.endswith(".zst"):
        pl.DataFrame({"line": text.decode().splitlines()}).write_csv(
            path, include_header=False, quote_style="never", compression="zstd"
        )
    else:
        path.write_bytes(text)
    check_source(Source(path))
    plan = make_plan(Source(path), workspace, 5)
    kept = [json.loads(row) for chunk in plan.chunks for row in read_chunk(workspace, chunk)["row"]]
    assert kept == rows


def test_images_in_the_output_are_not_planned(tmp_path: Path, workspace: Workspace) -> None:
    text = "".join(json.dumps({"image_path": f"{n}.jpg", "caption": ""}) + "\n" for n in range(6))
    workspace.output.write_text('{"image_path": "1.jpg"}\n{"image_path": "4.jpg", "x": 1}\n{"image_path": "5.j')
    plan = make_plan(source(tmp_path, text), workspace, 10)
    assert planned(workspace, plan) == ["0.jpg", "2.jpg", "3.jpg", "5.jpg"]
    assert plan.counts.already_done == 2


def test_columns_can_have_any_name(tmp_path: Path, workspace: Workspace) -> None:
    text = '{"file.name \'x\'": "a.jpg", "image_path": "not this", "text": "t"}\n'
    named = source(tmp_path, text, image_column="file.name 'x'", caption_column="text")
    check_source(named)
    assert planned(workspace, make_plan(named, workspace, 10)) == ["a.jpg"]


def test_a_plan_in_progress_knows_which_rows_were_merged_since(tmp_path: Path, workspace: Workspace) -> None:
    text = "".join(json.dumps({"image_path": f"{n}.jpg"}) + "\n" for n in range(4))
    made = make_plan(source(tmp_path, text), workspace, 3)
    workspace.output.write_text('{"image_path": "2.jpg"}\n')
    plan = open_plan(workspace)
    assert plan is not None
    assert plan.chunks == made.chunks
    assert read_chunk(workspace, plan.chunks[0])["merged"].to_list() == [False, False, True]


def test_a_plan_belongs_to_the_input_it_was_made_from(tmp_path: Path, workspace: Workspace) -> None:
    first = source(tmp_path, '{"image_path": "a.jpg"}\n')
    make_plan(first, workspace, 3)
    assert plan_is_for(workspace, first)
    assert not plan_is_for(workspace, Source(first.path, image_column="other"))
    assert not plan_is_for(workspace, source(tmp_path, '{"image_path": "b.jpg"}\n{}\n'))


def test_a_plan_stays_where_a_run_was_killed_after_it_made_the_output(tmp_path: Path, workspace: Workspace) -> None:
    """Else answers of a chunk would be appended before an earlier image of it, which has none yet."""
    rows = source(tmp_path, '{"image_path": "a.jpg"}\n')
    make_plan(rows, workspace, 3)
    workspace.output.touch()
    assert plan_is_for(workspace, rows)
    with appending(workspace, file_state(workspace.output)) as output:
        output.write(b'{"image_path": "a.jpg"}\n')
    assert plan_is_for(workspace, rows)
    workspace.output.write_text("{}\n")
    assert not plan_is_for(workspace, rows), "another program has written it"


def test_the_digest_of_a_chunk_covers_its_image_paths_only(tmp_path: Path, workspace: Workspace) -> None:
    def digest(rows: str) -> str:
        return make_plan(source(tmp_path, rows), workspace, 10).chunks[0].digest

    first = digest('{"image_path": "a", "caption": "1"}\n{"image_path": "b"}\n')
    assert digest('{"image_path": "a", "caption": "2"}\n{"image_path": "b"}\n') == first
    assert digest('{"image_path": "b"}\n{"image_path": "a"}\n') != first


@pytest.mark.parametrize(
    ("text", "columns", "complaint"),
    [
        (b"", {}, "no JSON object"),
        (b"a,b\n1,2\n", {}, "no JSON object"),
        (
            b'{"image": "a.jpg", "caption": ""}\n',
            {},
            r"no column 'image_path'; it has 'image', 'caption'.*--image-column",
        ),
        (b'{"image_path": "a.jpg", "text": ""}\n', {}, "no column 'caption'.*--caption-column"),
        (b"PAR1 but not really", {"name": "input.parquet"}, "cannot be read as Parquet"),
        (b"\x1f\x8b broken", {"name": "input.jsonl.gz"}, "cannot be read as JSON lines|no JSON object"),
    ],
)
def test_a_bad_input_is_refused_with_the_remedy(
    tmp_path: Path, text: bytes, columns: dict[str, str], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        check_source(source(tmp_path, text, **columns))


def test_a_missing_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        check_source(Source(tmp_path / "nothing.jsonl"))
    with pytest.raises(UsageError, match="is not a file"):
        check_source(Source(tmp_path))


def test_a_line_with_a_control_character_is_malformed(tmp_path: Path, workspace: Workspace) -> None:
    text = b'{"image_path": "a"}\x01rest\n{"image_path": "b"}\n{"image_path": "c"}\x01g\n{"image_path": "b\x01"}\n'
    plan = make_plan(source(tmp_path, text), workspace, 9)
    assert planned(workspace, plan) == ["b"]
    assert plan.counts.malformed == 3


def test_two_invalid_paths_do_not_become_one(tmp_path: Path, workspace: Workspace) -> None:
    paths = ('"\\ud800.jpg", "caption": "A"', '"\\udc01.jpg"', '"?.jpg", "n": "\\ud83d"')
    plan = make_plan(source(tmp_path, "".join(f'{{"image_path": {path}}}\n' for path in paths)), workspace, 9)
    assert planned(workspace, plan) == ["?.jpg"]
    assert read_chunk(workspace, plan.chunks[0])["line"].to_list() == [3]


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_paths_that_are_not_utf_8_do_not_become_one(
    tmp_path: Path, workspace: Workspace, compress: Callable[[bytes], bytes]
) -> None:
    paths = [b"a\xff.jpg", b"a\xfe.jpg", "a\ufffd.jpg".encode(), b"caf\xe9.jpg", "caf\xe9.jpg".encode()]
    text = b"\n".join(b'{"image_path": "%s", "caption": "\xff"}' % path for path in paths)
    (tmp_path / "input.jsonl").write_bytes(compress(text))
    plan = make_plan(Source(tmp_path / "input.jsonl"), workspace, 9)
    assert planned(workspace, plan) == ["a\ufffd.jpg", "caf\xe9.jpg"]
    assert read_chunk(workspace, plan.chunks[0])["line"].to_list() == [3, 5]
    assert (plan.counts.malformed, plan.counts.duplicates) == (3, 0)
    assert [(row["line"], row["reason"]) for row in lines_of(workspace.skipped)] == [
        (1, "malformed"), (2, "malformed"), (4, "malformed"),
    ]  # fmt: skip


@pytest.mark.parametrize("depth", [100, 127, 254, 300, 499])
def test_nesting_within_the_limit_is_read_by_all_parsers(tmp_path: Path, workspace: Workspace, depth: int) -> None:
    row = f'{{"image_path": "a.jpg", "nan": NaN, "deep": {"[" * depth}{"]" * depth}}}'
    given = source(tmp_path, row + "\n")
    assert planned(workspace, make_plan(given, workspace, 9)) == ["a.jpg"]

    def deeper(frames: int) -> str | None:
        return deeper(frames - 1) if frames else path_of(row.encode())

    assert deeper(300) == "a.jpg"


@pytest.mark.parametrize("depth", [500, 900, 985, 1100, 100_000])
def test_nesting_over_the_limit_is_malformed_for_all_parsers(tmp_path: Path, workspace: Workspace, depth: int) -> None:
    row = f'{{"image_path": "a.jpg", "nan": NaN, "deep": {"[" * depth}{"]" * depth}}}'
    plan = make_plan(source(tmp_path, f'{row}\n{{"image_path": "b.jpg"}}\n'), workspace, 9)
    assert planned(workspace, plan) == ["b.jpg"]
    assert path_of(row.encode()) is None


PATHS = ['"a"', "5", "-7", "true", "null", '""', '"\\u00e9"', '"caf\xe9"', '"\\ud800"', '"?"', '"?\\u00e9"']


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("more", ["", ', "x": NaN', ', "y": "\\ud83d"', ', "z": "\xff"'])
def test_a_path_is_the_same_for_every_parser(tmp_path: Path, path: str, more: str) -> None:
    line = f'{{"image_path": {path}{more}}}'.encode("latin-1")
    (tmp_path / "out.jsonl").write_bytes(line + b"\n")
    assert output_lines(tmp_path / "out.jsonl").collect()["image_path"].to_list() == [path_of(line)]


def test_a_byte_order_mark_is_not_part_of_the_first_row(tmp_path: Path, workspace: Workspace) -> None:
    plan = make_plan(source(tmp_path, b'\xef\xbb\xbf{"image_path": "a"}\n'), workspace, 9)
    assert planned(workspace, plan) == ["a"]


def test_parquet_columns_with_bytes_are_dropped_and_a_path_must_be_text(tmp_path: Path, workspace: Workspace) -> None:
    frame = pl.DataFrame({"image_path": ["a"], "image": [{"bytes": b"\xff", "path": "a"}], "sizes": [[1.5, None]]})
    frame.write_parquet(tmp_path / "input.PARQUET")
    plan = make_plan(Source(tmp_path / "input.PARQUET"), workspace, 9)
    assert json.loads(read_chunk(workspace, plan.chunks[0])["row"][0]) == {"image_path": "a", "sizes": [1.5, None]}
    with pytest.raises(UsageError, match="contains bytes, not paths"):
        check_source(Source(tmp_path / "input.PARQUET", image_column="image"))


@pytest.mark.parametrize("name", ["input.pq", "input.PARQ", "input.jsonl", "input"])
def test_parquet_is_known_by_its_name_or_its_first_bytes(tmp_path: Path, workspace: Workspace, name: str) -> None:
    pl.DataFrame({"image_path": ["a"], "caption": ["b"]}).write_parquet(tmp_path / name)
    given = Source(tmp_path / name)
    assert check_source(given) == ["image_path", "caption"]
    assert planned(workspace, make_plan(given, workspace, 9)) == ["a"]
    (tmp_path / name).write_text("no Parquet")
    with pytest.raises(UsageError, match=r"cannot be read as Parquet|no JSON object"):
        check_source(Source(tmp_path / name))


def test_columns_with_bytes_at_any_depth_are_named(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "image_path": ["a"], "hash": [b"\xff"], "image": [{"bytes": b"\xff", "path": "a"}], "masks": [[b"\xff"]],
            "sizes": [[1, 2]],
        }
    )  # fmt: skip
    frame.write_parquet(tmp_path / "input.parquet")
    assert left_out(Source(tmp_path / "input.parquet")) == ["hash", "image", "masks"]
    (tmp_path / "input.jsonl").write_text('{"image_path": "a"}\n')
    assert left_out(Source(tmp_path / "input.jsonl")) == []


def test_broken_lines_of_the_output_are_counted_and_their_images_planned(tmp_path: Path, workspace: Workspace) -> None:
    rows = [{"image_path": f"{number}.jpg"} for number in range(5)]
    given = source(tmp_path, "".join(json.dumps(row) + "\n" for row in rows))
    broken = (
        b'\n{"image_path": "0.jpg"}\n{"image_path": "1.j\n{"image_path": "2.jpg"}{"image_path": "3.jpg"}\n[]\n\0\0\n'
    )
    workspace.output.write_bytes(broken)
    plan = make_plan(given, workspace, 2)
    assert planned(workspace, plan) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert (plan.counts.broken_in_output, plan.counts.first_broken, plan.counts.already_done) == (4, 3, 1)
    assert workspace.output.read_bytes() == broken


def test_a_row_whose_path_differs_from_its_key_is_never_sent(tmp_path: Path, workspace: Workspace) -> None:
    given = source(tmp_path, '{"image_path": "a.jpg", "caption": "of a"}\n')
    plan = make_plan(given, workspace, 2)
    rows = pl.read_parquet(workspace.plan_rows)
    rows.with_columns(row=pl.lit('{"image_path": "b.jpg", "caption": "of b"}')).write_parquet(workspace.plan_rows)
    with pytest.raises(UsageError, match=r"has the row of 'b.jpg' for 'a.jpg': .* delete the plan, .*plan.json"):
        pending_rows(workspace, plan.chunks[0], given)


MEMORY_AFTER_PLANNING = """
import json, sys, time
from pathlib import Path
from vllm_annotate.inputs.plan import make_plan
from vllm_annotate.inputs.source import Source
from vllm_annotate.storage.workspace import Workspace

def mebibytes():
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) / 1024

for count in (1_000, 300_000):
    folder = Path(sys.argv[1], str(count))
    (folder / "labeled.work").mkdir(parents=True)
    rows = (json.dumps({"image_path": f"{number}.jpg", "caption": f"caption {number}"}) for number in range(count))
    (folder / "input.jsonl").write_text("\\n".join(rows))
    make_plan(Source(folder / "input.jsonl"), Workspace.at(folder / "labeled.jsonl"), 500)
    time.sleep(0.5)  # it is kept for a tenth of a second
    print(mebibytes())
"""


def test_the_memory_of_a_plan_is_free_again_soon(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEMORY_AFTER_PLANNING, str(tmp_path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    small, large = map(float, output.split())
    assert large - small < 30, "the plan of 300,000 rows takes over 100 MiB while it is made"
