"""The files of a run: their paths, their lock and their format."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vllm_annotate.errors import UsageError
from vllm_annotate.storage.atomic import unfinished_name
from vllm_annotate.storage.disk_errors import disk_is_full, explained
from vllm_annotate.storage.lock import AlreadyLockedError, locked
from vllm_annotate.storage.output_checks import check_names, check_regular, check_replaceable
from vllm_annotate.storage.shard import Shard, shards_folder

FORMAT = 1  # of the work folder; raised when the meaning of its files changes
LOCK_TRIES = 10
COMPRESSED, ROWS = (".gz", ".zst"), (".jsonl", ".json")  # endings of an output that is read


@dataclass(frozen=True)
class Workspace:
    """Paths beside the output `labeled.jsonl`; `labeled.work/` is internal.

    A shard has its own workspace: its output is `labeled.shards/03-of-16.jsonl`, its `whole` is `labeled.jsonl`.
    """

    output: Path
    whole: Path | None = None

    @classmethod
    def at(cls, output: Path | str, shard: str = "") -> "Workspace":
        """Returns the workspace of `output`, or of a shard of it. Links are resolved: a file has one workspace.

        Raises UsageError for an invalid output or shard.
        """
        path = Path(os.path.realpath(Path(output).expanduser()))
        if path.suffix != ".jsonl":
            raise UsageError(f"output {str(output)!r} must end in .jsonl: the result has one JSON object per line")
        check_names(path)
        if path.name.endswith(".failures.jsonl"):
            raise UsageError(f"output {str(output)!r} is the name of a failures file: choose one without .failures")
        if path.is_dir():
            raise UsageError(f"output {str(output)!r} is a directory: name a file in it, such as {path}/labeled.jsonl")
        if not path.parent.is_dir():
            raise UsageError(f"the folder of output {str(output)!r} does not exist: create it, or correct the path")
        workspace = cls(path).of_shard(Shard.parse(shard)) if shard else cls(path)
        files = (workspace.output, workspace.failures, workspace.report, workspace.page)
        check_regular(*files, folder=workspace.work)
        return workspace

    @classmethod
    def of_file(cls, output: Path) -> "Workspace":
        """Returns the workspace of an output to read, which may be compressed. Links are resolved as by `at`."""
        path = Path(os.path.realpath(output.expanduser()))
        if path.suffix in COMPRESSED:
            path = path.with_suffix("")
        return cls(path.with_name(f"{path.stem if path.suffix in ROWS else path.name}.jsonl"))

    def of_shard(self, shard: Shard) -> "Workspace":
        """Returns the workspace of a shard of this output."""
        return Workspace(shards_folder(self.output) / f"{shard.name}.jsonl", whole=self.output)

    @property
    def outputs(self) -> list[Path]:
        """The files whose rows count as done."""
        return [self.output] if self.whole is None else [self.output, self.whole]

    def _beside(self, suffix: str) -> Path:
        return self.output.with_name(self.output.stem + suffix)

    @property
    def failures(self) -> Path:
        """Images without an answer, one per line."""
        return self._beside(".failures.jsonl")

    @property
    def report(self) -> Path:
        """The figures of the last run."""
        return self._beside(".report.json")

    @property
    def work(self) -> Path:
        """The work folder."""
        return self._beside(".work")

    @property
    def parts(self) -> Path:
        """Answers and failures of the chunks, until they are merged."""
        return self.work / "parts"

    @property
    def plan_rows(self) -> Path:
        """The rows of the plan in progress."""
        return self.work / "plan.parquet"

    @property
    def plan_file(self) -> Path:
        """The chunks of the plan in progress. Written last: without it there is no plan."""
        return self.work / "plan.json"

    @property
    def done_rows(self) -> Path:
        """The image paths of a large output."""
        return self.work / "done.parquet"

    @property
    def done_index(self) -> Path:
        """What `done_rows` holds, and of which version of the output."""
        return self.work / "done.json"

    @property
    def appends(self) -> Path:
        """What was appended to the output since the plan was made or opened."""
        return self.work / "appends.jsonl"

    @property
    def asked_failures(self) -> Path:
        """Failures of images that are asked again; without an answer they return to the failures file."""
        return self.work / "asked-failures.jsonl"

    @property
    def format(self) -> Path:
        """The number of the work folder's format."""
        return self.work / "format"

    @property
    def skipped(self) -> Path:
        """Skipped input lines, with line number and reason."""
        return self.work / "skipped.jsonl"

    @property
    def recipe(self) -> Path:
        """Fingerprint and settings of the recipe that wrote the output."""
        return self.work / "recipe.json"

    @property
    def job(self) -> Path:
        """The parameters of the last run, for later commands on the same output."""
        return self.work / "job.json"

    @property
    def numbers(self) -> Path:
        """The version of the input file, if its image paths are row numbers."""
        return self.work / "row-numbers.json"

    @property
    def set_aside(self) -> Path:
        """Failures that a retry by an earlier version moved here; the next merge moves them back."""
        return self.work / "set-aside.jsonl"

    @property
    def retried(self) -> Path:
        """The rows that a retry sends."""
        return self.work / "retried.jsonl"

    @property
    def torn(self) -> Path:
        """Incomplete last lines that other programs or killed runs left in outputs; moved here before an append."""
        return self.work / "torn.jsonl"

    @property
    def cache(self) -> Path:
        """Prefect's results of completed chunks."""
        return self.work / "cache"

    @property
    def logs(self) -> Path:
        """Logs of the servers that a run starts."""
        return self.work / "logs"

    @property
    def telemetry(self) -> Path:
        """Samples of GPUs, servers and the client, as Parquet files."""
        return self.work / "telemetry"

    @property
    def page(self) -> Path:
        """The report as an HTML page."""
        return self._beside(".report.html")

    @property
    def reviewed(self) -> Path:
        """Rows that people corrected."""
        return self._beside(".reviewed.jsonl")

    @property
    def audited(self) -> Path:
        """The agreement of each audited image."""
        return self._beside(".audit.jsonl")

    @property
    def asked_again(self) -> Path:
        """The folder with the other answers of an audit."""
        return self._beside(".audit")

    @property
    def sweep(self) -> Path:
        """The folder with the outputs of a sweep's variants."""
        return self._beside(".sweep")

    def figures(self, kind: str) -> tuple[Path, Path]:
        """JSON and page of an evaluation, a comparison, an audit or a sweep."""
        return self._beside(f".{kind}.json"), self._beside(f".{kind}.html")

    @property
    def pilot(self) -> "Workspace":
        """The pilot of this output, whose answers a run takes."""
        whole = self.whole or self.output
        return Workspace(whole.with_name(whole.stem + ".pilot.jsonl"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Creates the workspace and locks it. The kernel releases the lock however the process ends.

        Raises UsageError if another run holds it, if it cannot be written, or if a later version wrote it.
        """
        fresh = not self.work.exists()
        with self._lock():
            try:
                self.check_format()
                yield
            finally:
                # A refused run leaves nothing behind except the log of a server that did not start.
                if fresh and not self.recipe.exists() and not any(self.logs.glob("*")):
                    self._remove()
                    if self.whole is not None:
                        with suppress(OSError):  # other shards use it
                            self.output.parent.rmdir()

    def _remove(self) -> None:
        """Removes the work folder atomically: a run that starts meanwhile creates its own."""
        removed = self.work.with_name(f"{unfinished_name(self.work.name)}.{os.getpid()}")
        with suppress(OSError):
            self.work.rename(removed)
            shutil.rmtree(removed, ignore_errors=True)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with ExitStack() as held:
            try:
                self._enter_lock(held)
                check_replaceable(self.output)
            except AlreadyLockedError as holder:
                raise UsageError(
                    f"output {self.output} is being written by another run ({holder}); "
                    "wait for it, stop it, or choose another --output"
                ) from None
            except OSError as error:
                if disk_is_full(error):
                    raise UsageError(explained(error, self.work)) from None
                raise UsageError(
                    f"cannot write beside output {self.output}: {error.strerror or error} "
                    f"({error.filename or self.work}); choose an --output in a folder that this user may write to, "
                    "on a file system with locks"
                ) from None
            yield

    def _enter_lock(self, held: ExitStack) -> None:
        for tries_left in reversed(range(LOCK_TRIES)):
            try:
                self.parts.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(self.work / "lock"))
            except FileNotFoundError:  # a refused run is removing the folder
                if not tries_left:
                    raise
            else:
                return

    def check_format(self) -> None:
        """Raises UsageError if a later version wrote the work folder."""
        try:
            written = self.format.read_text(errors="replace").strip()
        except FileNotFoundError:  # earlier versions did not write it: format 1
            return
        if not (len(written) < 9 and written.isascii() and written.isdecimal() and int(written) <= FORMAT):
            raise UsageError(
                f"{self.work} has format {written[:20]!r}, but this version supports formats up to {FORMAT}: use the "
                "version that wrote it, or choose another --output"
            )
