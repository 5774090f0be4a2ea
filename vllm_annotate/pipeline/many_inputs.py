"""The work of a run over several input files, whose output is a folder."""

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from threading import Lock

from vllm_annotate.errors import ServerFault, UsageError
from vllm_annotate.inputs.done_index import count_lines
from vllm_annotate.inputs.input_images import InputImages
from vllm_annotate.inputs.listing import InputFile
from vllm_annotate.inputs.plan import input_has_changed, keep_plan, remove_plan
from vllm_annotate.inputs.plan_file import Counts, Plan
from vllm_annotate.inputs.selection import Selection
from vllm_annotate.pipeline.annotating import Fatal, Logger, MakeRunner, start_chunks
from vllm_annotate.pipeline.files import warn_about
from vllm_annotate.pipeline.found_input import FoundInput, find_input
from vllm_annotate.pipeline.session import Run, plan_or_resume, record_run
from vllm_annotate.report.report import InputFiles
from vllm_annotate.results.files import Files
from vllm_annotate.results.finished import Finished, compact, is_current, note_finished, read_finished
from vllm_annotate.results.merge import Merge
from vllm_annotate.results.merged import Merged
from vllm_annotate.results.publishing import compose_failures, publish, remove_state
from vllm_annotate.storage.atomic import replacing
from vllm_annotate.storage.file_states import file_version
from vllm_annotate.storage.workspace import Workspace
from vllm_annotate.threads import run_to_end


@dataclass(frozen=True)
class PlannedFile:
    """An input file with its plan, and the run of it alone."""

    file: InputFile
    run: Run
    plan: Plan


