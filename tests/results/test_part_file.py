"""Part files on disk: torn, full of junk, and larger than memory."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.stores import Store
from vllm_annotate.results.part_file import PartFile, whole_lines
from vllm_annotate.results.parts import answers_path


def paths_in(path: Path) -> list[str]:
    with whole_lines(path) as lines:
        return list(lines)


def test_a_part_cut_anywhere_in_its_last_line_loses_at_most_that_line(tmp_path: Path) -> None:
    store = Store(tmp_path, 3)
    store.answer(0, 1, 2)
    path = answers_path(store.workspace, store.plan.chunks[0])
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for cut in range(last, len(whole) + 1):
        path.write_bytes(whole[:cut])
        paths = paths_in(path)
        complete = cut >= len(whole) - 1  # complete, except for the newline
        assert paths == ["0.jpg", "1.jpg"] + (["2.jpg"] if complete else [])
        assert path.read_bytes() == (whole if complete else whole[:last])
        part = PartFile(path)
        part.append("9.jpg", b'{"image_path": "9.jpg"}\n')
        part.close()
        assert paths_in(path) == [*paths, "9.jpg"]


@given(st.binary(max_size=300))
def test_junk_in_a_part_does_not_stop_a_run(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "part.jsonl"
    path.write_bytes(b'{"image_path": "a"}\n' + junk)
    assert paths_in(path)[0] == "a"
    assert paths_in(path)[0] == "a"


def test_a_write_that_fails_midway_does_not_corrupt_the_next_line(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    part = PartFile(tmp_path / "part.jsonl")
    part.append("a", b'{"image_path": "a"}\n')
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30, before[1]))
        with pytest.raises(OSError, match="File too large"):
            part.append("b", b'{"image_path": "b"}\n')
        assert (tmp_path / "part.jsonl").read_bytes() == b'{"image_path": "a"}\n'
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    part.append("c", b'{"image_path": "c"}\n')
    part.close()
    assert paths_in(tmp_path / "part.jsonl") == ["a", "c"]


def test_only_the_places_of_its_lines_are_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    long = "x" * 1_000_000
    with path.open("w") as file:
        file.writelines(f'{{"image_path": "{number}", "text": "{long}"}}\n' for number in range(300))
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from vllm_annotate.results.part_file import whole_lines\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with whole_lines(Path(sys.argv[1])) as lines:\n"
        "    read = sum(len(lines[image_path]) for image_path in lines)\n"
        "print(read, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    read, grown = map(int, done.stdout.split())
    assert read == path.stat().st_size
    assert grown < 64 * 1024, "KiB"


def test_the_last_line_of_an_image_counts(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    path.write_text('{"image_path": "a", "n": 1}\n{"image_path": "b"}\n{"image_path": "a", "n": 2}')
    with whole_lines(path) as lines:
        assert dict(lines) == {"a": b'{"image_path": "a", "n": 2}\n', "b": b'{"image_path": "b"}\n'}


def test_a_part_that_got_shorter_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    path.write_text('{"image_path": "a"}\n{"image_path": "b"}\n')
    with whole_lines(path) as lines:
        os.truncate(path, 25)
        with pytest.raises(OSError, match=f"ends too early: '{path}'"):
            lines["b"]
