"""Files that are made whole or not at all."""

from pathlib import Path

import pytest

from vllm_annotate.errors import UsageError
from vllm_annotate.storage.new_files import creating


def test_all_files_are_there_in_the_end_and_nothing_else(tmp_path: Path) -> None:
    wanted = [tmp_path / "a", tmp_path / "b"]
    with creating("--to", *wanted) as unfinished:
        for path in unfinished:
            path.write_text("whole")
        assert not any(path.exists() for path in wanted)
    assert sorted(tmp_path.iterdir()) == wanted
    assert {path.read_text() for path in wanted} == {"whole"}


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> None:
        with creating("--to", tmp_path / "a", tmp_path / "b") as unfinished:
            unfinished[0].write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with creating("--to", tmp_path / "a") as unfinished:
        unfinished[0].write_text("first")
        with (
            pytest.raises(UsageError, match=r"--to '.*a' is being written by process"),
            creating("--to", tmp_path / "a"),
        ):
            pass
    assert (tmp_path / "a").read_text() == "first"


def test_a_file_or_dangling_link_that_exists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="exists and would be overwritten"), creating("--to", tmp_path / "a"):
        pass
    assert (tmp_path / "a").is_symlink()


@pytest.mark.parametrize(("path", "why"), [("/proc/a", "No such file"), ("x" * 300, "File name too long")])
def test_a_place_that_cannot_be_written_is_refused(path: str, why: str) -> None:
    with (
        pytest.raises(UsageError, match=f"--to .* cannot be written: {why}.*; choose a name"),
        creating("--to", Path(path)),
    ):
        pass
