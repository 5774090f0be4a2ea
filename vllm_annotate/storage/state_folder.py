"""The folder for what outlives a run: records of servers, mirrors and input copies of this user. It may be on NFS."""

import os
from pathlib import Path


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
