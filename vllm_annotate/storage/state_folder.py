"""What outlives runs, beside their own files: servers, mirrors and inputs of this user on this machine."""

import os
from pathlib import Path


def state_folder() -> Path:
    """Where this user's programs keep what outlives them."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "vllm-annotate"
