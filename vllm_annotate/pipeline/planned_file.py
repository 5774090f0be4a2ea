"""One input file of several: its plan, and the run of it alone."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.listing import InputFile
from vllm_annotate.inputs.parquet_images import ParquetImages
from vllm_annotate.inputs.plan_file import Plan
from vllm_annotate.inputs.selection import Selection
from vllm_annotate.pipeline.files import RunFiles, warn_about
from vllm_annotate.pipeline.found_input import FoundInput, find_input
from vllm_annotate.pipeline.session import Run, plan_or_resume
from vllm_annotate.results.finished import Finished
from vllm_annotate.results.publishing import settle_growing
from vllm_annotate.storage.file_states import Version
from vllm_annotate.storage.workspace import Workspace


@dataclass(frozen=True)
class PlannedFile:
    """An input file with its plan."""

    file: InputFile
    run: Run
    plan: Plan
    release: Callable[[], None] = lambda: None  # its lock

    @property
    def workspace(self) -> Workspace:
        """Its files."""
        return self.run.workspace

    @property
    def version(self) -> Version:
        """The version whose rows were read, as far as that is known."""
        source = self.run.source
        return self.file.version if source.origin is None else source.origin_version

    def remove_copy(self) -> None:
        """Removes the copy of a file from an object store: a corpus may be larger than this disk."""
        source = self.run.source
        copy = source.path if source.origin is None else getattr(self.run.files.image_root, "path", None)
        if isinstance(self.file.where, str) and copy is not None:
            for path in (copy, copy.with_name(f"{copy.name}.version")):
                path.unlink(missing_ok=True)


def plan_file(
    run: Run,
    file: InputFile,
    limit: int,
    entry: Finished | None,
    stopped: threading.Event,
    warn: Callable[[str], None],
    *,
    prefixed: bool,
) -> PlannedFile:
    """Plans an input file, or resumes it. `entry` is of the time when it was finished; `prefixed` as in `find_input`.

    Locks it, as another run may be at work on other files of this output. Raises UsageError if one has this file, or
    if it cannot be read. Setting `stopped` ends it.
    """
    with ExitStack() as held:
        held.enter_context(run.workspace.of_input(file.name, file.output_name).claimed(file.name))
        output = run.files.output.of_input(file)
        workspace = output.workspace
        settle_growing(workspace)
        job = run.job.model_copy(update={"input": file.where, "limit": limit, "shard": ""})
        found = find_input(job, workspace.work, stopped=stopped, name=file.name, prefixed=prefixed)
        if entry is not None and workspace.final is not None and workspace.final.exists():
            check_numbers(file, found, entry, workspace)
        warn_about(found, job, warn)
        source = replace(found.source, selection=Selection(limit, file.sample, run.job.sample_seed))
        files = RunFiles(source, found.images, output, run.files.warn, name=file.name)
        alone = replace(run, job=job, files=files)
        planned = PlannedFile(file, alone, plan_or_resume(alone), held.pop_all().close)
        run.files.held.callback(planned.release)  # a run may end before the file is finished
        return planned


def check_numbers(file: InputFile, found: FoundInput, entry: Finished, workspace: Workspace) -> None:
    """Raises UsageError if image paths in the output are row numbers of another version of the file."""
    images = found.images
    if not isinstance(images, ParquetImages) or not images.is_numbered:
        return
    if entry.version != images.version and entry.content != images.content:
        raise UsageError(
            f"{file.where} has changed, and its rows are known by their numbers, which may be those of other images "
            f"now: restore it, or move {workspace.final} away to annotate it again"
        )
