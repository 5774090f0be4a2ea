"""`vllm-annotate merge-shards`: merges shards that were run without the flow annotate-sharded.

Exit codes: 0 every image is answered; 1 some failed, or their shards have not finished; 2 refused, nothing
changed.
"""

from collections.abc import Mapping
from typing import Any

from cyclopts import App

from vllm_annotate.cli.console import Console
from vllm_annotate.cli.interrupts import Interrupts
from vllm_annotate.cli.jobs import fields_after_run, job_of
from vllm_annotate.cli.options import command, fields
from vllm_annotate.job import Job, remembered_job
from vllm_annotate.storage.locations import location

OPTIONS = ("output", "input", "image_root", "image_column")


def app() -> App:
    """The command's options."""
    text = "Merge the shards of an output, in the order of the input. Only --output is required."
    given = {each.name: each for each in fields(Job, but=("server", "recipe"))}
    return command("merge-shards", text, [given[name] for name in OPTIONS])


def run(given: Mapping[str, Any], console: Console, _interrupts: Interrupts) -> int:
    """Merges the shards; returns the exit code."""
    from vllm_annotate.pipeline.files import check_distinct
    from vllm_annotate.pipeline.publish_shards import merge_and_publish
    from vllm_annotate.report.summary import sentence

    found = fields_after_run(given, (*OPTIONS, "caption_column"))
    if not remembered_job(location(found["output"])):  # the input may have no column of the default name
        found.setdefault("caption_column", "")
    job = job_of(found)
    check_distinct(job.input, job.output)
    report = merge_and_publish(job, [], console.say)
    console.show(sentence(report))
    return 0 if report.is_complete else 1


def interrupted(_: Mapping[str, Any]) -> str:
    """The state after an interrupt."""
    return "no answer is lost; run the same command again to resume"
