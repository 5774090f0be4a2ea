"""The folder for what outlives a run: records of servers, mirrors and input copies of this user."""

import os
from pathlib import Path


def state_folder() -> Path:
    """Returns vllm-annotate's folder in the user's XDG state folder."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "vllm-annotate"
