"""The files of a run: where they lie, who may write them, and with which recipe."""

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.errors import UsageError
from flows.shard import Shard, shards_folder


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
    def skipped(self) -> Path:
        """Input lines that are no image to annotate, with line number and reason."""
        return self.work / "skipped.jsonl"

    @property
    def recipe(self) -> Path:
        """Settings and fingerprint of the recipe that wrote the output."""
        return self.work / "recipe.json"

    @property
    def set_aside(self) -> Path:
        """Failures that a retry of some kinds leaves alone: the next merge takes them back into the failures file."""
        return self.work / "set-aside.jsonl"

    @property
    def retried(self) -> Path:
        """The rows that a retry of failures asks."""
        return self.work / "retried.jsonl"

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
        """Holds the workspace for this process, creating it; the kernel lets go however the process ends."""
        fresh = not self.work.exists()
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            self.parts.mkdir(exist_ok=True)
            lock = (self.work / "lock").open("a+")
            _check_replaceable(self.output)
        except OSError as error:
            raise UsageError(
                f"cannot write beside output {self.output}: {error.strerror} ({error.filename}); "
                "choose an --output in a folder that this user may write to"
            ) from None
        with lock:
            self._take(lock.fileno())
            try:
                yield
            finally:
                if fresh and not self.recipe.exists():  # a run that was refused leaves no trace
                    shutil.rmtree(self.work, ignore_errors=True)
                    if self.whole is not None:
                        with suppress(OSError):  # other shards are in it
                            self.output.parent.rmdir()

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise UsageError(
                    f"{self.work} cannot be locked: {error.strerror}; use a file system with locks"
                ) from None
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            raise UsageError(
                f"output {self.output} is being written by another run ({holder}); "
                "wait for it, stop it, or choose another --output"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(
            descriptor, f"process {os.getpid()} on {os.uname().nodename} since {time.strftime('%F %T')}\n".encode()
        )

    def guard_recipe(self, settings: dict[str, Any], recipe_fingerprint: str) -> None:
        """Raises UsageError for a recipe other than the one that wrote what is here.

        An output without a `recipe.json` comes from an older script and is taken as it is.
        """
        if self.whole is not None:
            Workspace(self.whole).guard_recipe(settings, recipe_fingerprint)
        known = read_json(self.recipe)
        answers = [self.output, *self.parts.glob("*.jsonl")]
        started = any(path.exists() and path.stat().st_size for path in answers)
        if known and started and known.get("fingerprint") != recipe_fingerprint:
            before = known.get("settings", {})
            changed = [
                f"{name}: {before.get(name)!r:.60} → {settings.get(name)!r:.60}"
                for name in sorted(before | settings)
                if before.get(name) != settings.get(name)
            ]
            raise UsageError(
                f"{self.output} was written with another recipe ({'; '.join(changed) or 'other built-in prompts'}). "
                "Answers of two recipes are not mixed: go back to the first, choose another --output, "
                f"or delete {self.recipe} to mix them knowingly"
            )

    def record_recipe(self, settings: dict[str, Any], recipe_fingerprint: str) -> None:
        """Writes down which recipe the answers of this workspace come from."""
        write_json(self.recipe, {"fingerprint": recipe_fingerprint, "settings": settings})


def _check_replaceable(output: Path) -> None:
    """Raises OSError unless `output` could be replaced, without touching it."""
    if output.exists():
        with output.open("rb+"):
            pass


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`; None when there is none, or none that is whole."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replaces `path` by `value`, atomically and durably."""
    with replacing(path) as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n")


@contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """A binary file that takes the place of `path` once it is whole and on disk; on an error `path` stays as it was.

    Its name is always the same, so that what a kill leaves behind is taken up by the next try.
    """
    unfinished = path.with_name(f".{path.name[-100:]}.unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, unfinished)
        unfinished.replace(path)
        sync_folder(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes renames and removals in `folder` survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
