"""Errors of the disk: which stop a run, and what to tell the user."""

import errno
from pathlib import Path
from typing import TypeGuard

# Errors that every further write would raise too: the run stops instead of losing answers.
FULL = {
    errno.ENOSPC: "is full: make room",
    errno.EDQUOT: "is over the quota of this user: make room",
    errno.EROFS: "cannot be written to: mount it for writing",
}


def disk_is_full(error: BaseException | None) -> TypeGuard[OSError]:
    """Whether every further write would fail too: the disk is full, over quota or read-only."""
    return isinstance(error, OSError) and error.errno in FULL


def explained(error: OSError, path: Path | str) -> str:
    """Returns the message for a file that could not be read or written, with the remedy."""
    where = error.filename or path
    if error.errno in FULL:
        return f"the disk of {where} {FULL[error.errno]} and run again; all answers are saved ({error.strerror})"
    return f"{where}: {error.strerror or error}; fix that and run again, all answers are saved"
