"""The flow's engine without Prefect: the same plan, annotator, telemetry, merge and page; no tasks or artifacts.

`python -m benchmarks.clients.engine INPUT IMAGES OUTPUT URL IN_FLIGHT`.
"""

import asyncio
import logging
import sys
import time

from vllm_annotate.inputs.plan_file import Chunk
from vllm_annotate.job import Job
from vllm_annotate.pipeline.outcome import outcome
from vllm_annotate.pipeline.recording import recording
from vllm_annotate.pipeline.session import Run, open_run, plan_or_resume
from vllm_annotate.report.figures import telemetry_charts
from vllm_annotate.report.page import write_page
from vllm_annotate.results.merge import Merge
from vllm_annotate.results.parts import Part, pending_rows
from vllm_annotate.serving.settings import Server


async def annotate_chunk(run: Run, chunk: Chunk) -> None:
    """Does the work of the flow's task."""
    rows = await asyncio.to_thread(pending_rows, run.workspace, chunk, run.source)
    part = Part(run.workspace, chunk)
    try:
        await run.annotator.annotate(rows, part)
    finally:
        await asyncio.to_thread(part.close)
        run.annotator.end_turn(chunk)


async def main(source: str, images: str, output: str, url: str, in_flight: str) -> None:
    """Annotates every row."""
    begun = time.monotonic()
    server = Server(endpoints=[f"{url}/v1"])
    job = Job(input=source, image_root=images, output=output, server=server, max_concurrency=int(in_flight))
    async with open_run(job) as run:
        plan = await asyncio.to_thread(plan_or_resume, run)
        await run.proving.prove_all(logging.getLogger(__name__))
        async with recording(run, plan.rows, print) as telemetry, asyncio.TaskGroup() as group:
            for chunk in plan.chunks:
                await run.annotator.turn(chunk)
                group.create_task(annotate_chunk(run, chunk))
        merged = await asyncio.to_thread(Merge(run.workspace, plan).finish)
        report = outcome(run, plan, merged, telemetry, seconds=time.monotonic() - begun, failed_chunks=[])
        write_page(run.workspace, run.files.image_root, report, telemetry_charts(telemetry))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
