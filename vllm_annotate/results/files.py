"""The files of an output during a run."""

from contextlib import suppress
from types import TracebackType
from typing import Self

from vllm_annotate.inputs.plan_file import Chunk
from vllm_annotate.results.parts import answers_path
from vllm_annotate.storage.atomic import sync_file
from vllm_annotate.storage.workspace import Workspace


class Files:
    """The files of an output on this machine. A context manager."""

    grows = True  # the output, while a run works

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def __enter__(self) -> Self:
        """Brings the workspace up to date with the output. Raises UsageError if another run holds it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Releases the output."""

    def keep(self, chunk: Chunk) -> None:
        """Saves the answers of a chunk so far, also from a power loss. Raises OSError."""
        with suppress(FileNotFoundError):
            sync_file(answers_path(self.workspace, chunk))

    def publish(self) -> None:
        """Publishes output, failures and reports from the workspace. Raises OSError."""
