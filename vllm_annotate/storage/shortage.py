"""Memory and open files: what this machine can run short of through no fault of an image."""

import errno
import resource
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from vllm_annotate.errors import MachineFault

Result = TypeVar("Result")

SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
PAUSE_SECONDS = (0.2, 1.0)  # requests in flight and images in other threads give back what they use
ORDINARY_BYTES = 16 << 20  # what an ordinary image needs while it is prepared
MOST_FILES = 65_536  # enough for every limit of requests; many programs close each possible descriptor at their start
OTHER_FILES = 512  # logs, parts, images, Prefect's connections
_alone = threading.Lock()


def raise_limit() -> int:
    """Raises this process's limit of open files as far as allowed; returns the limit.

    The usual limit is 1024, and every request in flight and every shard of a merge needs some.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return MOST_FILES if soft == resource.RLIM_INFINITY else soft


def most_connections(limit: int) -> int:
    """Returns how many connections a process with this limit of open files can have, beside its other files."""
    return max(1, limit // 2, limit - OTHER_FILES)


def is_shortage(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised for, is a lack of memory or of file descriptors."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and _is_short(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_short(error: OSError) -> bool:
    return error.errno in SHORT or (error.errno is None and str(error).startswith("out of memory"))  # Pillow's codecs


def patiently(function: Callable[[], Result]) -> Result:
    """Calls a function, and again after a pause if the machine is short of memory or open files.

    Raises the last MemoryError if only this call needs more memory than there is, and MachineFault if any would.
    """
    try:
        return function()
    except Exception as error:
        if not is_shortage(error):
            raise
    for pause in PAUSE_SECONDS:
        with _alone:
            time.sleep(pause)
            try:
                return function()
            except Exception as error:
                if not is_shortage(error):
                    raise
                last = error
    raise _fault(last)


def _fault(error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return MachineFault(
            f"too many open files (this process may open {limit}): raise the limit (ulimit -n), or lower "
            "max_concurrency, and run again; all answers are saved"
        )
    try:
        bytearray(ORDINARY_BYTES)
    except MemoryError:
        return MachineFault(
            "this machine has no memory left: raise the memory limit of this process (ulimit -v, or that of its "
            "container), end other programs or lower max_concurrency, and run again; all answers are saved"
        )
    return error if isinstance(error, MemoryError) else MemoryError(str(error))
