"""Finishes the output of an input file: from its state folder to its place in the output folder, at once."""

import errno
import os
import shutil
from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.plan import POLARS_ERRORS
from vllm_annotate.inputs.source import done_paths
from vllm_annotate.results.append import appending
from vllm_annotate.results.lines import path_of
from vllm_annotate.results.merge import append_unplanned
from vllm_annotate.results.table import add_rows, check_columns
from vllm_annotate.storage.atomic import replacing, replacing_path, sync_folder
from vllm_annotate.storage.file_states import Version, file_state, file_version
from vllm_annotate.storage.packed import TABLE, add_frame
from vllm_annotate.storage.workspace import Workspace


def publish(workspace: Workspace, outputs: Sequence[Version]) -> Workspace:
    """Moves the grown output of an input file to its final path, synced; returns the workspace with that path.

    `outputs` are the versions of its outputs as they were planned. Raises UsageError if another program has put a file
    there meanwhile.
    """
    final, growing = workspace.final, workspace.output
    if final is None or final == growing:
        return workspace
    _make_folder(final.parent)
    if file_version(final) != (outputs[1] if workspace.is_packed else None):
        raise UsageError(f"another program has written {final}: run again; its rows count as answered")
    if workspace.is_packed:
        if growing.stat().st_size or not final.exists():
            (add_rows if final.suffix == TABLE else add_frame)(final, growing)
        growing.unlink()
        return replace(workspace, output=final)
    try:
        growing.rename(final)
    except OSError as error:
        if error.errno != errno.EXDEV:  # the output folder is on another file system
            raise
        with replacing_path(final) as path:
            shutil.copyfile(growing, path)
        growing.unlink()
    sync_folder(final.parent)
    return replace(workspace, output=final)


def settle_growing(workspace: Workspace) -> None:
    """Appends grown answers to an output that was put at their final path meanwhile.

    Of grown answers that are compressed later, removes those that the final output has already. Raises UsageError if a
    final output cannot be added to.
    """
    growing, final = workspace.work / "growing.jsonl", workspace.final
    if final is None or not final.exists():
        return
    try:
        if final.suffix == TABLE:
            check_columns(final)
        if workspace.is_packed:
            if growing.exists():
                _leave_out(growing, set(done_paths(final).collect()["image_path"]))
            return
    except POLARS_ERRORS as error:
        raise UsageError(f"{final} is truncated or corrupt ({error!s:.200}): restore it") from None
    if not growing.exists():
        return
    with appending(workspace, file_state(workspace.output)) as output:
        append_unplanned(workspace, [growing], output)
    growing.unlink()


def _leave_out(growing: Path, image_paths: Container[str | None]) -> None:
    with growing.open("rb") as lines, replacing(growing) as file:
        file.writelines(line for line in lines if path_of(line) not in image_paths)


def _make_folder(folder: Path) -> None:
    """Makes a folder and those above it, so that they survive a power loss."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def remove_state(workspace: Workspace) -> None:
    """Removes the state folder of a finished input file; its failures stay."""
    if not workspace.failures.exists():
        workspace.remove_work()
        return
    for path in workspace.work.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path not in (workspace.failures, workspace.lock):
            path.unlink(missing_ok=True)


def remove_leftovers(workspace: Workspace) -> None:
    """Removes what is left of states whose removal a kill cut off."""
    for path in workspace.states.glob(".*.unfinished.*"):
        shutil.rmtree(path, ignore_errors=True)


def compose_failures(whole: Workspace, files: Iterable[Workspace]) -> None:
    """Replaces the failures file of a folder with the failures of these input files; removes it if there are none."""
    with replacing(whole.failures) as file:
        for workspace in files:
            if workspace.failures.is_file():
                with workspace.failures.open("rb") as failures:
                    shutil.copyfileobj(failures, file)
    if not whole.failures.stat().st_size:
        os.unlink(whole.failures)  # noqa: PTH108
        sync_folder(whole.failures.parent)
