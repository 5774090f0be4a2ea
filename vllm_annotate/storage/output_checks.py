"""Checks of an output's path before a run, cheap and without changing anything."""

import os
import stat
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from vllm_annotate.errors import UsageError
from vllm_annotate.storage.packed import may_be_output

SPECIAL = {
    stat.S_IFDIR: "a directory", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip
MAX_PATH_BYTES, DEEPEST_BYTES = 4096, 128  # of a path, and of what the work folder adds to it


def check_regular(*files: Path, folder: Path) -> None:
    """Raises UsageError if a file exists and is no regular file, which cannot be replaced, or the folder is none."""
    for path in files:
        with suppress(OSError):
            if not stat.S_ISREG(mode := path.stat().st_mode):
                kind = SPECIAL.get(stat.S_IFMT(mode), "no regular file")
                raise UsageError(f"{path} is {kind}: remove it, or choose another --output")
    with suppress(OSError):
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise UsageError(f"{folder} is no directory: remove it, or choose another --output")


def check_replaceable(output: Path) -> None:
    """Raises OSError if `output`, a file or a folder, cannot be written, without changing it."""
    if output.is_dir():
        with TemporaryFile(dir=output):
            pass
    elif output.exists():
        with output.open("rb+"):
            pass


def check_output(path: Path, given: str) -> None:
    """Raises UsageError unless a path may be that of an output: a .jsonl file, or a folder, which has no ending."""
    if path.suffix not in ("", ".jsonl"):
        raise UsageError(
            f"output {given!r} must end in .jsonl: the result has one JSON object per line; without an ending it is a "
            "folder, with a file for each input file, which --output-format may make a table"
        )
    check_names(path)
    if path.name.endswith(".failures.jsonl"):
        raise UsageError(f"output {given!r} is the name of a failures file: choose one without .failures")
    if path.suffix and path.is_dir():
        raise UsageError(f"output {given!r} is a directory: name a file in it, such as {path}/labeled.jsonl")
    if not path.suffix and path.exists() and not path.is_dir():
        raise UsageError(f"output {given!r} is a file without an ending: choose another --output")
    if not path.parent.is_dir():
        raise UsageError(f"the folder of output {given!r} does not exist: create it, or correct the path")


def check_folder(path: Path, given: str) -> None:
    """Raises UsageError if a folder that no run has written has other files than outputs, images for example."""
    files = (Path(where) / name for where, _, names in os.walk(path) for name in names)
    if other := next((file for file in files if not may_be_output(file)), None):
        raise UsageError(
            f"output {given!r} is a folder with other files, such as {other}: choose a new folder, or name a file in "
            f"it, such as {path}/labeled.jsonl"
        )


def check_names(output: Path) -> None:
    """Raises UsageError if a name beside an output would be too long: better now than after the last answer."""
    longest = output.with_name(output.stem + ".failures.jsonl")
    try:
        limit = os.pathconf(output.parent, "PC_NAME_MAX")
    except OSError:
        limit = 255
    if (excess := len(os.fsencode(longest.name)) - limit) > 0:
        raise UsageError(
            f"the name of output {str(output)!r} is too long: with .failures.jsonl it has {limit + excess} bytes, and "
            f"the file system allows {limit}; make it {excess} bytes shorter"
        )
    if len(os.fsencode(longest)) + DEEPEST_BYTES > MAX_PATH_BYTES:
        raise UsageError(f"the path of output {str(output)!r} is too long: make it {DEEPEST_BYTES} bytes shorter")
