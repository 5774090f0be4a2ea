"""The files of a run: their paths, their lock and their format."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vllm_annotate.errors import UsageError
from vllm_annotate.storage.atomic import unfinished_name
from vllm_annotate.storage.disk_errors import disk_is_full, explained
from vllm_annotate.storage.locations import read_object
from vllm_annotate.storage.lock import AlreadyLockedError, locked
from vllm_annotate.storage.output_checks import check_folder, check_output, check_regular, check_replaceable
from vllm_annotate.storage.output_paths import PILOT, SWEEP, OutputPaths
from vllm_annotate.storage.packed import is_packed, names_of
from vllm_annotate.storage.shard import Shard, shards_folder

FORMAT, FOLDER_FORMAT = 1, 2  # of the work folder of an output that is a file or a folder; raised when it changes
LOCK_TRIES = 10
COMPRESSED, ROWS = (".gz", ".zst"), (".jsonl", ".json", ".parquet")  # endings of an output that is read


class Workspace(OutputPaths):
    """The files of an output, and the lock of the run that writes them."""

    @classmethod
    def at(cls, output: Path | str, shard: str = "") -> "Workspace":
        """Returns the workspace of `output`, or of a shard of it. Links are resolved: a file has one workspace.

        Raises UsageError for an invalid output or shard.
        """
        path = Path(os.path.realpath(Path(output).expanduser()))
        check_output(path, str(output))
        workspace = cls(path)
        if workspace.is_folder and not workspace.work.exists():
            check_folder(path, str(output))
        if shard:
            workspace = workspace.of_shard(Shard.parse(shard))
        files = [workspace.failures, workspace.report, workspace.page]
        check_regular(*files if workspace.is_folder else [workspace.output, *files], folder=workspace.work)
        return workspace

    def of_input(self, name: str, output_name: str) -> "Workspace":
        """Returns the workspace of an input file, of an output that is a folder.

        The ending of `output_name` is the form of its output if that is new; one that is there stays as it is.
        """
        short = os.fsencode(name.rpartition("/")[2])[:60].decode(errors="ignore")
        state = self.states / f"{short}.{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"
        forms = (self.answers / each for each in names_of(output_name))
        final = next((path for path in forms if path.exists()), self.answers / output_name)
        grows_there = final.exists() and not is_packed(final)
        return Workspace(final if grows_there else state / "growing.jsonl", state=state, final=final)

    @classmethod
    def of_file(cls, output: Path) -> "Workspace":
        """Returns the workspace of an output to read, which may be compressed. Links are resolved as by `at`."""
        path = Path(os.path.realpath(output.expanduser()))
        if path.suffix in COMPRESSED:
            path = path.with_suffix("")
        return cls(path.with_name(f"{path.stem if path.suffix in ROWS else path.name}.jsonl"))

    def of_shard(self, shard: Shard) -> "Workspace":
        """Returns the workspace of a shard of this output."""
        name = shard.name if self.is_folder else f"{shard.name}.jsonl"
        return Workspace(shards_folder(self.output) / name, whole=self.output)

    @property
    def pilot(self) -> "Workspace":
        """The pilot of this output. A run takes its answers, unless it is a folder."""
        whole = self.whole or self.output
        return Workspace(whole.with_name(whole.name + PILOT if self.is_folder else whole.stem + ".pilot.jsonl"))

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
                    self.remove_work()
                    if self.whole is not None:
                        with suppress(OSError):  # other shards use it
                            self.output.parent.rmdir()

    @contextmanager
    def claimed(self, name: str) -> Iterator[None]:
        """Creates and locks the state of an input file: runs of other shards share its folder.

        Raises UsageError if another run has it.
        """
        with ExitStack() as held:
            try:
                self._enter_lock(held)
            except AlreadyLockedError as holder:
                raise UsageError(f"{name} is being annotated by another run ({holder}): run again after it") from None
            yield

    def remove_work(self) -> None:
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
                check_replaceable(self.answers)
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
                held.enter_context(locked(self.lock))
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
        of_folder = written == str(FOLDER_FORMAT)
        if of_folder != self.is_folder and written in (str(FORMAT), str(FOLDER_FORMAT)):
            kind = "a folder" if of_folder else "a file"
            raise UsageError(f"{self.work} is of an output that is {kind}: choose another --output")
        if not (len(written) < 9 and written.isascii() and written.isdecimal() and int(written) <= FOLDER_FORMAT):
            raise UsageError(
                f"{self.work} has format {written[:20]!r}, but this version supports formats up to {FOLDER_FORMAT}: "
                "use the version that wrote it, or choose another --output"
            )


def own_paths(output: Path | str) -> list[Path | str]:
    """What runs and commands write of an output that is a folder, its pilot and sweep: none of it is an input."""
    if isinstance(output, str):
        folder, _, name = output.rstrip("/").rpartition("/")
        own = [Workspace(Path(name)), Workspace(Path(name)).pilot]
        base = name.removesuffix(PILOT)
        if base not in ("", name) and read_object(f"{folder}/{base}.work/job.json"):
            own.append(Workspace(Path(base)))
        return [f"{folder}/{path.name}" for each in own for path in written_by(each)]
    whole = Workspace(Path(os.path.realpath(output)))
    bases = [whole.output.with_name(whole.output.name.removesuffix(PILOT) or whole.output.name)]
    if (above := whole.output.parent).suffix == SWEEP:  # it may be a variant
        bases.append(above.with_suffix(""))
    own = [whole]
    for each in map(Workspace, bases):
        own += [other for other in (each, each.pilot) if other.work.exists()]
        own += [Workspace(work.with_suffix("")) for work in each.sweep.glob("*.work")]
    return [path for each in own for path in written_by(each)]


def written_by(whole: Workspace) -> list[Path]:
    """What runs and commands write of an output, as far as it has the form of an input."""
    shards = shards_folder(whole.output)
    beside = [whole.failures, whole.reviewed, whole.audited, whole.asked_again]
    return [whole.output, whole.work, *beside, shards]
