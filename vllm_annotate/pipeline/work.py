"""What a run has to do: the chunks of one input file, or of several."""

from typing import Protocol

from vllm_annotate.inputs.plan_file import Counts
from vllm_annotate.pipeline.annotating import Logger, MakeRunner
from vllm_annotate.report.report import InputFiles
from vllm_annotate.results.merged import Merged


class Work(Protocol):
    """The work of a run, planned."""

    @property
    def rows(self) -> int:
        """How many images it asks for, or an estimate."""

    @property
    def counts(self) -> Counts:
        """Counts of the input."""

    @property
    def not_selected(self) -> int:
        """How many images limit or sample leave out, or an estimate."""

    @property
    def failed_chunks(self) -> list[str]:
        """The names of the chunks that stopped early."""

    @property
    def files(self) -> InputFiles | None:
        """What came of the files of an input that is several."""

    async def annotate(self, make_runner: MakeRunner) -> None:
        """Runs all chunks. Raises OSError if the disk is full, UsageError if another run has taken over the output.

        Once the server is gone or refuses, no further chunk starts.
        """

    async def finish(self, logger: Logger) -> Merged:
        """Moves the last answers into the output, and writes the failures file."""
