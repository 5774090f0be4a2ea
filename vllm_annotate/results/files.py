"""The files of an output during a run."""

from contextlib import suppress
from types import TracebackType
from typing import Self

from vllm_annotate.inputs.listing import InputFile
from vllm_annotate.inputs.plan_file import Chunk
from vllm_annotate.results.parts import answers_path
from vllm_annotate.storage.atomic import sync_file
from vllm_annotate.storage.file_states import Version, file_version
from vllm_annotate.storage.packed import names_of
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

    def of_input(self, file: InputFile) -> "Files":
        """Returns the files of an input file, of an output that is a folder, up to date with its output."""
        return Files(self.workspace.of_input(file.name, file.output_name))

    def output_version(self, name: str) -> Version:
        """Returns the version of an output file of a folder, whichever form it has; None if there is none."""
        versions = (file_version(self.workspace.answers / each) for each in names_of(name))
        return next((version for version in versions if version), None)

    def tidy(self, file: InputFile) -> None:
        """Removes what is left of the state of a finished input file where other machines see it."""

    def keep_failures(self) -> None:
        """Publishes the failures of a folder, before those that are asked again get answers."""

    def keep(self, chunk: Chunk) -> None:
        """Saves the answers of a chunk so far, also from a power loss. Raises OSError."""
        with suppress(FileNotFoundError):
            sync_file(answers_path(self.workspace, chunk))

    def fetch_shown(self) -> None:
        """Brings some answers of a folder here, for the report's page."""

    def keep_entries(self) -> None:
        """Saves which input files are finished, also from the loss of this machine."""

    def publish(self) -> None:
        """Publishes output, failures and reports from the workspace. Raises OSError."""
