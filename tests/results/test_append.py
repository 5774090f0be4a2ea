"""Lines that are appended to an output: what was there stays as it was."""

from contextlib import suppress
from pathlib import Path

import pytest

from vllm_annotate.results.append import BLOCK_BYTES, OutputChangedError, appending, repair_output
from vllm_annotate.storage.appends import only_appended
from vllm_annotate.storage.file_states import file_state
from vllm_annotate.storage.workspace import Workspace

OLD = b'{"image_path": "old.jpg"}\n'
NEW = b'{"image_path": "new.jpg"}\n'


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace.at(tmp_path / "labeled.jsonl")
    made.parts.mkdir(parents=True)
    return made


def append(workspace: Workspace, *lines: bytes) -> None:
    with appending(workspace, file_state(workspace.output)) as output:
        output.writelines(lines)


def test_the_file_stays_the_same_one_and_grows(workspace: Workspace) -> None:
    workspace.output.write_bytes(OLD)
    before = workspace.output.stat()
    append(workspace, NEW)
    assert workspace.output.read_bytes() == OLD + NEW
    assert workspace.output.stat().st_ino == before.st_ino


def test_without_lines_a_file_is_created_but_none_is_touched(workspace: Workspace) -> None:
    append(workspace)
    assert workspace.output.read_bytes() == b""
    workspace.output.write_bytes(b'{"image_path": "unfinished')
    before = file_state(workspace.output)
    append(workspace)
    assert file_state(workspace.output) == before


def test_an_error_takes_back_what_was_appended(workspace: Workspace) -> None:
    workspace.output.write_bytes(OLD)
    many = [NEW] * (2 * BLOCK_BYTES // len(NEW))
    with pytest.raises(OSError, match="full"), appending(workspace, file_state(workspace.output)) as output:  # noqa: PT012
        output.writelines(many)
        assert workspace.output.stat().st_size > BLOCK_BYTES
        raise OSError("disk full")
    assert workspace.output.read_bytes() == OLD


def test_an_error_takes_back_nothing_once_another_program_has_added_lines(workspace: Workspace) -> None:
    workspace.output.write_bytes(OLD)
    with pytest.raises(OSError, match="full"), appending(workspace, file_state(workspace.output)) as output:  # noqa: PT012
        output.writelines([NEW] * (BLOCK_BYTES // len(NEW) + 1))
        with workspace.output.open("ab") as theirs:
            theirs.write(OLD)
        raise OSError("disk full")
    lines = workspace.output.read_bytes().splitlines(keepends=True)
    assert lines[0] == lines[-1] == OLD
    assert set(lines[1:-1]) == {NEW}


def test_an_output_that_was_written_to_since_is_refused(workspace: Workspace) -> None:
    workspace.output.write_bytes(OLD)
    before = file_state(workspace.output)
    workspace.output.write_bytes(OLD + OLD)
    with (
        pytest.raises(OutputChangedError, match="another program is writing to"),
        appending(workspace, before) as output,
    ):
        output.write(NEW)
    assert workspace.output.read_bytes() == OLD + OLD


def test_an_output_that_is_replaced_meanwhile_is_refused_and_kept(workspace: Workspace) -> None:
    workspace.output.write_bytes(OLD)
    with pytest.raises(OutputChangedError), appending(workspace, file_state(workspace.output)) as output:  # noqa: PT012
        output.writelines([NEW] * (BLOCK_BYTES // len(NEW) + 1))
        edited = workspace.output.with_name("edited")
        edited.write_bytes(OLD + b"edited\n")
        edited.replace(workspace.output)
    assert workspace.output.read_bytes() == OLD + b"edited\n"


def test_a_row_of_another_program_between_two_blocks_ends_it(workspace: Workspace) -> None:
    workspace.output.write_bytes(OLD)
    with pytest.raises(OutputChangedError), appending(workspace, file_state(workspace.output)) as output:  # noqa: PT012
        output.writelines([NEW] * (BLOCK_BYTES // len(NEW) + 1))
        with workspace.output.open("ab") as theirs:
            theirs.write(OLD)
        output.write(NEW)
    assert workspace.output.read_bytes().endswith(NEW + OLD), "nothing is cut away under it"


def test_a_line_that_somebody_is_writing_is_left_alone_in_turn(workspace: Workspace) -> None:
    unfinished = OLD + b'{"image_path": "their'
    workspace.output.write_bytes(unfinished)
    with (
        pytest.raises(OutputChangedError),
        appending(workspace, file_state(workspace.output), in_turn=True) as output,
    ):
        output.write(NEW)
    assert workspace.output.read_bytes() == unfinished
    append(workspace, NEW)
    assert workspace.output.read_bytes() == OLD + NEW, "at the end of a run it is taken for torn"
    assert workspace.torn.read_bytes() == b'{"image_path": "their\n'


def test_what_is_left_is_told_only_if_nobody_else_wrote(workspace: Workspace) -> None:
    with appending(workspace, None) as output:
        output.write(NEW)
    status = workspace.output.stat()
    assert output.left == [status.st_size, status.st_mtime_ns]
    assert only_appended(workspace.appends, None, workspace.output)


def test_half_a_line_of_a_killed_append_is_moved_away_and_half_a_line_of_others_is_not(workspace: Workspace) -> None:
    append(workspace, OLD)
    append(workspace, NEW)
    log = workspace.appends.read_bytes().splitlines(keepends=True)
    workspace.appends.write_bytes(b"".join(log[:-1]))  # it did not come to its end
    workspace.output.write_bytes(OLD + NEW[:9])
    repair_output(workspace)
    assert workspace.output.read_bytes() == OLD
    assert workspace.torn.read_bytes() == NEW[:9] + b"\n"
    assert only_appended(workspace.appends, None, workspace.output)
    with workspace.output.open("ab") as theirs:
        theirs.write(b"x" * len(NEW) + b"yy")
    repair_output(workspace)
    assert workspace.output.read_bytes() == OLD + b"x" * len(NEW) + b"yy"


def test_an_append_of_several_blocks_is_known_as_a_whole(workspace: Workspace) -> None:
    append(workspace, *[NEW] * (2 * BLOCK_BYTES // len(NEW)))
    assert only_appended(workspace.appends, None, workspace.output, whole=True)


def test_an_edit_that_keeps_the_size_is_noticed_between_blocks_and_at_the_end(workspace: Workspace) -> None:
    workspace.output.write_bytes(OLD)
    for more in (BLOCK_BYTES // len(NEW) + 1, 0):
        before = file_state(workspace.output)
        lines = appending(workspace, before)
        with suppress(OutputChangedError), lines as output:
            output.writelines([NEW] * (BLOCK_BYTES // len(NEW) + 1))
            with workspace.output.open("rb+") as theirs:
                theirs.write(OLD.replace(b"old", b"bad"))
            output.writelines([NEW] * more)
        assert output.left is None


def test_what_was_there_is_not_read_again(workspace: Workspace) -> None:
    """A sparse file of a terabyte, which nothing could read."""
    with workspace.output.open("wb") as file:
        file.seek(2**40)
        file.write(b"\n")
    append(workspace, NEW)
    assert workspace.output.stat().st_size == 2**40 + 1 + len(NEW)
