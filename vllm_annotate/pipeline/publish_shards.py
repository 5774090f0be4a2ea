"""Finishes a sharded job: merge, report, publish."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.plan import POLARS_ERRORS
from vllm_annotate.job import Job
from vllm_annotate.pipeline.found_input import find_input
from vllm_annotate.report.page import write_page
from vllm_annotate.report.report import Report, read_report, write_report
from vllm_annotate.report.shard_reports import summarise_shards
from vllm_annotate.report.whole import with_whole
from vllm_annotate.results.merge_shards import merge_shards
from vllm_annotate.results.provenance import makers_in
from vllm_annotate.results.shard_files import shard_files
from vllm_annotate.storage.shortage import raise_limit
from vllm_annotate.storage.workspace import Workspace


def merge_and_publish(job: Job, unfinished: Sequence[str], warn: Callable[[str], None]) -> Report:
    """Merges the shards of a job's output, writes report.json and report.html; returns the report.

    `unfinished` names the shards that did not finish. Raises what `merge_shards` does, and OSError.
    """
    raise_limit()
    with TemporaryDirectory(prefix="vllm-annotate-") as folder, shard_files(job.output, warn) as files:
        found = find_input(job.model_copy(update={"caption_column": ""}), Path(folder))
        whole, *shards = (each.workspace for each in files)
        try:
            counts, merged = merge_shards(found.source, whole, shards)
        except POLARS_ERRORS as error:
            raise UsageError(
                f"{found.source.given} or {job.output} is truncated or corrupt ({error!s:.300}): restore it"
            ) from None
        for each in files:  # the output first: shards drop their answers once it has them
            each.publish()
        report = summarise_shards(counts, merged, shard_reports(shards), unfinished, makers_in(whole.report))
        report = with_whole(report, whole)
        write_report(whole.report, report)
        try:
            write_page(whole, found.images, report, [])
        except Exception as error:  # the output is complete: a missing page must not fail the run
            warn(f"could not write report.html: {error!r}")
        files[0].publish()
    return report


def shard_reports(shards: Sequence[Workspace]) -> Mapping[str, Report]:
    """The reports of the shards, by name; skips corrupt ones."""
    reports = {}
    for shard in shards:
        with suppress(UsageError):
            if (report := read_report(shard.report)) is not None:
                reports[shard.output.stem] = report
    return reports
