"""The folder below which the input files of an output that is a folder have their names."""

from pathlib import Path

from vllm_annotate.errors import UsageError
from vllm_annotate.results.finished import shards_and_whole
from vllm_annotate.storage.atomic import replacing
from vllm_annotate.storage.workspace import Workspace

PREFIXED = "\nown paths of Parquet rows begin with the name of their file"  # in outputs of earlier versions they do not


def agree_on_folder(workspace: Workspace, folder: str) -> bool:
    """Records the folder; returns whether own paths of Parquet rows are prefixed in this output.

    Raises UsageError if the files lay in another one: they would be taken for those, or be new.
    """
    places = [workspace, *shards_and_whole(workspace)]
    known = [place.common_folder for place in places if place.common_folder.exists()]
    written = known[0].read_text() if known else folder + PREFIXED
    before, is_prefixed = written.removesuffix(PREFIXED), written.endswith(PREFIXED)
    is_around = before.startswith(folder) or folder.startswith(before)
    if before != folder and (is_around or "://" in before or Path(before).is_dir()):
        raise UsageError(
            f"the names of the input files began below {before} before, and begin below {folder} now: give the "
            "input as before, or choose another --output; if it is the same corpus elsewhere, delete "
            f"{', '.join(dict.fromkeys(map(str, known)))}, in a bucket too"
        )
    with replacing(workspace.common_folder) as file:
        file.write((folder + PREFIXED * is_prefixed).encode())
    return is_prefixed
