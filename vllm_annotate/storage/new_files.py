"""Files that a command makes: all of them whole, or none, and never over what is there."""

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vllm_annotate.errors import UsageError
from vllm_annotate.storage.atomic import replacing_path, unfinished_name
from vllm_annotate.storage.disk_errors import disk_is_full
from vllm_annotate.storage.lock import AlreadyLockedError, locked


@contextmanager
def creating(option: str, *paths: Path) -> Iterator[list[Path]]:
    """Temporary paths to write to. On success they become the files at `paths`; on an error, nothing is left.

    Raises UsageError, which names the option, if a file exists, has no folder, or is being written by another process.
    """
    with ExitStack() as held, ExitStack() as written:
        for path in paths:
            check_new(option, path)
            held.enter_context(exclusively(path, f"{option} {str(path)!r}"))
            check_new(option, path)  # another process may have finished it meanwhile
        unfinished = [written.enter_context(replacing_path(path)) for path in paths]
        try:
            yield unfinished
        except OSError as error:
            full = disk_is_full(error) or error.errno == errno.EFBIG
            if full and paths and error.filename in (None, *map(str, unfinished)):  # a write names no file
                error.filename = str(paths[0])
            raise


@contextmanager
def exclusively(path: Path, named: str, *, remedy: str = "choose another") -> Iterator[None]:
    """Locks out other processes that write the same file. Raises UsageError if one does, or if the folder is barred."""
    lock = path.with_name(f".{unfinished_name(path.name)}.lock")
    with ExitStack() as held:
        try:
            held.enter_context(locked(lock))
        except AlreadyLockedError as holder:
            raise UsageError(f"{named} is being written by {holder}: {remedy}") from None
        except OSError as error:
            raise _not_writable(named, error) from None
        held.callback(lock.unlink, missing_ok=True)
        yield


def check_name(option: str, path: Path) -> None:
    """Raises UsageError if `path` is a folder. Call it before you derive other names from the path."""
    try:
        is_folder = path.name in ("", "..") or path.is_dir()
    except OSError as error:  # such as a name that is too long
        raise _not_writable(f"{option} {str(path)!r}", error) from None
    if is_folder:
        raise UsageError(f"{option} {str(path)!r} is a folder: add the name of the new file")


def check_new(option: str, path: Path) -> None:
    """Raises UsageError if there is something at `path`, or no folder to write it in."""
    check_name(option, path)
    try:
        exists = path.exists() or path.is_symlink()
    except OSError as error:
        raise _not_writable(f"{option} {str(path)!r}", error) from None
    if exists:
        raise UsageError(f"{option} {str(path)!r} exists and would be overwritten: choose another, or remove it")
    if not path.parent.is_dir():
        raise UsageError(f"the folder of {option} {str(path)!r} does not exist: create it, or correct the path")


def _not_writable(named: str, error: OSError) -> UsageError:
    return UsageError(
        f"{named:.300} cannot be written: {error.strerror or error}; choose a name in a folder that this user may "
        "write to"
    )
