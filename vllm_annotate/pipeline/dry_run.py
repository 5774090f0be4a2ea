"""Counts what a run would ask for, without a server and without writing anything."""

from collections.abc import Callable

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.plan import POLARS_ERRORS, count_open
from vllm_annotate.job import Job
from vllm_annotate.pipeline.files import run_files
from vllm_annotate.results.parts import answer_files
from vllm_annotate.threads import run_to_end


async def dry_run(job: Job, say: Callable[[str], None], warn: Callable[[str], None]) -> str:
    """Returns how many images a run of the job would send, in a sentence. Raises UsageError for an unusable file."""
    async with run_files(job, say, warn) as files:
        workspace, source = files.workspace, files.source
        try:
            found, selected, pending = await run_to_end(
                count_open, source, *workspace.outputs, *answer_files(workspace)
            )
        except POLARS_ERRORS as error:
            raise UsageError(f"{source.given} is truncated or corrupt ({error!s:.300}): restore it") from None
    chosen = f" ({selected} of {found} are selected)" if selected < found else ""
    return f"{pending} of {selected} images are open{chosen}; nothing was sent or written"
