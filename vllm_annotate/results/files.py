"""The files of an output while a run works on them."""

from types import TracebackType
from typing import Self

from vllm_annotate.inputs.plan_file import Chunk
from vllm_annotate.storage.workspace import Workspace


class Files:
    """The files of an output that lies on this machine. A context manager."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def __enter__(self) -> Self:
        """Makes the workspace what the output is now. Raises UsageError where it cannot be had."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets others in."""

    def keep(self, chunk: Chunk) -> None:
        """Makes the answers of a chunk outlive this machine. Raises OSError."""

    def publish(self) -> None:
        """Makes output, failures and reports what the workspace holds. Raises OSError."""
