"""The folder for what outlives a run: records of servers, mirrors and input copies of this user. It may be on NFS."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from vllm_annotate.storage.atomic import replacing


def state_folder() -> Path:
    """Returns vllm-annotate's folder in the user's XDG state folder."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "vllm-annotate"


def this_machine() -> str:
    """Names this machine since its last start, for file names. Containers may share one half of it, hardly both."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{os.uname().nodename}-{boot}"


def token_of(folder: Path) -> str:
    """Returns the token that distinguishes a folder from those of other machines, also in one home; makes it if new."""
    path = folder / f"token-{this_machine()}"
    with suppress(FileNotFoundError):  # of an earlier version; one machine takes it over
        (folder / "token").rename(path)
    if not path.exists() or not path.read_text():
        with replacing(path) as file:
            file.write(secrets.token_hex(8).encode())
    return path.read_text()
