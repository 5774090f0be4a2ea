"""The files of an output that is a folder in an object store: an object for each input file, once that is finished."""

import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.listing import InputFile
from vllm_annotate.inputs.plan_file import Chunk, read_plan_file
from vllm_annotate.results.files import Files
from vllm_annotate.results.mirror import RemoteFiles
from vllm_annotate.results.mirrored import MirroredAnswers
from vllm_annotate.results.written import written_files
from vllm_annotate.storage.file_states import Version
from vllm_annotate.storage.locations import reaching, version_of
from vllm_annotate.storage.packed import ENDINGS, names_of
from vllm_annotate.storage.shard import shards_folder
from vllm_annotate.storage.uploads import ObjectChangedError
from vllm_annotate.storage.workspace import Workspace

ENTRIES_SECONDS = 60.0  # between uploads of entries: what was finished since is opened again if this machine is lost
# Output files that stay here, or are downloaded, for the report's page: all of them may be more than this disk holds.
SHOWN, FETCHED = 12, 4
UNPUBLISHED = ("parts/*.jsonl", "growing.jsonl", "unpublished.jsonl")  # what a state may have
STATE_PARTS = 3  # of the name of an object: labeled.work/files/STATE


class FolderMirror(RemoteFiles):
    """The whole of it: reports, failures, entries of finished files; and the files of each input file.

    Shards each have a lease. What keeps two runs from one input file is that its output is uploaded on the condition
    that it is still what it was.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """As those of `RemoteFiles`."""
        super().__init__(*arguments, **options)
        self._versions: dict[str, str] = {}  # of finished outputs, by name
        self._newest: deque[Path] = deque()
        self._left: dict[str, list[str]] = {}  # by state: its objects
        self._open: set[FileMirror] = set()
        self._kept = time.monotonic()
        self._pushing = threading.Lock()

    def of_input(self, file: InputFile) -> Files:
        """Returns the files of an input file, after a download of what the store has of them."""
        workspace, final = self._workspace_of(file), self._output_of(file)
        unpublished = workspace.work / "unpublished.jsonl"
        answers = MirroredAnswers(workspace, final, self._copies, self._token, unpublished, self._lease.check)
        with self._pushing, suppress(ValueError):
            self._newest.remove(final)  # it is at work: `note_output` puts it back
        with reaching(self.url):
            answers.fetch()
            workspace = self._workspace_of(file)  # an output may have come
            answers.append(workspace)
        opened = FileMirror(self, file, workspace, answers)
        self._open.add(opened)
        return opened

    def _workspace_of(self, file: InputFile) -> Workspace:
        return self.workspace.of_input(file.name, file.output_name)

    def _output_of(self, file: InputFile) -> Path:
        """The path of its output: in the form that it has in the store, or will have."""
        known = (name for name in names_of(file.output_name) if name in self._versions)
        return self.workspace.answers / next(known, file.output_name)

    def output_version(self, name: str) -> Version:
        """Returns the version of an output file of a folder, whichever form it has; None if there is none."""
        return next((self._versions[each] for each in names_of(name) if each in self._versions), None)

    def tidy(self, file: InputFile) -> None:
        """Removes what is left in the store of the state of a finished input file.

        Such as the parts of a run that had the same file, and whose output was refused.
        """
        state = self._copies.name(self._workspace_of(file).work)
        with reaching(self.url):
            for name in self._left.pop(state, ()):
                self._copies.remove(name)

    def keep_failures(self) -> None:
        """Publishes the failures, before those that are asked again get answers. Raises OSError."""
        with reaching(self.url), self._pushing:
            self._lease.check()
            self._copies.push(self.workspace.failures)

    def note_output(self, file: InputFile, version: str | None) -> None:
        """Takes note of an upload, and removes the copy of an output that is not among the newest."""
        path = self._output_of(file)
        if version is not None:
            self._versions[str(path.relative_to(self.workspace.answers))] = version
        with self._pushing:
            self._newest.append(path)
            self._forget_older()

    def close(self, file: "FileMirror") -> None:
        """Takes note that a file has nothing more to upload."""
        self._open.discard(file)

    def _forget_older(self) -> None:
        while len(self._newest) > SHOWN:
            self._copies.forget(self._newest.popleft())

    def fetch_shown(self) -> None:
        """Downloads some outputs for the page if none is here."""
        if not written_files(self.workspace.answers):
            names = sorted(name for name in self._versions if name.endswith(ENDINGS))
            with reaching(self.url):
                for name in names[:: -(-len(names) // FETCHED) or 1]:
                    self._copies.fetch(self.workspace.answers / name)

    def push_recipe(self) -> None:
        """Uploads the recipe before answers."""
        with self._pushing:
            self._push_recipe()

    def keep_entries(self) -> None:
        """Uploads which input files are finished, from time to time: this file grows."""
        if time.monotonic() - self._kept > ENTRIES_SECONDS:
            self._kept = time.monotonic()
            try:
                with reaching(self.url):
                    self._push_entries()
            except OSError as error:
                self._say(f"which files are finished is saved on this machine only, for now: {error}")

    def publish(self) -> None:
        """Uploads what changed. Raises OSError."""
        with reaching(self.url):
            self._push_entries()
            with self._pushing:
                self._lease.check()
                self._copies.push(self.workspace.failures)
                self._push_minor()

    def _push_entries(self) -> None:
        with self._pushing:
            self._lease.check()
            self._copies.push(self.workspace.common_folder)
            self._copies.push(self.workspace.finished)

    def _pull(self) -> None:
        workspace, copies = self.workspace, self._copies
        if not self._with_whole:
            for path in (workspace.finished, workspace.common_folder):
                copies.fetch(path)
            self._pull_minor()
            return
        folder = copies.remote(workspace.answers)
        for path, info in copies.fs.find(folder, detail=True).items():
            self._versions[path.removeprefix(f"{folder}/")] = version_of(info)
        is_ahead = self._look_at_copies()
        if is_ahead or any(any(workspace.states.glob(f"*/{name}")) for name in UNPUBLISHED):
            self._guard_recipe()
        whole = Workspace(workspace.answers)
        shared = [whole.format, whole.recipe, whole.finished, whole.common_folder]
        for path in {*shared, workspace.failures, workspace.finished, workspace.common_folder}:
            copies.fetch(path)
        self._pull_minor()
        names = (workspace.finished.name, workspace.common_folder.name, workspace.recipe.name)
        of_shards = [name for name in copies.found(shards_folder(whole.output)) if name.endswith(names)]
        states = copies.found(workspace.states)
        for name in states:
            self._left.setdefault("/".join(name.split("/")[:STATE_PARTS]), []).append(name)
        of_files = [name for name in states if name.endswith("/of.failures.jsonl")]
        for path in {copies.folder / name for name in (*of_shards, *of_files)} | {*workspace.states.glob("*/of.*")}:
            copies.fetch(path)
        self._check_is_ours()

    def _check_is_ours(self) -> None:
        """Raises UsageError if a folder that no run has written has other files than outputs."""
        other = next((name for name in self._versions if not name.endswith(ENDINGS)), "")
        if other and not any(
            path.exists() for path in (self.workspace.recipe, Workspace(self.workspace.answers).recipe)
        ):
            raise UsageError(
                f"output {self.url!r} is a folder with other files, such as {self.url}/{other}: choose a new folder, "
                f"or name a file in it, such as {self.url}/labeled.jsonl"
            )

    def _look_at_copies(self) -> bool:
        """Removes copies of outputs but for the newest, and of those that are gone in the store.

        Returns whether any has answers that the store has not.
        """
        here = written_files(self.workspace.answers)
        ahead = [path for path in here if self._copies.changed_here(path)]
        folder = self.workspace.answers
        for path in sorted(set(here) - set(ahead), key=lambda path: path.stat().st_mtime_ns):
            if str(path.relative_to(folder)) in self._versions:
                self._newest.append(path)
            else:
                self._copies.forget(path)
        self._forget_older()
        return bool(ahead)

    def _keep_all(self) -> None:
        for file in list(self._open):
            with suppress(OSError):
                file.keep_all()
        with reaching(self.url):
            self._push_entries()


class FileMirror(Files):
    """The files of one input file."""

    grows = False  # a part whose upload failed stays until the output is uploaded

    def __init__(self, whole: FolderMirror, file: InputFile, workspace: Workspace, answers: MirroredAnswers) -> None:
        super().__init__(workspace)
        self._whole, self._file, self._answers = whole, file, answers
        self._owed: dict[int, Chunk] = {}

    def keep(self, chunk: Chunk) -> None:
        """Uploads the chunk's answers so far, and those of chunks whose upload failed."""
        self._owed[chunk.number] = chunk
        with reaching(self._whole.url):
            for each in list(self._owed.values()):
                self._answers.keep(each, self._whole.push_recipe)
                self._owed.pop(each.number, None)

    def publish(self) -> None:
        """Uploads output, then failures, and removes the parts. Raises OSError.

        Raises UsageError if another program has written the output meanwhile.
        """
        with reaching(self._whole.url):
            try:
                version = self._answers.publish_output()
                self._answers.publish_failures()
            except ObjectChangedError as error:
                raise UsageError(
                    f"another program has written {error.filename}: run again; its rows count as answered"
                ) from None
            self._answers.remove_parts()
        self._whole.note_output(self._file, version)
        self._whole.close(self)

    def keep_all(self) -> None:
        """Uploads what a run that ends early has not."""
        plan = read_plan_file(self.workspace)
        for chunk in plan.chunks if plan is not None else ():
            self.keep(chunk)
