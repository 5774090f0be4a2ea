"""Shards of an output that is a folder: each file is at its place already, so a merge only looks."""

from collections.abc import Sequence
from dataclasses import replace

from vllm_annotate.inputs.listing import Inputs
from vllm_annotate.inputs.plan_file import Counts
from vllm_annotate.results.files import Files
from vllm_annotate.results.finished import Finished, is_finished, read_finished, write_finished
from vllm_annotate.results.merge_shards import locked_together
from vllm_annotate.results.merged import Merged
from vllm_annotate.results.publishing import compose_failures
from vllm_annotate.storage.workspace import Workspace


def merge_folder(inputs: Inputs, files: Files, shards: Sequence[Workspace]) -> tuple[Counts, Merged, list[str]]:
    """Gathers entries and failures of all input files; returns their counts, and the names of those finished.

    Raises UsageError if a run is at work on the output or a shard, or if recipes differ.
    """
    whole = files.workspace
    with locked_together(whole, shards):
        entries = read_finished(whole, files.output_version)
        write_finished(whole, entries)
        compose_failures(whole, (whole.of_input(file.name, file.output_name) for file in inputs.files))
    finished = [
        entry
        for file in inputs.files
        if (entry := entries.get(file.name)) is not None
        and is_finished(entry, file, files.output_version(file.output_name))
    ]
    return *_counted(finished), [entry.name for entry in finished]


def _counted(entries: Sequence[Finished]) -> tuple[Counts, Merged]:
    counts, merged = Counts(), Merged()
    for entry in entries:
        counts = counts.plus(replace(entry.counts, taken=0))
        merged.failures.update(entry.failures)
    return counts, merged
