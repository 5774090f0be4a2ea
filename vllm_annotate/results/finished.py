"""Which input files of a folder are finished: their entries tell a run what it need not open."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vllm_annotate.inputs.listing import InputFile
from vllm_annotate.inputs.plan_file import Counts
from vllm_annotate.storage.atomic import replacing, sync_folder
from vllm_annotate.storage.file_states import Version, file_version
from vllm_annotate.storage.json_text import dumped, object_line
from vllm_annotate.storage.workspace import Workspace


@dataclass(frozen=True)
class Finished:
    """An input file whose images all have an answer or a failure."""

    name: str
    version: list[int] | str | None
    output: list[int] | None  # version of the file with its answers
    columns: dict[str, str]  # that it was read with
    selected: dict[str, int]  # which of its images
    counts: Counts
    rows: int  # lines of the file with its answers
    failures: dict[str, int] = field(default_factory=dict)  # by kind


FINISHED = TypeAdapter(Finished)


def read_finished(workspace: Workspace) -> dict[str, Finished]:
    """Returns the last entry of each name. Without those that are damaged: such a file is planned again."""
    found = {}
    try:
        lines = workspace.finished.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    for line in lines:
        try:
            entry = FINISHED.validate_json(line)
        except ValidationError:
            continue
        found[entry.name] = entry
    return found


def is_current(entry: Finished | None, file: InputFile, workspace: Workspace, like: Mapping[str, Any]) -> bool:
    """Whether a file needs no look: nothing failed, and neither it, its output nor how it is read has changed."""
    if entry is None or entry.failures or (entry.columns, entry.selected) != (like["columns"], like["selected"]):
        return False
    output: Version = file_version(workspace.output / file.output_name)
    return entry.version == file.version and entry.output == output


def note_finished(workspace: Workspace, entry: Finished) -> None:
    """Appends an entry, after a line that a kill may have cut off."""
    with workspace.finished.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        torn = size > 0 and file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + object_line(dumped(asdict(entry))))
        file.flush()
        os.fsync(file.fileno())
    if not size:
        sync_folder(workspace.work)


def compact(workspace: Workspace, entries: Mapping[str, Finished]) -> None:
    """Replaces the entries with the last of each, once most are older ones."""
    try:
        with workspace.finished.open("rb") as file:
            lines = sum(1 for _ in file)
    except FileNotFoundError:
        return
    if lines > 2 * len(entries) + 100:
        with replacing(workspace.finished) as file:
            file.writelines(object_line(dumped(asdict(entry))) for entry in entries.values())
