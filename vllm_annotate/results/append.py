"""Appends lines to the output: what is there is neither read nor written again."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from typing import TypeVar

from vllm_annotate.errors import UsageError
from vllm_annotate.storage.appends import Append, Version, log_begin, log_end, read_appends
from vllm_annotate.storage.atomic import sync_folder, unfinished_name
from vllm_annotate.storage.file_states import FileState, state_of
from vllm_annotate.storage.json_text import json_object
from vllm_annotate.storage.workspace import Workspace

BLOCK_BYTES = 8 * 1024 * 1024
APPEND_TRIES = 3
Result = TypeVar("Result")


class OutputChangedError(UsageError):
    """Another program writes to the output while lines are appended to it."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(
            f"another program is writing to {workspace.output}: wait for it or stop it, then run again; all answers "
            "are saved"
        )


def retry_if_changed(attempt: Callable[[], Result]) -> Result:
    """Returns what `attempt` returns. Retries it if another program writes to the output meanwhile.

    Raises UsageError if that continues.
    """
    for _ in range(APPEND_TRIES - 1):
        with suppress(OutputChangedError):
            return attempt()
    return attempt()


@contextmanager
def appending(workspace: Workspace, before: FileState | None, *, in_turn: bool = False) -> Iterator["NewLines"]:
    """Lines to append to the output, which is created if it does not exist. On an error none of them stays.

    `before` is the output's state when its rows were last read. Raises OutputChangedError if another program wrote to
    it since; `in_turn` also if the last line is half of a row, which otherwise is moved away.
    """
    lines = NewLines(workspace, before, in_turn=in_turn)
    try:
        yield lines
        lines.finish()
    except BaseException:
        lines.undo()
        raise
    finally:
        lines.close()


class NewLines:
    """Lines that go to the end of an output, in blocks."""

    def __init__(self, workspace: Workspace, before: FileState | None, *, in_turn: bool) -> None:
        self.left: Version | None = None  # the output after the last line; None if another program wrote to it
        self._workspace = workspace
        self._before = before
        self._in_turn = in_turn
        self._file: FileIO | None = None
        self._block = bytearray()
        self._start = self._end = 0  # of the lines, in the output
        self._written: Version | None = None  # the output after the last block

    def write(self, line: bytes) -> None:
        """Adds a line."""
        self._block += line
        if len(self._block) >= BLOCK_BYTES:
            self._flush()

    def writelines(self, lines: Iterable[bytes]) -> None:
        """Adds lines."""
        for line in lines:
            self.write(line)

    def finish(self) -> None:
        """Syncs the lines to disk. Without any, an output that exists is left alone."""
        output = self._workspace.output
        if not self._block and self._file is None and output.exists():
            return
        file = self._flush()
        os.fsync(file.fileno())
        self._check_replaced(file)
        if self._written == _version(file):
            self.left = self._written

    def undo(self) -> None:
        """Takes back what was appended, unless another program has added to it."""
        if self._file is None:
            return
        with suppress(OSError):
            if state_of(self._file).size == self._end:
                os.ftruncate(self._file.fileno(), self._start)
                os.fsync(self._file.fileno())
                log_end(self._workspace.appends, _version(self._file))

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def _flush(self) -> FileIO:
        file = self._file or self._open()
        if self._written is not None:
            self._check_replaced(file)
            if self._written != _version(file):
                raise OutputChangedError(self._workspace)
        elif state_of(file).size != self._end:
            raise OutputChangedError(self._workspace)
        if not self._block:
            return file
        before = self._before and [self._before.size, self._before.modified]
        append = Append(state_of(file).inode, self._written or before, self._end, self._end + len(self._block))
        log_begin(self._workspace.appends, append)
        block = memoryview(bytes(self._block))
        self._block.clear()
        while block:  # a full disk can cut a write short
            written = os.write(file.fileno(), block)
            self._end += written
            block = block[written:]
        self._written = _version(file)
        log_end(self._workspace.appends, self._written)
        return file

    def _open(self) -> FileIO:
        output = self._workspace.output
        try:
            self._file = file = FileIO(output, "x+" if self._before is None else "r+", opener=_appending)
        except (FileExistsError, FileNotFoundError):
            raise OutputChangedError(self._workspace) from None
        if self._before is None:
            sync_folder(output.parent)
        elif state_of(file) != self._before:
            raise OutputChangedError(self._workspace)
        elif tail := unfinished_line(file):
            if self._in_turn and json_object(tail) is None:
                raise OutputChangedError(self._workspace)
            _end_line(self._workspace, file, tail)
        self._start = self._end = state_of(file).size
        return file

    def _check_replaced(self, file: FileIO) -> None:
        """Raises OutputChangedError if the lines are in a file that nobody sees any more."""
        output = self._workspace.output
        if not output.exists() or not os.path.samestat(os.fstat(file.fileno()), output.stat()):
            raise OutputChangedError(self._workspace)


def repair_output(workspace: Workspace) -> None:
    """Syncs what a killed run appended, before it counts as saved; moves the half line that it may have left."""
    output = workspace.output
    output.with_name(unfinished_name(output.name)).unlink(missing_ok=True)  # of an earlier version, which copied it
    if not output.exists():
        return
    with FileIO(output, "r+", opener=_appending) as file:
        os.fsync(file.fileno())
        state, tail = state_of(file), unfinished_line(file)
        for last in read_appends(workspace.appends)[-1:]:
            ours = last.start <= state.size - len(tail) and state.size <= last.end and state.inode == last.inode
            if tail and ours and last.left is None:
                _move_tail(workspace, file, tail, state.size)
                os.fsync(file.fileno())


def _version(file: FileIO) -> Version:
    state = state_of(file)
    return [state.size, state.modified]


def _appending(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_APPEND | os.O_CLOEXEC, 0o666)


def _end_line(workspace: Workspace, file: FileIO, tail: bytes) -> None:
    """Completes a last line without a newline; moves an incomplete one, which another program left."""
    if _is_torn(tail):
        _move_tail(workspace, file, tail, file.seek(0, os.SEEK_END))
    else:
        file.write(b"\n")


def _move_tail(workspace: Workspace, file: FileIO, tail: bytes, size: int) -> None:
    """Moves the end of an output of this size to the file of torn lines."""
    with workspace.torn.open("ab") as torn:
        torn.write(tail + b"\n")
        torn.flush()
        os.fsync(torn.fileno())
    if state_of(file).size == size:
        file.truncate(size - len(tail))


def _is_torn(tail: bytes) -> bool:
    """Whether a line is only the beginning of a JSON object, and not text that someone may need."""
    text = tail.decode(errors="replace").strip()
    if json_object(text) is not None or not text.startswith("{"):
        return False
    try:
        json.JSONDecoder().raw_decode(text)
    except RecursionError:
        return False
    except ValueError:
        return True
    return False  # a complete object and more text


def unfinished_line(file: FileIO) -> bytes:
    """Returns the text after a file's last newline."""
    size = file.seek(0, os.SEEK_END)
    tail = b""
    while len(tail) < size and b"\n" not in tail:
        start = max(0, size - len(tail) - BLOCK_BYTES)
        file.seek(start)
        tail = file.read(size - len(tail) - start) + tail
    return tail[tail.rfind(b"\n") + 1 :]
