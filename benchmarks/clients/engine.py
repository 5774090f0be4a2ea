"""The flow's engine without Prefect: the same plan, annotator, telemetry, merge and page; no tasks or artifacts.

`python -m benchmarks.clients.engine INPUT IMAGES OUTPUT URL IN_FLIGHT`.
"""

import asyncio
import logging
import sys
import time
from functools import partial

from vllm_annotate.job import Job
from vllm_annotate.pipeline.one_input import OneInput
from vllm_annotate.pipeline.outcome import outcome
from vllm_annotate.pipeline.recording import recording
from vllm_annotate.pipeline.session import open_run, plan_or_resume
from vllm_annotate.pipeline.without_prefect import run_chunk
from vllm_annotate.report.figures import telemetry_charts
from vllm_annotate.report.page import write_page
from vllm_annotate.serving.settings import Server


async def main(source: str, images: str, output: str, url: str, in_flight: str) -> None:
    """Annotates every row."""
    begun = time.monotonic()
    server = Server(endpoints=[f"{url}/v1"])
    job = Job(input=source, image_root=images, output=output, server=server, max_concurrency=int(in_flight))
    async with open_run(job) as run:
        work = OneInput(run, await asyncio.to_thread(plan_or_resume, run))
        await run.proving.prove_all(logging.getLogger(__name__))
        async with recording(run, work, print) as telemetry:
            await work.annotate(lambda run, _: partial(run_chunk, run, logging.getLogger(__name__)))
        merged = await work.finish(logging.getLogger(__name__))
        report = outcome(run, work, merged, telemetry, seconds=time.monotonic() - begun)
        write_page(run.workspace, run.files.image_root, report, telemetry_charts(telemetry))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
