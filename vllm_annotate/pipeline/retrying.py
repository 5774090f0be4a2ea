"""What a retry gives to annotate."""

from pathlib import Path
from typing import Any

from vllm_annotate.errors import UsageError
from vllm_annotate.job import SELECTING, remembered_job
from vllm_annotate.storage.locations import locations
from vllm_annotate.storage.workspace import Workspace


def retried_input(output: Path | str, workspace: Workspace) -> dict[str, Any]:
    """The fields of a job that asks again: the rows that were chosen, or of a folder the input of its last run.

    Raises UsageError if that run is not recorded.
    """
    had = remembered_job(output)
    own_names = {"own_names": had["own_names"]} if "own_names" in had else {}
    if not workspace.is_folder:
        return {"input": workspace.retried} | own_names
    if not had.get("input"):
        raise UsageError(
            f"no run of {output} is recorded beside it: run annotate with its input, which retries failures"
        )
    kept = {name: had[name] for name in ("output_format", *SELECTING) if name in had}
    return {"input": locations(had["input"])} | kept | own_names
