"""Files that a command makes: all of them whole, or none, and never over what is there."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vllm_annotate.errors import UsageError
from vllm_annotate.storage.atomic import replacing_path, unfinished_name
from vllm_annotate.storage.lock import AlreadyLockedError, locked


@contextmanager
def creating(option: str, *paths: Path) -> Iterator[list[Path]]:
    """Temporary paths to write to. On success they become the files at `paths`; on an error, nothing is left.

    Raises UsageError, which names the option, if a file exists, has no folder, or is being written by another process.
    """
    with ExitStack() as held, ExitStack() as written:
        for path in paths:
            check_new(option, path)
            lock = path.with_name(f".{unfinished_name(path.name)}.lock")
            try:
                held.enter_context(locked(lock))
            except AlreadyLockedError as holder:
                raise UsageError(f"{option} {str(path)!r} is being written by {holder}: choose another") from None
            held.callback(lock.unlink, missing_ok=True)
            check_new(option, path)  # another process may have finished it meanwhile
        yield [written.enter_context(replacing_path(path)) for path in paths]


def check_new(option: str, path: Path) -> None:
    """Raises UsageError if there is something at `path`, or no folder to write it in."""
    if path.exists() or path.is_symlink():
        raise UsageError(f"{option} {str(path)!r} exists and would be overwritten: choose another, or remove it")
    if not path.parent.is_dir():
        raise UsageError(f"the folder of {option} {str(path)!r} does not exist: create it, or correct the path")