class ManyInputs:
    """Input files in the order of their names.

    The next one is planned while one is annotated, so that the servers always have work. Each is finished on its own.
    """

    def __init__(self, run: Run, logger: Logger) -> None:
        assert run.files.inputs is not None  # noqa: S101 - for the type checker
        self.counts = Counts()
        self._run, self._logger = run, logger
        self._workspace = run.workspace
        self._all = run.files.inputs.files
        self._entries = read_finished(run.workspace)
        self._columns = {"image": run.job.image_column, "caption": run.job.caption_column}
        self._selected = {"limit": run.job.limit}
        self._states = {state.name for state in run.workspace.states.glob("*")}
        self._todo = deque(file for file in self._all if not self._is_current(file))
        self._left = run.job.limit  # images that may still be selected
        self._bytes = sum(file.size for file in self._todo)
        self._planned_bytes = self._planned_rows = 0
        self._following: asyncio.Task[PlannedFile | None] | None = None
        self._first: PlannedFile | None = None
        self._merged, self._lock = Merged(), Lock()
        self._stopped: dict[str, list[int]] = {}  # file → chunks
        self._failed: dict[str, str] = {}  # file → why it could not be read
        self._finished = len(self._all) - len(self._todo)
        self._not_begun = 0
        self._said: set[str] = set()

    def _is_current(self, file: InputFile) -> bool:
        entry = self._entries.get(file.name)
        like = {"columns": self._columns, "selected": self._selected}
        if self._selected["limit"] or not is_current(entry, file, self._workspace, like):
            return False
        assert entry is not None  # noqa: S101 - for the type checker
        if (workspace := self._of(file)).work.name in self._states:  # a kill came before it was removed
            remove_plan(workspace)
            remove_state(workspace)
        self.counts = self.counts.plus(replace(entry.counts, already_done=entry.counts.distinct, taken=0))
        return True

    @property
    def rows(self) -> int:
        """How many images it asks for: those of planned files, and an estimate for the others by their sizes."""
        if not self._planned_bytes:
            return self._planned_rows
        others = self._planned_rows * (self._bytes - self._planned_bytes) / self._planned_bytes
        return self._planned_rows + round(min(others, self._left) if self._run.job.limit else others)

    @property
    def failed_chunks(self) -> list[str]:
        """The names of the chunks that stopped early."""
        return [f"chunk {number} of {name}" for name, numbers in self._stopped.items() for number in numbers]

    @property
    def files(self) -> InputFiles:
        """What came of the files."""
        return InputFiles(
            inputs=len(self._all), finished=self._finished, failed=self._failed, not_begun=self._not_begun
        )

    async def plan(self) -> None:
        """Plans until the first file that has an open image, and finishes those before it.

        Raises UsageError if the names of the files are others than before.
        """
        self._check_folder()
        record_run(self._run, images_are_inside=isinstance(self._run.files.image_root, InputImages))
        todo = {file.name for file in self._todo}
        # An image that is asked again is in no failures file meanwhile.
        await run_to_end(self._compose, [file for file in self._all if file.name not in todo])
        self._logger.info("%d input files: %d are finished, %d to do", len(self._all), self._finished, len(todo))
        self._first = await self._next_open()

    def _check_folder(self) -> None:
        """Raises UsageError if the input files lay in a folder above or below: with other names, all would be new."""
        assert self._run.files.inputs is not None  # noqa: S101 - for the type checker
        path, folder = self._workspace.common_folder, self._run.files.inputs.folder
        before = path.read_text() if path.exists() else folder
        if before != folder and (before.startswith(folder) or folder.startswith(before)):
            raise UsageError(
                f"the names of the input files began below {before} before, and begin below {folder} now, so all would "
                f"be annotated again: give the folder {before} as the input, or choose another --output"
            )
        with replacing(path) as file:
            file.write(folder.encode())

    async def annotate(self, make_runner: MakeRunner) -> None:
        """Runs all chunks of all files; see `Work`."""
        fatal, planned = Fatal(), self._first
        try:
            async with asyncio.TaskGroup() as group:
                while planned is not None:
                    merge = Merge(planned.run.workspace, planned.plan, warn=self._run.files.warn)
                    runner = make_runner(planned.run, planned.plan)
                    tasks = await start_chunks(planned.run, merge, runner, group, fatal)
                    group.create_task(self._finish_after(tasks, planned, merge, fatal))
                    planned = None if fatal.error else await self._next_open()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            if self._following is not None:
                await asyncio.gather(self._following, return_exceptions=True)
        fatal.raised()
        if fatal.error is not None:
            self._not_begun = len(self._todo) + (self._following is not None)

    async def finish(self, logger: Logger) -> Merged:  # noqa: ARG002 - as that of one input
        """Writes the failures file of the whole."""
        await run_to_end(self._compose, self._all)
        compact(self._workspace, self._entries)
        return self._merged

    def _compose(self, files: list[InputFile]) -> None:
        compose_failures(self._workspace, (self._of(file) for file in files))

    def _of(self, file: InputFile) -> Workspace:
        return self._workspace.of_input(file.name, file.output_name)

    async def _next_open(self) -> PlannedFile | None:
        """The next file with an open image; those without one are finished at once."""
        while (planning := self._following or self._plan_next()) is not None:
            self._following = None
            planned = await planning
            if planned is not None and not planned.plan.rows:
                await self._finish_after([], planned, Merge(planned.run.workspace, planned.plan), Fatal())
                planned = None
            self._following = self._plan_next()
            if planned is not None:
                return planned
        return None

    def _plan_next(self) -> "asyncio.Task[PlannedFile | None] | None":
        if not self._todo or (self._run.job.limit and not self._left):
            return None
        return asyncio.create_task(run_to_end(self._plan, self._todo.popleft()))

    def _check_numbers(self, file: InputFile, found: FoundInput) -> None:
        """Raises UsageError if image paths are row numbers of another version of the file."""
        entry = self._entries.get(file.name)
        if entry is not None and entry.version != file.version and getattr(found.images, "is_numbered", False):
            raise UsageError(
                f"{file.where} has changed, and its rows are known by their numbers, which may be those of other "
                f"images now: restore it, or move {self._workspace.output / file.output_name} away to annotate it again"
            )

    def _warn_once(self, message: str) -> None:
        """What is true of one file is mostly true of all."""
        if message not in self._said:
            self._said.add(message)
            self._run.files.warn(message)

    def _plan(self, file: InputFile) -> PlannedFile | None:
        """Plans a file, or resumes it; returns None if it cannot be read."""
        workspace = self._of(file)
        workspace.parts.mkdir(parents=True, exist_ok=True)
        job = self._run.job.model_copy(update={"input": file.where, "limit": self._left})
        try:
            found = find_input(job, workspace.work, name=file.name)
            self._check_numbers(file, found)
            warn_about(found, job, self._warn_once)
            source = replace(found.source, selection=Selection(limit=self._left))
            files = replace(
                self._run.files,
                source=source,
                image_root=found.images,
                output=Files(workspace),
                inputs=None,
                name=file.name,
            )
            run = replace(self._run, job=job, files=files)
            plan = plan_or_resume(run)
        except UsageError as error:
            self._failed[file.name] = str(error)
            self._logger.error("%s: %s", file.name, error)  # noqa: TRY400
            return None
        counts = plan.counts
        self._left -= min(self._left, counts.distinct)
        self._planned_bytes, self._planned_rows = self._planned_bytes + file.size, self._planned_rows + plan.rows
        with self._lock:
            self.counts = self.counts.plus(counts)
        self._logger.info("%s: %d of %d images are open", file.name, plan.rows, counts.distinct)
        return PlannedFile(file, run, plan)

    async def _finish_after(
        self, chunks: "list[asyncio.Task[None]]", planned: PlannedFile, merge: Merge, fatal: Fatal
    ) -> None:
        if chunks:
            await asyncio.wait(chunks)
        if fatal.error is not None and not isinstance(fatal.error, ServerFault):
            return
        try:
            await run_to_end(self._finish, planned, merge)
        except UsageError as error:
            self._failed[planned.file.name] = str(error)
        except OSError as error:
            fatal.error = fatal.error or error

    def _finish(self, planned: PlannedFile, merge: Merge) -> None:
        """Finishes a file: its answers appear at their place at once, then an entry says so, then its state goes."""
        file, run, plan = planned.file, planned.run, planned.plan
        merged = merge.finish()
        with self._lock:
            self._merged.add_all(merged)
        if merge.stopped:
            keep_plan(run.workspace, run.source, merge.plan)
            self._stopped[file.name] = sorted(merge.stopped)
            return
        if input_has_changed(run.workspace, run.source):
            self._run.files.warn(f"{file.name} has changed since this run planned it: run again")
        workspace = publish(run.workspace)
        failures = dict(merged.failures) | ({"left alone": merged.left_alone} if merged.left_alone else {})
        entry = Finished(
            file.name, file.version, file_version(workspace.output), self._columns, {"limit": run.job.limit},
            plan.counts, count_lines(workspace), failures,
        )  # fmt: skip
        with self._lock:
            note_finished(self._workspace, entry)
            self._entries[file.name] = entry
            self._finished += 1
        remove_plan(workspace)
        remove_state(workspace)


async def plan_many(run: Run, logger: Logger) -> ManyInputs:
    """Lists what is finished, and plans the first file that is not."""
    work = ManyInputs(run, logger)
    await work.plan()
    return work
