"""Where the images of an output are."""

from pathlib import Path

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.input_images import images_at, images_inside
from vllm_annotate.job import remembered_job
from vllm_annotate.results.written import written_files
from vllm_annotate.storage.image_roots import ImageRoot
from vllm_annotate.storage.locations import location
from vllm_annotate.storage.packed import is_packed, names_of


def image_root_of(output: Path, given: Path | str | None) -> ImageRoot | None:
    """The image root that is given, or that the output's run had; None if neither is known."""
    plain = output.with_name(names_of(output.name)[0]) if is_packed(output) else output
    had = remembered_job(plain) if plain.suffix in ("", ".jsonl") and written_files(output) else {}
    known = had.get("image_root") if given is None else given
    root: ImageRoot | None
    try:
        root = images_inside(had) if known is None else images_at(location(known), had)
    except ValueError as error:
        raise UsageError(f"--image-root {str(known)!r}: {error}") from None
    except UsageError:  # of a file with images inside
        if given is None:
            return None
        raise
    if not isinstance(root, Path) or (known is not None and root.is_dir()):
        return root
    if given is None:
        return None
    raise UsageError(f"--image-root {str(given)!r} is not a folder: correct it")
