"""The work of a run over several input files, whose output is a folder."""

import asyncio
import threading
from collections import deque
from contextlib import suppress
from dataclasses import replace
from threading import Lock

from vllm_annotate.errors import EmptyInput, ServerFault, UsageError
from vllm_annotate.inputs.done_index import count_lines
from vllm_annotate.inputs.input_images import InputImages
from vllm_annotate.inputs.listing import InputFile
from vllm_annotate.inputs.plan import input_has_changed, keep_plan, remove_plan
from vllm_annotate.inputs.plan_file import Counts
from vllm_annotate.pipeline.annotating import Fatal, Logger, MakeRunner, start_chunks
from vllm_annotate.pipeline.planned_file import PlannedFile, plan_file
from vllm_annotate.pipeline.session import Run, record_run
from vllm_annotate.report.report import InputFiles
from vllm_annotate.results.common_folder import agree_on_folder
from vllm_annotate.results.finished import Finished, compact, is_current, not_given, note_finished, read_finished
from vllm_annotate.results.merge import Merge
from vllm_annotate.results.merged import Merged
from vllm_annotate.results.publishing import compose_failures, publish, remove_leftovers, remove_state
from vllm_annotate.storage.disk_errors import stops_the_run
from vllm_annotate.storage.workspace import Workspace
from vllm_annotate.threads import run_to_end

HOPELESS = 10  # files that cannot be read, the first ones: a setting is wrong, and the others will fail too
AT_ONCE = 2  # files that are planned at the same time: most of a plan uses one core


