"""Output, failures and parts of one input file in an object store, mirrored on this machine."""

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from vllm_annotate.inputs.plan_file import Chunk
from vllm_annotate.results.append import appending
from vllm_annotate.results.merge import append_unplanned
from vllm_annotate.results.parts import answers_path
from vllm_annotate.results.written import unpack
from vllm_annotate.storage.copies import Copies
from vllm_annotate.storage.file_states import file_state
from vllm_annotate.storage.packed import is_packed
from vllm_annotate.storage.workspace import Workspace


class MirroredAnswers:
    """Downloads what changed in the store, uploads what changed here.

    Answers are uploaded as parts, which a run on another machine picks up, until the output that has them is. Those
    that could not be uploaded stay local for the next run on this machine.
    """

    def __init__(
        self,
        workspace: Workspace,
        output: Path,
        copies: Copies,
        token: str,
        unpublished: Path,
        check: Callable[[], None],
    ) -> None:
        """Of the answers of `workspace`, whose output in the store is `output`; `check` raises if another run has it.

        `unpublished` is where an output stays that was not uploaded when the one in the store changed.
        """
        self._workspace = workspace
        self._output = output
        self._copies = copies
        self._token = token  # names the parts of this machine
        self._unpublished = unpublished
        self._check = check
        self._uploading = threading.Lock()  # each chunk finishes in its own thread
        self._appended: list[str] = []  # parts whose answers are in the local output

    @property
    def waits(self) -> bool:
        """Whether answers on this machine are not in the store, as far as that is known without a look."""
        parts = any(part.stat().st_size for part in self._workspace.parts.glob("*.jsonl"))
        return parts or self._copies.changed_here(self._output) or self._unpublished.exists()

    def fetch(self) -> None:
        """Downloads output and failures."""
        here, copies = self._output, self._copies
        if copies.changed_here(here) and not self._unpublished.exists() and copies.changed_there(here):
            if is_packed(here):
                unpack(here, self._unpublished)
                here.unlink()
            else:
                here.replace(self._unpublished)
        copies.fetch(here)
        copies.fetch(self._workspace.failures)

    def append(self, workspace: Workspace) -> None:
        """Appends to the workspace's output what was not published, and parts of runs on other machines.

        Repeated until the output is published; answers already in it are not appended twice.
        """
        if self._unpublished.exists():
            _append([self._unpublished], workspace)
            self._unpublished.unlink()
        parts = self._copies.found(workspace.parts)
        self._copies.adopt([part for part in parts if self._is_own(part)])
        self._appended = [part for part in parts if not self._is_own(part)]
        if not self._appended:
            return
        self._unpublished.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._unpublished.parent) as folder:
            copies = [Path(folder) / part.rpartition("/")[2] for part in self._appended]
            for part, copy in zip(self._appended, copies, strict=True):
                self._copies.download(part, copy)
            _append(copies, workspace)

    def keep(self, chunk: Chunk, before: Callable[[], None]) -> None:
        """Uploads the chunk's answers so far; calls `before` shortly before."""
        part = answers_path(self._workspace, chunk)
        if not part.exists() or not part.stat().st_size:
            return
        # Named by its images: the next plan's chunk of the same number is another part.
        name = self._copies.name(part.with_name(f"{chunk.digest}-{self._token}.jsonl"))
        with self._uploading:
            if self._copies.is_uploaded(part, name):
                return
            self._check()
            before()
            self._copies.push(part, name)

    def publish_failures(self) -> None:
        """Uploads the failures."""
        self._check()
        self._copies.push(self._workspace.failures)

    def publish_output(self) -> str | None:
        """Uploads the output; returns its version."""
        self._check()
        return self._copies.push(self._output)

    def remove_parts(self) -> None:
        """Removes the parts whose answers are in the output."""
        for part in self._copies.found(self._workspace.parts):
            if self._is_own(part) or part in self._appended:
                self._copies.remove(part)

    def _is_own(self, part: str) -> bool:
        return part.endswith(f"-{self._token}.jsonl")


def _append(answers: list[Path], workspace: Workspace) -> None:
    with appending(workspace, file_state(workspace.output)) as output:
        append_unplanned(workspace, answers, output)
    workspace.appends.unlink(missing_ok=True)  # they are not of the plan in progress
