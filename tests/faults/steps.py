"""The steps of a run without Prefect and without a server, each in a forked process that may be killed.

    LD_PRELOAD=shim.so python -m tests.faults.steps

reads a request a line (a step's name and parameters, and the shim's settings), and answers with its exit code and what
it said. The interpreter and all imports are paid for once.
"""

import asyncio
import json
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["POLARS_MAX_THREADS"] = "1"  # a process that has forked has one thread only

from vllm_annotate.errors import AnnotateError, ImageFailure, UsageError
from vllm_annotate.images.prepare import PreparedImage
from vllm_annotate.inputs.done_index import index_output
from vllm_annotate.inputs.plan import keep_plan, remove_plan
from vllm_annotate.inputs.plan_file import Chunk
from vllm_annotate.inputs.source import Source
from vllm_annotate.job import Job
from vllm_annotate.pipeline.files import RunFiles, input_files
from vllm_annotate.pipeline.many_inputs import plan_many
from vllm_annotate.pipeline.session import Run, plan_or_resume
from vllm_annotate.recipe.guard import guard_recipe
from vllm_annotate.results.files import Files
from vllm_annotate.results.lines import answer_line
from vllm_annotate.results.merge import Merge
from vllm_annotate.results.merge_shards import merge_shards
from vllm_annotate.results.parts import Part, pending_rows
from vllm_annotate.results.retry import chosen_failures
from vllm_annotate.results.shard_files import shard_files
from vllm_annotate.storage.atomic import write_json
from vllm_annotate.storage.disk_errors import explained
from vllm_annotate.storage.shard import Shard
from vllm_annotate.storage.workspace import Workspace
from vllm_annotate.threads import run_to_end

IMAGE = PreparedImage(b"", 640, 480, 644, 476)


def annotate(
    folder: str,
    source: str = "input.jsonl",
    shard: str = "",
    failing: Sequence[str] = (),
    stopping: Sequence[int] = (),
    recipe: str = "one",
    chunk_size: int = 3,
) -> None:
    """What the flow does: plan, answer, merge, report. Chunks that are `stopping` answer one image only."""
    workspace = Workspace.at(Path(folder) / "labeled.jsonl", shard)
    share = Shard.parse(shard) if shard else None
    run: Any = SimpleNamespace(
        workspace=workspace, source=Source(Path(folder) / source, shard=share), recipe_settings={"model": "m"},
        recipe_fingerprint=recipe, files=SimpleNamespace(image_root=Path(folder)),
        job=Job(input=Path(folder) / source, image_root=folder, output=workspace.output, chunk_size=chunk_size),
    )  # fmt: skip
    with workspace.locked():
        guard_recipe(workspace, run.recipe_settings, recipe)
        index_output(workspace, smallest_bytes=0)
        plan = plan_or_resume(run)
        merge = Merge(workspace, plan)
        for chunk in plan.chunks:
            merge.end_chunk(chunk, answer_chunk(run, failing, stopping, chunk))
        merged = merge.finish()
        if merge.stopped:
            keep_plan(workspace, run.source, merge.plan)
        else:
            remove_plan(workspace)
        write_json(workspace.report, {"answered": merged.answered, "failures": dict(merged.failures)})


def answer_chunk(run: Any, failing: Sequence[str], stopping: Sequence[int], chunk: Chunk) -> ImageFailure | None:
    """Answers the open images of a chunk, but for the failing ones; returns what stopped it."""
    part = Part(run.workspace, chunk)
    try:
        for number, row in enumerate(pending_rows(run.workspace, chunk, run.source)):
            if number and chunk.number in stopping:
                return ImageFailure("server", "gone")
            if row.image_path in failing:
                part.fail(row, ImageFailure("rejected", "no", 1))
            else:
                part.answer(row, answer_line(row, IMAGE, row.caption, {"annotations": {}, "objects": []}))
    finally:
        part.close()
    return None


class Turns:
    """In place of an annotator: each chunk may start at once."""

    async def turn(self, part: Path) -> None:
        """Does not wait."""

    def end_turn(self, part: Path) -> None:
        """Nobody waits."""

    def stop(self, error: BaseException) -> None:
        """Nobody asks."""


def annotate_folder(
    folder: str, failing: Sequence[str] = (), stopping: Sequence[int] = (), output_format: str = "jsonl"
) -> None:
    """What the flow does with several input files."""
    where = Path(folder)
    job = Job.model_validate(
        {"input": where / "inputs", "image_root": where, "output": where / "labeled", "chunk_size": 3}
        | {"output_format": output_format}
    )
    workspace, annotator, proving = Workspace.at(where / "labeled"), Turns(), object()
    files = RunFiles(None, where, Files(workspace), logging.getLogger(__name__).warning, input_files(job))
    parts: Any = (annotator, proving)
    run, logger = Run(job, files, "m", {"model": "m"}, "one", {}, *parts), logging.getLogger(__name__)

    async def answer(run: Run, chunk: Chunk) -> BaseException | None:
        return await run_to_end(answer_chunk, run, failing, stopping, chunk)

    async def work() -> None:
        planned = await plan_many(run, logger)
        await planned.annotate(lambda run, _: partial(answer, run))
        merged = await planned.finish(logger)
        write_json(workspace.report, {"answered": merged.answered, "failures": dict(merged.failures)})
        if not stopping and (planned.failed_chunks or planned.files.failed):
            raise UsageError(f"{planned.failed_chunks} {planned.files.failed}")

    with workspace.locked():
        guard_recipe(workspace, run.recipe_settings, "one")
        asyncio.run(work())


def retry(folder: str, kinds: Sequence[Any] = ("rejected",), failing: Sequence[str] = ()) -> None:
    """What the flow retry-failures does."""
    _, chosen, _ = chosen_failures(Path(folder) / "labeled.jsonl", list(kinds))
    if chosen:
        annotate(folder, "labeled.work/retried.jsonl", failing=failing)


def merge_all(folder: str) -> None:
    """What `python -m flows.merge_shards` does."""
    with shard_files(Path(folder) / "labeled.jsonl", print) as files:
        whole, *shards = (each.workspace for each in files)
        merge_shards(Source(Path(folder) / "input.jsonl"), whole, shards)


STEPS: dict[str, Callable[..., None]] = {
    "annotate": annotate, "annotate_folder": annotate_folder, "retry": retry, "merge_all": merge_all,
}  # fmt: skip


def main() -> None:
    """Serves requests until there are no more."""
    for line in sys.stdin:
        print(json.dumps(in_fork(**json.loads(line))), flush=True)


def in_fork(step: str, parameters: dict[str, Any], faults: dict[str, str]) -> dict[str, Any]:
    """Does a step in a process of its own; returns its exit code (negative: the signal that ended it) and words."""
    with tempfile.TemporaryFile("w+") as said:
        if (pid := os.fork()) == 0:
            os.environ.update(faults)
            os.dup2(said.fileno(), 2)
            os._exit(exit_code(step, parameters))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said.seek(0)
        return {"code": code, "said": said.read()}


def exit_code(step: str, parameters: dict[str, Any]) -> int:
    """0, 2 for an error that the command would tell by its message alone, 1 for one that it would not."""
    try:
        STEPS[step](**parameters)
    except AnnotateError as error:
        os.write(2, str(error).encode())
        return 2
    except OSError as error:
        os.write(2, explained(error, parameters["folder"]).encode())
        return 2
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        return 1
    return 0


if __name__ == "__main__":
    main()
