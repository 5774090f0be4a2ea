"""The files of an output in an object store, mirrored on this machine during a run."""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.plan_file import Chunk, read_plan_file
from vllm_annotate.recipe.guard import read_recipe
from vllm_annotate.results.files import Files
from vllm_annotate.results.mirrored import MirroredAnswers
from vllm_annotate.storage.copies import Copies
from vllm_annotate.storage.disk_errors import disk_is_full, explained
from vllm_annotate.storage.json_text import json_object
from vllm_annotate.storage.lease import Lease
from vllm_annotate.storage.locations import file_system, identity_of, reaching, unreachable
from vllm_annotate.storage.lock import AlreadyLockedError, locked
from vllm_annotate.storage.state_folder import state_folder, token_of
from vllm_annotate.storage.uploads import ObjectChangedError
from vllm_annotate.storage.workspace import Workspace


class RemoteFiles(Files, ABC):
    """A local copy of the files of an output in an object store, under a lease. Subclasses say which files."""

    def __init__(
        self,
        url: str,
        shard: str = "",
        say: Callable[[str], None] = lambda _: None,
        stopped: threading.Event | None = None,
        *,
        with_whole: bool = True,
    ) -> None:
        """The files of an output, or of a shard of it; `with_whole` what the output has of other shards too.

        Setting `stopped` ends waits and transfers while they are entered.
        """
        remote_folder, _, name = url.rpartition("/")
        if remote_folder.endswith(":/"):
            raise UsageError(f"output {url!r} is a whole bucket: name a folder or a file in it, such as {url}/labeled")
        fs, remote = file_system(remote_folder)
        # A shard has its own folder: a run of the whole output must not share its copy of the whole.
        folder = Path(os.path.realpath(state_folder() / "mirrors" / identity_of(fs, remote_folder, shard)))
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(Workspace.at(folder / name, shard))
        self.url, self._say, self._stopped = url, say, stopped or threading.Event()
        self._with_whole = with_whole
        self._own = self.workspace.work / "mirror"
        self._own.mkdir(parents=True, exist_ok=True)
        self._token = token_of(self._own)
        self._copies = Copies(fs, remote, folder, self._own / "seen.jsonl", self._stopped)
        lease = self._copies.remote(self.workspace.work / "lease")
        leased = f"{remote_folder}/{self._copies.name(self.workspace.output)}"
        self._lease = Lease(fs, lease, leased, self._token, say, self._stopped)

    def __enter__(self) -> Self:
        """Acquires the lease and downloads what changed. Raises UsageError if another run holds it."""
        try:
            with ExitStack() as held:
                held.enter_context(self._locked())
                held.callback(self._release)
                self._lease.take()
                with reaching(self.url):
                    self._copies.read()
                    self._pull()
                self._held = held.pop_all()
        except OSError as error:
            if disk_is_full(error):
                raise UsageError(explained(error, self._copies.folder)) from None
            raise unreachable(self.url, error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Uploads what it can, and releases the lease."""
        with self._held:
            if self._lease.held:
                with suppress(OSError, UsageError):
                    self._keep_all()

    @abstractmethod
    def _pull(self) -> None:
        """Downloads what changed in the store."""

    @abstractmethod
    def _keep_all(self) -> None:
        """Uploads what a run that ends early has not."""

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Locks out other runs on this machine."""
        with ExitStack() as held:
            try:
                held.enter_context(locked(self._own / "lock"))
            except AlreadyLockedError as holder:
                raise UsageError(
                    f"output {self.url} is being written by another run on this machine ({holder}): wait for it, stop "
                    "it, or choose another --output"
                ) from None
            yield

    def _release(self) -> None:
        with suppress(OSError):
            self._lease.release()

    def _pull_minor(self) -> None:
        """Downloads what says how the answers came about."""
        workspace, copies = self.workspace, self._copies
        copies.fetch(workspace.format)
        workspace.check_format()
        for path in self._minor_files():
            copies.fetch(path)
        for name in copies.found(workspace.telemetry):
            copies.fetch(copies.folder / name)

    def _push_recipe(self) -> None:
        """Uploads the recipe before answers, so that no run with another recipe adds to them."""
        self._copies.push(self.workspace.format)
        self._copies.push(self.workspace.recipe)

    def _push_minor(self) -> None:
        for path in self._minor_files():
            try:
                self._copies.push(path)
            except ObjectChangedError as error:
                self._say(f"{error.filename} {error.strerror}; it was not replaced")

    def _minor_files(self) -> list[Path]:
        workspace = self.workspace
        of_work = [workspace.format, workspace.recipe, workspace.job, workspace.skipped]
        return [workspace.report, workspace.page, *of_work, *sorted(workspace.telemetry.glob("*.parquet"))]

    def _guard_recipe(self) -> None:
        """Raises UsageError if unpublished local answers have another recipe than those in the store."""
        here, path = read_recipe(self.workspace), self._copies.remote(self.workspace.recipe)
        if here is None or not self._copies.fs.exists(path):
            return
        there = json_object(self._copies.fs.cat_file(path)) or {}
        if there.get("fingerprint") != here["fingerprint"]:
            raise UsageError(
                f"{self.workspace.work} has unpublished answers of another recipe than the one of {self.url}: delete "
                "that folder to annotate these images again, or choose another --output"
            )


class Mirror(RemoteFiles):
    """The files of an output that is one object: it is uploaded whole, at the end."""

    grows = False

    @cached_property
    def _answers(self) -> MirroredAnswers:
        unpublished, output = self._own / "unpublished.jsonl", self.workspace.output
        return MirroredAnswers(self.workspace, output, self._copies, self._token, unpublished, self._lease.check)

    def keep(self, chunk: Chunk) -> None:
        """Uploads the chunk's answers so far."""
        with reaching(self.url):
            self._answers.keep(chunk, self._push_recipe)

    def publish(self) -> None:
        """Uploads what changed, failures first, then removes the parts, whose answers are in the output.

        Raises OSError, also if another program changed failures or output in the store meanwhile.
        """
        with reaching(self.url):
            self._answers.publish_failures()
            self._answers.publish_output()
            self._push_minor()
            self._answers.remove_parts()

    def _pull(self) -> None:
        if self._answers.waits:
            self._guard_recipe()
        self._answers.fetch()
        if self._with_whole and self.workspace.whole is not None:
            self._copies.fetch(self.workspace.whole)
        self._pull_minor()
        self._answers.append(self.workspace)

    def _keep_all(self) -> None:
        plan = read_plan_file(self.workspace)
        for chunk in plan.chunks if plan is not None else ():
            self.keep(chunk)