class ManyInputs:
    """Input files in the order of their names.

    The next ones are planned while one is annotated, so that the servers always have work. Each is finished on its own.
    """

    def __init__(self, run: Run, logger: Logger) -> None:
        assert run.files.inputs is not None  # noqa: S101 - for the type checker
        self.counts = Counts()
        self._run, self._logger = run, logger
        self._workspace = run.workspace
        self._inputs = run.files.inputs
        self._all = self._inputs.files
        self._output = run.files.output
        self._entries = read_finished(run.workspace, self._output.output_version)
        self._states = {state.name for state in run.workspace.states.glob("*")}
        self._finished = 0
        self._todo = deque[InputFile]()
        for file in self._all:
            if self._is_current(file):
                self._pass_over(file)
            elif file.sample or not run.job.sample:
                self._todo.append(file)
        self._left = run.job.limit  # images that may still be selected
        self._bytes = sum(file.size for file in self._todo)
        self._planned_bytes = self._planned_rows = 0
        self._planning = deque[asyncio.Task[PlannedFile | None]]()
        self._first: PlannedFile | None = None
        self._merged, self._lock = Merged(), Lock()
        self._stopped: dict[str, list[int]] = {}  # file → chunks
        self._failed: dict[str, str] = {}  # file → why it could not be read
        self._stopping = threading.Event()
        self._at_once = 1
        self._said: set[str] = set()
        self._prefixed = True  # own paths of Parquet rows

    def _is_current(self, file: InputFile) -> bool:
        entry, output = self._entries.get(file.name), self._output.output_version(file.output_name)
        if self._run.job.selects or not is_current(entry, file, output, self._run.job.columns):
            return False
        workspace = self._of(file)
        return workspace.work.name not in self._states or not any(workspace.parts.glob("*"))

    def _pass_over(self, file: InputFile) -> None:
        """Counts a file that is finished, and removes what a kill left of its state."""
        workspace, counts = self._of(file), self._entries[file.name].counts
        if workspace.work.name in self._states:
            with suppress(UsageError), workspace.claimed(file.name):
                remove_plan(workspace)
                workspace.failures.unlink(missing_ok=True)  # of a run whose output another one's was there before
                remove_state(workspace)
        self._output.tidy(file)
        self._finished += 1
        self.counts = self.counts.plus(replace(counts, already_done=counts.distinct, taken=0))

    @property
    def rows(self) -> int:
        """How many images it asks for: those of planned files, and an estimate for the others by their sizes."""
        if not self._planned_bytes:
            return self._planned_rows
        others = self._planned_rows * (self._bytes - self._planned_bytes) / self._planned_bytes
        return self._planned_rows + round(min(others, self._left) if self._run.job.limit else others)

    @property
    def not_selected(self) -> int:
        """How many images are not selected, those of files that were not drawn for a sample by their sizes."""
        found = self.counts.distinct + self.counts.not_selected
        return round(found * self._inputs.bytes_for_drawn_one(self._failed)) - self.counts.distinct

    @property
    def failed_chunks(self) -> list[str]:
        """The names of the chunks that stopped early."""
        return [f"chunk {number} of {name}" for name, numbers in self._stopped.items() for number in numbers]

    @property
    def files(self) -> InputFiles:
        """What came of the files."""
        job, count = self._run.job, len(self._all)
        left = count - self._finished - len(self._failed) - len(self._stopped)
        not_begun = 0 if job.sample or (job.limit and not self._left) else left
        return InputFiles(inputs=count, finished=self._finished, failed=self._failed, not_begun=not_begun)

    async def plan(self) -> None:
        """Plans until the first file that has an open image, and finishes those before it.

        Raises UsageError if the names of the files are others than before.
        """
        self._prefixed = agree_on_folder(self._workspace, self._inputs.folder)
        record_run(self._run, images_are_inside=isinstance(self._run.files.image_root, InputImages))
        remove_leftovers(self._workspace)
        todo = len(self._todo)
        self._logger.info("%d input files: %d are finished, %d to do", len(self._all), self._finished, todo)
        self._first = await self._next_open()

    async def annotate(self, make_runner: MakeRunner) -> None:
        """Runs all chunks of all files; see `Work`."""
        fatal, planned = Fatal(), self._first
        self._at_once = 1 if self._run.job.limit else AT_ONCE  # which of a file are selected depends on those before
        begun = {file.name for file in self._todo} | ({planned.file.name} if planned else set())
        # An image that is asked again is in no failures file meanwhile.
        await run_to_end(self._compose, [file for file in self._all if file.name not in begun])
        await run_to_end(self._output.keep_failures)
        try:
            async with asyncio.TaskGroup() as group:
                while planned is not None:
                    self._plan_ahead()
                    self._begin(planned)
                    merge = await run_to_end(self._merge_of, planned)
                    runner = make_runner(planned.run, planned.plan)
                    tasks = await start_chunks(planned.run, merge, runner, group, fatal)
                    group.create_task(self._finish_after(tasks, planned, merge, fatal))
                    planned = None if fatal.error else await self._next_open()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._stopping.set()
            await asyncio.gather(*self._planning, return_exceptions=True)
            await run_to_end(self._compose, self._all)
        fatal.raise_it()

    def _begin(self, planned: PlannedFile) -> None:
        with self._lock:
            self.counts = self.counts.plus(planned.plan.counts)

    def _merge_of(self, planned: PlannedFile) -> Merge:
        grows = planned.run.files.output.grows
        return Merge(planned.workspace, planned.plan, grows=grows, warn=self._run.files.warn)

    async def finish(self, logger: Logger) -> Merged:  # noqa: ARG002 - as that of one input
        """Returns what came of all files, each of which is finished."""
        compact(self._workspace)
        return self._merged

    def _compose(self, files: list[InputFile]) -> None:
        states, given = [self._of(file) for file in files], {file.name for file in self._all}
        compose_failures(self._workspace, states + not_given(self._workspace, self._entries, given, self._inputs.has))

    def _of(self, file: InputFile) -> Workspace:
        return self._workspace.of_input(file.name, file.output_name)

    async def _next_open(self) -> PlannedFile | None:
        """The next file with an open image; those without one are finished at once."""
        while self._plan_ahead():
            planned = await self._planning.popleft()
            if len(self._failed) >= HOPELESS and not (self._planned_bytes or self._finished):
                why = next(iter(self._failed.values()))
                raise UsageError(f"none of the first {HOPELESS} input files can be read: {why}")
            if planned is not None and not planned.plan.rows:
                self._begin(planned)
                await self._finished_now(planned)
                planned = None
            if planned is not None:
                return planned
        return None

    def _plan_ahead(self) -> bool:
        """Starts to plan the next files; returns whether any is being planned."""
        while self._todo and len(self._planning) < self._at_once and not (self._run.job.limit and not self._left):
            planning = run_to_end(self._plan, self._todo.popleft(), give_up=self._stopping.set)
            self._planning.append(asyncio.create_task(planning))
        return bool(self._planning)

    async def _finished_now(self, planned: PlannedFile) -> None:
        try:
            await run_to_end(self._finish, planned, await run_to_end(self._merge_of, planned))
        except UsageError as error:
            self._fail(planned.file, error)

    def _warn_once(self, message: str) -> None:
        """What is true of one file is mostly true of all."""
        if message not in self._said:
            self._said.add(message)
            self._run.files.warn(message)

    def _plan(self, file: InputFile) -> PlannedFile | None:
        """Plans a file, or resumes it; returns None if it cannot be read."""
        try:
            planned = plan_file(
                self._run, file, self._left, self._entries.get(file.name), self._stopping, self._warn_once,
                prefixed=self._prefixed,
            )  # fmt: skip
        except (UsageError, OSError) as error:
            if self._stopping.is_set():
                return None
            for each in (error, error.__context__):  # a full disk is no fault of the file
                if isinstance(each, OSError) and stops_the_run(each):
                    raise each from None
            if isinstance(error, EmptyInput):
                self._pass_over_empty(file, error)
            else:
                self._fail(file, error)
            with self._lock:
                self._bytes -= file.size
            return None
        rows, found = planned.plan.rows, planned.plan.counts.distinct
        with self._lock:
            self._left -= min(self._left, found)
            self._planned_bytes, self._planned_rows = self._planned_bytes + file.size, self._planned_rows + rows
        self._logger.info("%s: %d of %d images are open", file.name, rows, found)
        return planned

    def _pass_over_empty(self, file: InputFile, why: EmptyInput) -> None:
        """Takes a file without images for finished: a tar whose downloads all failed is no fault of the run."""
        self._run.files.warn(str(why))
        output = self._output.output_version(file.output_name)
        entry = Finished(file.name, file.version, output, self._run.job.columns, {}, Counts(), 0)
        with self._lock:
            note_finished(self._workspace, entry)
            self._entries[file.name] = entry
            self._finished += 1
        remove_state(self._of(file))

    def _fail(self, file: InputFile, error: BaseException) -> None:
        self._failed[file.name] = str(error)
        self._logger.error("%s: %s", file.name, error)

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
            self._fail(planned.file, error)
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
        workspace = publish(run.workspace, merge.plan.outputs)
        planned.run.files.output.publish()
        failures = dict(merged.failures) | ({"left alone": merged.left_alone} if merged.left_alone else {})
        entry = Finished(
            file.name, planned.version, self._output.output_version(file.output_name), run.job.columns,
            {"limit": run.job.limit, "sample": file.sample}, plan.counts, count_lines(workspace), failures,
            getattr(planned.run.files.image_root, "content", ""),
        )  # fmt: skip
        with self._lock:
            note_finished(self._workspace, entry)
            self._entries[file.name] = entry
            self._finished += 1
        remove_plan(workspace)
        remove_state(workspace)
        planned.release()
        planned.remove_copy()
        self._output.keep_entries()


async def plan_many(run: Run, logger: Logger) -> ManyInputs:
    """Lists what is finished, and plans the first file that is not."""
    work = await run_to_end(ManyInputs, run, logger)
    await work.plan()
    return work
