"""Errors of the disk and of the machine: which stop a run, and what to tell the user."""

import errno
from pathlib import Path
from typing import TypeGuard

from vllm_annotate.errors import MachineFault

# Errors that every further write would raise too: the run stops instead of losing answers.
FULL = {
    errno.ENOSPC: "is full: make room",
    errno.EDQUOT: "is over the quota of this user: make room",
    errno.EROFS: "cannot be written to: mount it for writing",
}
REMEDIES = {
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files of this machine (sysctl fs.file-max), or end other programs",
    errno.ENOMEM: "end other programs, or raise the memory limit of this process or its container",
}


def disk_is_full(error: BaseException | None) -> TypeGuard[OSError]:
    """Whether every further write would fail too: the disk is full, over quota or read-only."""
    return isinstance(error, OSError) and error.errno in FULL


def stops_the_run(error: BaseException | None) -> TypeGuard[OSError]:
    """Whether every further image would fail too."""
    return isinstance(error, MachineFault) or disk_is_full(error)


def explained(error: OSError, path: Path | str) -> str:
    """Returns the message for a file that could not be read or written, with the remedy."""
    if isinstance(error, MachineFault):
        return str(error)
    where = error.filename or path
    if error.errno in FULL:
        return f"the disk of {where} {FULL[error.errno]} and run again; all answers are saved ({error.strerror})"
    if error.errno in REMEDIES:
        return f"{where}: {error.strerror}; {REMEDIES[error.errno]}, and run again, all answers are saved"
    return f"{where}: {error.strerror or error}; fix that and run again, all answers are saved"
