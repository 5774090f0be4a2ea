"""The files of an output in an object store, mirrored on this machine during a run."""

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.plan_file import Chunk, read_plan_file
from vllm_annotate.recipe.guard import read_recipe
from vllm_annotate.results.append import appending
from vllm_annotate.results.files import Files
from vllm_annotate.results.merge import append_unplanned
from vllm_annotate.results.parts import answers_path
from vllm_annotate.storage.atomic import read_json, write_json
from vllm_annotate.storage.disk_errors import disk_is_full, explained
from vllm_annotate.storage.downloads import download
from vllm_annotate.storage.file_states import file_state, file_version
from vllm_annotate.storage.json_text import json_object
from vllm_annotate.storage.lease import Lease
from vllm_annotate.storage.locations import file_system, identity_of, reaching, unreachable
from vllm_annotate.storage.lock import AlreadyLockedError, locked
from vllm_annotate.storage.state_folder import state_folder, token_of
from vllm_annotate.storage.uploads import ObjectChangedError, remove, upload, version_there
from vllm_annotate.storage.workspace import Workspace


class Mirror(Files):
    """A local copy of an output in an object store. Downloads what changed in the store, uploads what changed locally.

    Answers are uploaded chunk by chunk, as parts, which a run on another machine picks up. Those that could not be
    uploaded stay local for the next run on this machine.
    """

    grows = False  # a whole output is uploaded, at the end

    def __init__(
        self,
        url: str,
        shard: str = "",
        say: Callable[[str], None] = lambda _: None,
        stopped: threading.Event | None = None,
        *,
        with_whole: bool = True,
    ) -> None:
        """A mirror of an output, or of a shard of it, for which rows of the whole output count as done `with_whole`.

        Setting `stopped` ends waits and transfers while the mirror is entered.
        """
        remote_folder, _, name = url.rpartition("/")
        self._url = url
        self._fs, self._remote = file_system(remote_folder)
        # A shard has its own folder: a run of the whole output must not share its copy of the whole.
        self._folder = Path(os.path.realpath(state_folder() / "mirrors" / identity_of(self._fs, remote_folder, shard)))
        self._folder.mkdir(parents=True, exist_ok=True)
        super().__init__(Workspace.at(self._folder / name, shard))
        self._own = self.workspace.work / "mirror"
        self._own.mkdir(parents=True, exist_ok=True)
        self._token = token_of(self._own)
        lease = self._remote_path(self.workspace.work / "lease")
        self._say = say
        self._stopped = stopped or threading.Event()
        self._lease = Lease(self._fs, lease, self._url_of(self.workspace.output), self._token, say, self._stopped)
        self._uploading = threading.Lock()  # each chunk finishes in its own thread
        self._seen: dict[str, Any] = {}  # name → [version in the store, local version] when they last matched
        self._appended_parts: list[str] = []  # parts whose answers are in the local output
        self._fetched = self.workspace.outputs if with_whole else [self.workspace.output]

    def __enter__(self) -> Self:
        """Acquires the lease and downloads what changed. Raises UsageError if another run holds it."""
        try:
            with ExitStack() as held:
                held.enter_context(self._locked())
                held.callback(self._release)
                self._lease.take()
                with reaching(self._url):
                    self._pull()
                self._held = held.pop_all()
        except OSError as error:
            if disk_is_full(error):
                raise UsageError(explained(error, self._folder)) from None
            raise unreachable(self._url, error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Uploads what it can, and releases the lease."""
        with self._held:
            plan = read_plan_file(self.workspace) if self._lease.held else None
            if plan is not None:
                with suppress(OSError, UsageError):
                    for chunk in plan.chunks:
                        self.keep(chunk)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Locks out other runs on this machine."""
        with ExitStack() as held:
            try:
                held.enter_context(locked(self._own / "lock"))
            except AlreadyLockedError as holder:
                raise UsageError(
                    f"output {self._url} is being written by another run on this machine ({holder}): wait for it, stop "
                    "it, or choose another --output"
                ) from None
            yield

    def _release(self) -> None:
        with suppress(OSError):
            self._lease.release()

    def keep(self, chunk: Chunk) -> None:
        """Uploads the chunk's answers so far."""
        part = answers_path(self.workspace, chunk)
        if not part.exists() or not part.stat().st_size:
            return
        # Named by its images: the next plan's chunk of the same number is another part.
        remote = f"{self._remote_path(self.workspace.parts)}/{chunk.digest}-{self._token}.jsonl"
        name = remote.removeprefix(self._remote + "/")
        with reaching(self._url), self._uploading:
            if self._seen.get(name, [None, None])[1] == file_version(part):
                return
            self._lease.check()
            # Before the answers, so that no run with another recipe adds to them.
            self._push(self.workspace.format)
            self._push(self.workspace.recipe)
            self._push(part, name)

    def publish(self) -> None:
        """Uploads what changed, failures first, then removes the parts, whose answers are in the output.

        Raises OSError, also if another program changed failures or output in the store meanwhile.
        """
        workspace = self.workspace
        with reaching(self._url):
            for path in (workspace.failures, workspace.output):
                self._lease.check()
                self._push(path)
            for path in self._minor_files():
                try:
                    self._push(path)
                except ObjectChangedError as error:
                    self._say(f"{error.filename} {error.strerror}; it was not replaced")
            for part in self._found(self.workspace.parts):
                if self._is_own(part) or part in self._appended_parts:
                    self._fs.rm_file(part)
                    self._seen.pop(part.removeprefix(self._remote + "/"), None)

    def _pull(self) -> None:
        self._seen = read_seen(self._own)
        workspace = self.workspace
        self._guard_recipe()
        self._fetch(workspace.format)
        workspace.check_format()
        for path in (*self._fetched, workspace.failures, *self._minor_files()):
            self._fetch(path)
        for remote in self._found(workspace.telemetry):
            self._fetch(workspace.telemetry / remote.rpartition("/")[2])
        if self._unpublished.exists():
            self._append([self._unpublished])
            self._unpublished.unlink()
        parts = self._found(self.workspace.parts)
        for part in filter(self._is_own, parts):  # a kill can come between an upload and its record
            name, version = part.removeprefix(self._remote + "/"), version_there(self._fs, part)
            if self._seen.get(name, [None])[0] != version:
                self._seen[name] = [version, None]
        self._append_parts([part for part in parts if not self._is_own(part)])

    def _minor_files(self) -> list[Path]:
        workspace = self.workspace
        of_work = [workspace.format, workspace.recipe, workspace.job, workspace.skipped]
        return [workspace.report, workspace.page, *of_work, *sorted(workspace.telemetry.glob("*.parquet"))]

    def _fetch(self, path: Path) -> None:
        """Downloads a file that changed in the store since the last match; removes one that was removed there."""
        remote, name = self._remote_path(path), self._name(path)
        version = version_there(self._fs, remote)
        before = self._seen.get(name, [None, None])
        if version == before[0] and (path.exists() or version is None):
            return
        if path == self.workspace.output and self._is_ahead and not self._unpublished.exists():
            path.replace(self._unpublished)
        if version is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            download(self._fs, remote, path, self._stopped)
        self._remember(self._name(path), version, file_version(path))

    @property
    def _unpublished(self) -> Path:
        """The local output, not yet uploaded when the one in the store changed, until the two are joined."""
        return self._own / "unpublished.jsonl"

    @property
    def _is_ahead(self) -> bool:
        """Whether the local output has unpublished changes."""
        _, published = self._seen.get(self._name(self.workspace.output), [None, None])
        return file_version(self.workspace.output) not in (None, published)

    def _guard_recipe(self) -> None:
        """Raises UsageError if unpublished local answers have another recipe than those in the store."""
        workspace = self.workspace
        here, path = read_recipe(workspace), self._remote_path(workspace.recipe)
        parts = any(part.stat().st_size for part in workspace.parts.glob("*.jsonl"))
        waiting = parts or self._is_ahead or self._unpublished.exists()
        if not (here and waiting and self._fs.exists(path)):
            return
        there = json_object(self._fs.cat_file(path)) or {}
        if there.get("fingerprint") != here["fingerprint"]:
            raise UsageError(
                f"{workspace.work} has unpublished answers of another recipe than the one of {self._url}: delete that "
                "folder to annotate these images again, or choose another --output"
            )

    def _push(self, path: Path, name: str = "") -> None:
        """Uploads a file that changed locally since the last match; removes one that was removed locally.

        Raises ObjectChangedError if it changed in the store since.
        """
        name = name or self._name(path)
        remote, here = f"{self._remote}/{name}", file_version(path)
        there, published = self._seen.get(name, [None, None])
        if here == published:
            return
        if here is None:
            remove(self._fs, remote, there)
            self._remember(name, None, None)
        else:
            self._remember(name, upload(self._fs, path, remote, there), here)

    def _remember(self, name: str, there: str | None, here: list[int] | None) -> None:
        self._seen[name] = [there, here]
        write_json(self._own / "seen.json", self._seen)

    def _append_parts(self, parts: list[str]) -> None:
        """Appends answers to the output that runs on other machines uploaded but did not merge.

        Repeated until the output is published; answers already in it are not appended twice.
        """
        if not parts:
            return
        with tempfile.TemporaryDirectory(dir=self._own) as folder:
            copies = [Path(folder) / part.rpartition("/")[2] for part in parts]
            for part, copy in zip(parts, copies, strict=True):
                download(self._fs, part, copy, self._stopped)
            self._append(copies)
        self._appended_parts = parts

    def _append(self, answers: list[Path]) -> None:
        with appending(self.workspace, file_state(self.workspace.output)) as output:
            append_unplanned(self.workspace, answers, output)
        self.workspace.appends.unlink(missing_ok=True)  # they are not of the plan in progress

    def _is_own(self, part: str) -> bool:
        return part.endswith(f"-{self._token}.jsonl")

    def _found(self, folder: Path) -> list[str]:
        """Returns the objects below a folder, sorted by name."""
        return sorted(self._fs.find(self._remote_path(folder)))

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._folder))

    def _remote_path(self, path: Path) -> str:
        return f"{self._remote}/{self._name(path)}"

    def _url_of(self, path: Path) -> str:
        return f"{self._url.rpartition('/')[0]}/{self._name(path)}"


def read_seen(folder: Path) -> dict[str, Any]:
    """Returns the recorded versions; empty if damaged: then all files are downloaded, and none counts as published."""
    try:
        seen = read_json(folder / "seen.json") or {}
    except ValueError:
        return {}
    return {name: pair for name, pair in seen.items() if isinstance(pair, list) and len(pair) == 2}


def output_files(
    output: Path | str,
    shard: str = "",
    say: Callable[[str], None] = lambda _: None,
    stopped: threading.Event | None = None,
) -> Files:
    """Returns the files of an output, or of a shard of it, at a path or URL: a context manager."""
    if isinstance(output, str) and not output.endswith(".jsonl"):
        raise UsageError(f"output {output!r} must end in .jsonl: a folder is written on this machine only")
    return Files(Workspace.at(output, shard)) if isinstance(output, Path) else Mirror(output, shard, say, stopped)
