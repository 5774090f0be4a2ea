"""Finishes a sharded job: merge, report, publish."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.plan import POLARS_ERRORS
from vllm_annotate.job import Job
from vllm_annotate.pipeline.files import input_files, several_images
from vllm_annotate.pipeline.found_input import find_input
from vllm_annotate.report.page import write_page
from vllm_annotate.report.report import InputFiles, Report, read_report, write_report
from vllm_annotate.report.shard_reports import summarise_shards
from vllm_annotate.report.whole import with_whole
from vllm_annotate.results.files import Files
from vllm_annotate.results.merge_folder import merge_folder
from vllm_annotate.results.merge_shards import merge_shards
from vllm_annotate.results.provenance import makers_in
from vllm_annotate.results.shard_files import shard_files
from vllm_annotate.storage.image_roots import ImageRoot
from vllm_annotate.storage.shortage import raise_limit
from vllm_annotate.storage.workspace import Workspace


def merge_and_publish(job: Job, unfinished: Sequence[str], warn: Callable[[str], None]) -> Report:
    """Merges the shards of a job's output, writes report.json and report.html; returns the report.

    `unfinished` names the shards that did not finish. Raises what `merge_shards` does, and OSError.
    """
    raise_limit()
    with TemporaryDirectory(prefix="vllm-annotate-") as folder, shard_files(job.output, warn) as files:
        whole = files[0].workspace
        if whole.is_folder:
            report, images = _merged_folder(job, files, unfinished)
        else:
            report, images = _merged_file(job, files, unfinished, Path(folder))
        report = with_whole(report, files[0])
        write_report(whole.report, report)
        try:
            write_page(whole, images, report, [])
        except Exception as error:  # the output is complete: a missing page must not fail the run
            warn(f"could not write report.html: {error!r}")
        files[0].publish()
    return report


def _merged_file(job: Job, files: Sequence[Files], unfinished: Sequence[str], folder: Path) -> tuple[Report, ImageRoot]:
    found = find_input(job, folder)
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
    return report, found.images


def _merged_folder(job: Job, files: Sequence[Files], unfinished: Sequence[str]) -> tuple[Report, ImageRoot]:
    whole, *shards = (each.workspace for each in files)
    inputs, makers, reports = input_files(job), makers_in(whole.report), shard_reports(shards)
    counts, merged, finished = merge_folder(inputs, files[0], shards)
    last = [report.last.images for report in reports.values()]
    answered = sum(images.answered for images in last)  # of shards of another count too, if there are any
    merged.answered = min(answered, counts.distinct - merged.failures.total())
    merged.annotations_error = sum(images.annotations_error for images in last)
    told = {name: why for report in reports.values() for name, why in (report.files or NO_FILES).failed.items()}
    open_ones = {file.name for file in inputs.files} - set(finished)
    failed = {name: why for name, why in told.items() if name in open_ones}
    left = len(open_ones) - len(failed)
    came = InputFiles(inputs=len(inputs.files), finished=len(finished), failed=failed, not_begun=left)
    report = summarise_shards(counts, merged, reports, unfinished, makers)
    done = counts.distinct - merged.answered - merged.failures.total()
    images = report.images.model_copy(update={"already_done": max(0, done)})
    return report.model_copy(update={"files": came, "images": images}), several_images(job, inputs)


NO_FILES = InputFiles(inputs=0, finished=0)


def shard_reports(shards: Sequence[Workspace]) -> Mapping[str, Report]:
    """The reports of the shards, by name; skips corrupt ones."""
    reports = {}
    for shard in shards:
        with suppress(UsageError):
            if (report := read_report(shard.report)) is not None:
                reports[shard.output.stem] = report
    return reports
