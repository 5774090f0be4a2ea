"""Counts what a run would ask for, without a server and without writing anything."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.plan import POLARS_ERRORS
from vllm_annotate.inputs.plan_rows import count_open
from vllm_annotate.inputs.selection import Selection
from vllm_annotate.inputs.source import Source
from vllm_annotate.job import Job
from vllm_annotate.pipeline.files import RunFiles, run_files
from vllm_annotate.pipeline.found_input import find_input
from vllm_annotate.results.finished import is_current, read_finished
from vllm_annotate.results.parts import answer_files
from vllm_annotate.storage.workspace import Workspace
from vllm_annotate.threads import run_to_end


async def dry_run(job: Job, say: Callable[[str], None], warn: Callable[[str], None]) -> str:
    """Returns how many images a run of the job would send, in a sentence. Raises UsageError for an unusable file."""
    async with run_files(job, say, warn) as files:
        if files.inputs is None:
            found, selected, pending = await run_to_end(_counted, files.workspace, files.source)
        else:
            found, selected, pending = await run_to_end(_counted_all, job, files)
    chosen = f" ({selected} of {found} are selected)" if selected < found else ""
    return f"{pending} of {selected} images are open{chosen}; nothing was sent or written"


def _counted(workspace: Workspace, source: Source | None) -> tuple[int, int, int]:
    """The distinct images of an input file, the selected ones, and those without an answer."""
    assert source is not None  # noqa: S101 - for the type checker
    try:
        return count_open(source, *workspace.outputs, *answer_files(workspace))
    except POLARS_ERRORS as error:
        raise UsageError(f"{source.given} is truncated or corrupt ({error!s:.300}): restore it") from None


def _counted_all(job: Job, files: RunFiles) -> tuple[int, int, int]:
    """The same of all files of the input, those that were not drawn for a sample by their sizes."""
    assert files.inputs is not None  # noqa: S101 - for the type checker
    counts, left = [0, 0, 0], job.limit
    entries = read_finished(files.workspace, files.output.output_version)
    for file in files.inputs.files:
        entry, output = entries.get(file.name), files.output.output_version(file.output_name)
        if job.sample and not file.sample:
            continue
        if entry is not None and not job.selects and is_current(entry, file, output, job.columns):
            counts = [counts[0] + entry.counts.distinct, counts[1] + entry.counts.distinct, counts[2]]
            continue
        one = job.model_copy(update={"input": file.where, "shard": ""})
        with TemporaryDirectory(prefix="vllm-annotate-") as folder:
            source = replace(
                find_input(one, Path(folder), name=file.name).source,
                selection=Selection(left, file.sample, job.sample_seed),
            )
            counted = _counted(files.output.of_input(file).workspace, source)
        counts = [sum(both) for both in zip(counts, counted, strict=True)]
        left -= min(left, counted[1])
        if job.limit and not left:
            break
    return round(counts[0] * files.inputs.bytes_for_drawn_one()), counts[1], counts[2]
