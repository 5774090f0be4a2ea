"""Where the images of an output are."""

from pathlib import Path

from vllm_annotate.errors import UsageError
from vllm_annotate.job import remembered_job
from vllm_annotate.storage.locations import ImageRoot, image_root_at, location


def image_root_of(output: Path, given: Path | str | None) -> ImageRoot | None:
    """The image root that is given, or that the output's run had; None if neither is known."""
    known = given
    if known is None and output.suffix == ".jsonl" and output.is_file():
        known = remembered_job(output).get("image_root")
    if known is None:
        return None
    try:
        root = image_root_at(location(known))
    except ValueError as error:
        raise UsageError(f"--image-root {str(known)!r}: {error}") from None
    if not isinstance(root, Path) or root.is_dir():
        return root
    if given is None:
        return None
    raise UsageError(f"--image-root {str(given)!r} is not a folder: correct it")
