"""Guards image paths that are row numbers: in another version of their file they would be those of other images."""

from typing import Any

from vllm_annotate.errors import UsageError
from vllm_annotate.storage.atomic import read_json, write_json
from vllm_annotate.storage.workspace import Workspace


def numbers_of(workspace: Workspace) -> Any:
    """Returns the version of the file whose row numbers are image paths of this output; None if none are."""
    try:
        return (read_json(workspace.numbers) or {}).get("version")
    except ValueError:
        return None


def check_numbers(workspace: Workspace, images: Any) -> None:
    """Records the version of a file with row numbers as image paths.

    Raises UsageError if the output has answers to another version.
    """
    if not getattr(images, "is_numbered", False):
        return
    before = numbers_of(workspace)
    answers = [*workspace.outputs, *workspace.parts.glob("*.jsonl")]
    if before not in (None, images.version) and any(path.exists() and path.stat().st_size for path in answers):
        raise UsageError(
            f"{images} has changed, and its rows are known by their numbers, which may be those of other images now: "
            f"choose another --output, or delete {workspace.numbers} if rows were only added at the end"
        )
    write_json(workspace.numbers, {"file": str(images), "version": images.version})
