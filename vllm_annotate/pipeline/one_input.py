"""The work of a run over one input file."""

import asyncio

from vllm_annotate.inputs.plan import input_has_changed, keep_plan, remove_plan
from vllm_annotate.inputs.plan_file import Counts, Plan
from vllm_annotate.pipeline.annotating import Fatal, Logger, MakeRunner, start_chunks
from vllm_annotate.pipeline.session import Run, plan_or_resume
from vllm_annotate.results.merge import Merge
from vllm_annotate.results.merged import Merged
from vllm_annotate.threads import run_to_end


class OneInput:
    """The chunks of an input file."""

    files = None

    def __init__(self, run: Run, plan: Plan) -> None:
        self._run = run
        self._plan = plan
        self._merge = Merge(run.workspace, plan, grows=run.files.output.grows, warn=run.files.warn)

    @property
    def rows(self) -> int:
        """How many images it asks for."""
        return self._plan.rows

    @property
    def not_selected(self) -> int:
        """How many images limit or sample leave out."""
        return self._plan.counts.not_selected

    @property
    def counts(self) -> Counts:
        """Counts of the input."""
        return self._plan.counts

    @property
    def failed_chunks(self) -> list[str]:
        """The names of the chunks that stopped early."""
        return [f"chunk {number} of {len(self._plan.chunks)}" for number in sorted(self._merge.stopped)]

    async def annotate(self, make_runner: MakeRunner) -> None:
        """Runs all chunks; see `Work`."""
        fatal = Fatal()
        async with asyncio.TaskGroup() as group:
            await start_chunks(self._run, self._merge, make_runner(self._run, self._plan), group, fatal)
        fatal.raise_it()

    async def finish(self, logger: Logger) -> Merged:
        """Moves the last answers into the output and writes the failures file; removes the plan if nothing stopped."""
        run, merge = self._run, self._merge
        merged = await run_to_end(merge.finish)
        if input_has_changed(run.workspace, run.source):
            logger.warning(
                "%s has changed since this run planned it: run again to annotate the changes", run.source.given
            )
        if merge.stopped:
            keep_plan(run.workspace, run.source, merge.plan)
        else:
            remove_plan(run.workspace)
        return merged


async def plan_one(run: Run, logger: Logger) -> OneInput:
    """Plans or resumes the rows without an answer."""
    plan = await run_to_end(plan_or_resume, run)
    counts = plan.counts
    logger.info(
        "%s: %d images in %d chunks; the output had %d of the input's %d distinct images when planned",
        "Resuming an unfinished plan" if plan.resumed else "New plan",
        plan.rows, len(plan.chunks), counts.already_done, counts.distinct,
    )  # fmt: skip
    if counts.taken:
        logger.info("%d of them have an answer of the pilot, %s", counts.taken, run.workspace.pilot.output)
    if size := plan.other_chunk_size(run.job.chunk_size):
        logger.info(
            "Chunks have %d images, not chunk_size=%d: a plan keeps its chunks until all are complete",
            size, run.job.chunk_size,
        )  # fmt: skip
    if counts.broken_in_output:
        logger.warning(
            "%d lines of %s are corrupt or have no image path (the first is line %d): they stay, and their images are "
            "annotated again",
            counts.broken_in_output, run.workspace.output, counts.first_broken,
        )  # fmt: skip
    if counts.malformed or counts.without_path or counts.duplicates:
        logger.warning(
            "Skipped lines of the input: %d malformed, %d without an image path, %d duplicates; see %s",
            counts.malformed, counts.without_path, counts.duplicates, run.workspace.skipped,
        )  # fmt: skip
    return OneInput(run, plan)
