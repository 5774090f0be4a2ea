"""The files of an output, wherever it is."""

import threading
from collections.abc import Callable
from pathlib import Path

from vllm_annotate.results.files import Files
from vllm_annotate.results.folder_mirror import FolderMirror
from vllm_annotate.results.mirror import Mirror
from vllm_annotate.storage.output_paths import names_folder
from vllm_annotate.storage.workspace import Workspace


def output_files(
    output: Path | str,
    shard: str = "",
    say: Callable[[str], None] = lambda _: None,
    stopped: threading.Event | None = None,
) -> Files:
    """Returns the files of an output, or of a shard of it, at a path or URL: a context manager."""
    if isinstance(output, Path):
        return Files(Workspace.at(output, shard))
    return (FolderMirror if names_folder(output) else Mirror)(output, shard, say, stopped)
