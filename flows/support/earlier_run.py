"""What a flow takes over from the last run of an output."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from blocks import AnnotationRecipe, VLLMServer
from vllm_annotate.errors import UsageError
from vllm_annotate.job import Job, images_of, remembered_job


def of_earlier_run(output: Path | str, given: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The fields of these names that are not given, and that the last run of the output had.

    Raises UsageError if one that it saved is no longer valid.
    """
    had = remembered_job(output)
    had["image_root"] = images_of(had)
    found = {name: had[name] for name in names if given.get(name) is None and had.get(name) is not None}
    try:
        Job(**{"input": output, "output": output} | found)
    except ValidationError as error:
        wrong = dict.fromkeys(str(problem["loc"][0]) for problem in error.errors())
        raise UsageError(f"{' and '.join(wrong)} of the last run of {output} is not valid any more: set it") from None
    blocks = {"server": VLLMServer, "recipe": AnnotationRecipe}
    return found | {name: block(**found[name]) for name, block in blocks.items() if name in found}
