"""Guards image paths that are row numbers: in another version of their file they would be those of other images."""

from typing import Any

from vllm_annotate.errors import UsageError
from vllm_annotate.storage.atomic import read_json, write_json
from vllm_annotate.storage.workspace import Workspace


def numbers_of(workspace: Workspace) -> dict[str, Any]:
    """Returns version and content of the file whose row numbers are image paths of this output; empty if none are."""
    try:
        return read_json(workspace.numbers) or {}
    except ValueError:
        return {}


def is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether row numbers of both mean the same images: a file that was copied or touched has the same content."""
    has_content = bool(one.get("content"))
    return one.get("version") == other.get("version") or (has_content and one["content"] == other.get("content"))


def check_numbers(workspace: Workspace, images: Any) -> None:
    """Records the version of a file with row numbers as image paths.

    Raises UsageError if the output has answers to another version.
    """
    if not getattr(images, "is_numbered", False):
        return
    before, now = numbers_of(workspace), {"version": images.version, "content": images.content}
    answers = [*workspace.outputs, *workspace.parts.glob("*.jsonl")]
    if before and not is_same(before, now) and any(path.exists() and path.stat().st_size for path in answers):
        raise UsageError(
            f"{images} has changed, and its rows are known by their numbers, which may be those of other images now: "
            f"choose another --output, or delete {workspace.numbers} if rows were only added at the end"
        )
    write_json(workspace.numbers, {"file": str(images)} | now)
