"""Which input files of a folder are finished: their entries tell a run what it need not open."""

from collections.abc import Callable, Container, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from vllm_annotate.inputs.listing import InputFile, output_name
from vllm_annotate.inputs.plan_file import Counts
from vllm_annotate.storage.atomic import append_line, replacing
from vllm_annotate.storage.file_states import Version
from vllm_annotate.storage.json_text import dumped, object_line
from vllm_annotate.storage.shard import shards_folder
from vllm_annotate.storage.workspace import Workspace


@dataclass(frozen=True)
class Finished:
    """An input file whose images all have an answer or a failure."""

    name: str
    version: list[int] | str | None
    output: list[int] | str | None  # version of the file or the object with its answers
    columns: dict[str, str]  # that it was read with
    selected: dict[str, int]  # which of its images
    counts: Counts
    rows: int  # lines of the file with its answers
    failures: dict[str, int] = field(default_factory=dict)  # by kind
    content: str = ""  # of a Parquet file with images inside: a digest, which a copy of it has, too


FINISHED = TypeAdapter(Finished)


def read_finished(workspace: Workspace, output_version: Callable[[str], Version]) -> dict[str, Finished]:
    """Returns an entry for each name, whichever shard wrote it: the one that is of the output that is there, if any.

    Without those that are damaged: such a file is planned again.
    """
    files = {path for of in (workspace, *shards_and_whole(workspace)) if (path := of.finished).exists()}
    found: dict[str, Finished] = {}
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns):
        for name, entry in _read(path).items():
            before = found.get(name)
            if before is None or before.output != output_version(output_name(name)):
                found[name] = entry
    return found


def shards_and_whole(workspace: Workspace) -> list[Workspace]:
    """The workspaces that share the states of an output's input files: the whole, and its shards, by name."""
    whole = Workspace(workspace.answers)
    works = shards_folder(whole.output).glob("*.work")
    return [whole, *(Workspace(work.with_suffix(""), whole=whole.output) for work in sorted(works))]


def _read(path: Path) -> dict[str, Finished]:
    found = {}
    for line in path.read_bytes().splitlines():
        try:
            entry = FINISHED.validate_json(line)
        except ValidationError:
            continue
        found[entry.name] = entry
    return found


def is_current(entry: Finished | None, file: InputFile, output: Version, columns: Mapping[str, str]) -> bool:
    """Whether a file needs no look: nothing failed, and neither it, its output nor how it is read has changed."""
    if entry is None or entry.failures or entry.columns != columns or any(entry.selected.values()):
        return False
    return is_finished(entry, file, output)


def is_finished(entry: Finished | None, file: InputFile, output: Version) -> bool:
    """Whether all images of a file have an answer or a failure, as far as the versions of it and its output tell."""
    return entry is not None and entry.version == file.version and entry.output == output


def not_given(
    workspace: Workspace, entries: Mapping[str, Finished], given: Container[str], is_there: Callable[[str], bool]
) -> list[Workspace]:
    """Files with failures that a run over the whole was not given this time, and that are still there."""
    if workspace.whole is not None:
        return []
    names = (entry.name for entry in entries.values() if entry.failures and entry.name not in given)
    return [workspace.of_input(name, output_name(name)) for name in names if is_there(name)]


def note_finished(workspace: Workspace, entry: Finished) -> None:
    """Appends an entry."""
    append_line(workspace.finished, object_line(dumped(asdict(entry))))


def compact(workspace: Workspace) -> None:
    """Replaces the entries of a workspace with the last of each, once most are older ones."""
    try:
        with workspace.finished.open("rb") as file:
            lines = sum(1 for _ in file)
    except FileNotFoundError:
        return
    if lines > 2 * len(entries := _read(workspace.finished)) + 100:
        write_finished(workspace, entries)


def write_finished(workspace: Workspace, entries: Mapping[str, Finished]) -> None:
    """Replaces the entries of a workspace."""
    with replacing(workspace.finished) as file:
        file.writelines(object_line(dumped(asdict(entry))) for entry in entries.values())
