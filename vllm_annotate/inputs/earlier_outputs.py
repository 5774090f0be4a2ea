"""Outputs of earlier runs that lie among the files of an input."""

import posixpath
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from vllm_annotate.storage.workspace import FOLDER_FORMAT, Workspace, written_by


def outputs_in(listed: Iterable[tuple[str, Iterable[str]]]) -> dict[str, list[str]]:
    """Outputs that runs wrote into folders of an input, and all that is theirs: work folders tell them.

    `listed` has folders, and the paths of the files below each. In an object store none is found.
    """
    folders = set[str]()
    for base, files in listed:
        for where in files:
            folder = posixpath.dirname(where)
            while "://" not in folder and folder.startswith(base) and folder not in folders:
                folders.add(folder)
                folder = posixpath.dirname(folder)
    works = (path.parent for folder in folders for path in Path(folder).glob("*.work/recipe.json"))
    found = (Workspace(work.with_suffix(_ending(work))) for work in works)
    return {str(each.output): [str(path) for path in written_by(each)] for each in found}


def _ending(work: Path) -> str:
    """That of the output of a work folder."""
    try:
        written = work.joinpath("format").read_text(errors="replace").strip()
    except OSError:  # of an earlier version
        return ".jsonl"
    return "" if written == str(FOLDER_FORMAT) else ".jsonl"


def of_outputs(files: Collection[str], outputs: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """The files that are outputs' or in their folders, each with its output."""
    owners = {path: output for output, paths in outputs.items() for path in paths}
    return {
        where: owner
        for where in files
        if owners and (owner := next((owners[path] for path in _with_folders(where) if path in owners), None))
    }


def _with_folders(where: str) -> Iterable[str]:
    while (folder := posixpath.dirname(where)) != where:
        yield where
        where = folder
