"""The files of a run: where they lie, who may write them, and with which recipe."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vllm_annotate.errors import UsageError
from vllm_annotate.storage.atomic import disk_is_full, explained, unfinished_name
from vllm_annotate.storage.lock import AlreadyLockedError, locked
from vllm_annotate.storage.shard import Shard, shards_folder

FORMAT = 1  # of the work folder; a later version that changes the meaning of its files counts it up
LOCK_TRIES = 10
MAX_PATH_BYTES, DEEPEST_BYTES = 4096, 128  # of a path, and of what the work folder adds to one


@dataclass(frozen=True)
class Workspace:
    """Paths beside the output `labeled.jsonl`; `labeled.work/` holds what only the project reads.

    A shard has a workspace of its own, `labeled.shards/03-of-16.jsonl` and so on; `whole` is then `labeled.jsonl`.
    """

    output: Path
    whole: Path | None = None

    @classmethod
    def at(cls, output: Path | str, shard: str = "") -> "Workspace":
        """The workspace of `output`, or of a shard of it, by its real path: two spellings of a file are one workspace.

        Raises UsageError for a name that no output can have, and for what is no shard.
        """
        path = Path(os.path.realpath(Path(output).expanduser()))
        if path.suffix != ".jsonl":
            raise UsageError(f"output {str(output)!r} must end in .jsonl: the result is one JSON object a line")
        _check_names(path)
        if path.name.endswith(".failures.jsonl"):
            raise UsageError(f"output {str(output)!r} is the name of a failures file: choose one without .failures")
        if path.is_dir():
            raise UsageError(f"output {str(output)!r} is a directory: name a file in it, such as {path}/labeled.jsonl")
        if not path.parent.is_dir():
            raise UsageError(f"the folder of output {str(output)!r} does not exist: make it, or mend the path")
        return cls(path).of_shard(Shard.parse(shard)) if shard else cls(path)

    def of_shard(self, shard: Shard) -> "Workspace":
        """The workspace of a share of this output."""
        return Workspace(shards_folder(self.output) / f"{shard.name}.jsonl", whole=self.output)

    @property
    def outputs(self) -> list[Path]:
        """The files whose rows are done."""
        return [self.output] if self.whole is None else [self.output, self.whole]

    def _beside(self, suffix: str) -> Path:
        return self.output.with_name(self.output.stem + suffix)

    @property
    def failures(self) -> Path:
        """What has no answer yet, a line an image."""
        return self._beside(".failures.jsonl")

    @property
    def report(self) -> Path:
        """The figures of the last run."""
        return self._beside(".report.json")

    @property
    def work(self) -> Path:
        """The folder of everything below."""
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
        """The chunks of the plan in progress; written last, so a plan without it does not count."""
        return self.work / "plan.json"

    @property
    def format(self) -> Path:
        """The number of the work folder's format."""
        return self.work / "format"

    @property
    def skipped(self) -> Path:
        """Input lines that are no image to annotate, with line number and reason."""
        return self.work / "skipped.jsonl"

    @property
    def recipe(self) -> Path:
        """Settings and fingerprint of the recipe that wrote the output."""
        return self.work / "recipe.json"

    @property
    def job(self) -> Path:
        """The parameters of the last run, for the commands that come after it."""
        return self.work / "job.json"

    @property
    def set_aside(self) -> Path:
        """Failures that a retry of an earlier version has put here: the next merge puts them back."""
        return self.work / "set-aside.jsonl"

    @property
    def retried(self) -> Path:
        """The rows that a retry of failures asks."""
        return self.work / "retried.jsonl"

    @property
    def torn(self) -> Path:
        """Ends of outputs that other programs have left half-written, taken out when lines were added."""
        return self.work / "torn.jsonl"

    @property
    def cache(self) -> Path:
        """Prefect's results of completed chunks."""
        return self.work / "cache"

    @property
    def logs(self) -> Path:
        """Logs of processes that a run starts."""
        return self.work / "logs"

    @property
    def telemetry(self) -> Path:
        """Samples of GPUs, servers and client, as Parquet."""
        return self.work / "telemetry"

    @property
    def page(self) -> Path:
        """The report as a page to look at."""
        return self._beside(".report.html")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the workspace for this process, creating it; the kernel lets go however the process ends.

        Raises UsageError while another run holds it, where it cannot be written, and for one of a later version.
        """
        fresh = not self.work.exists()
        with self._lock():
            try:
                self.check_format()
                yield
            finally:
                # A run that was refused leaves no trace, but for the log of a server that did not start.
                if fresh and not self.recipe.exists() and not any(self.logs.glob("*")):
                    self._remove()
                    if self.whole is not None:
                        with suppress(OSError):  # other shards are in it
                            self.output.parent.rmdir()

    def _remove(self) -> None:
        """Removes the work folder at once: another run that begins now makes one of its own."""
        going = self.work.with_name(f"{unfinished_name(self.work.name)}.{os.getpid()}")
        with suppress(OSError):
            self.work.rename(going)
            shutil.rmtree(going, ignore_errors=True)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with ExitStack() as held:
            try:
                self._enter_lock(held)
                _check_replaceable(self.output)
            except AlreadyLockedError as holder:
                raise UsageError(
                    f"output {self.output} is being written by another run ({holder}); "
                    "wait for it, stop it, or choose another --output"
                ) from None
            except OSError as error:
                if disk_is_full(error):
                    raise UsageError(explained(error, self.work)) from None
                raise UsageError(
                    f"cannot write beside output {self.output}: {error.strerror} ({error.filename}); choose an "
                    "--output in a folder that this user may write to, on a file system with locks"
                ) from None
            yield

    def _enter_lock(self, held: ExitStack) -> None:
        for tries_left in reversed(range(LOCK_TRIES)):
            try:
                self.parts.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(self.work / "lock"))
            except FileNotFoundError:  # a run that was refused is just removing the folder
                if not tries_left:
                    raise
            else:
                return

    def check_format(self) -> None:
        """Raises UsageError where a later version has written the work folder."""
        try:
            written = self.format.read_text(errors="replace").strip()
        except FileNotFoundError:  # of a version that did not write it, which is format 1 too
            return
        if not (len(written) < 9 and written.isascii() and written.isdecimal() and int(written) <= FORMAT):
            raise UsageError(
                f"{self.work} has format {written[:20]!r}, and this version knows {FORMAT} at most: go on with the "
                "version that wrote it, or choose another --output"
            )


def _check_replaceable(output: Path) -> None:
    """Raises OSError unless `output` could be replaced, without touching it."""
    if output.exists():
        with output.open("rb+"):
            pass


def _check_names(output: Path) -> None:
    """Raises UsageError where the names beside an output would be too long: better now than after the last answer."""
    longest = output.with_name(output.stem + ".failures.jsonl")
    try:
        most = os.pathconf(output.parent, "PC_NAME_MAX")
    except OSError:
        most = 255
    if (excess := len(os.fsencode(longest.name)) - most) > 0:
        raise UsageError(
            f"the name of output {str(output)!r} is too long: with .failures.jsonl it has {most + excess} bytes, and "
            f"the file system takes {most}; make it {excess} bytes shorter"
        )
    if len(os.fsencode(longest)) + DEEPEST_BYTES > MAX_PATH_BYTES:
        raise UsageError(f"the path of output {str(output)!r} is too long: make it {DEEPEST_BYTES} bytes shorter")
