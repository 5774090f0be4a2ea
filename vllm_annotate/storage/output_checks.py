"""Checks of an output's path before a run, cheap and without changing anything."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from vllm_annotate.errors import UsageError

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
    """Raises OSError if `output` cannot be written, without changing it."""
    if output.exists():
        with output.open("rb+"):
            pass


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
