"""The shards of an output at a path or URL, and their files."""

import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vllm_annotate.errors import UsageError
from vllm_annotate.results.files import Files
from vllm_annotate.results.folder_mirror import FolderMirror
from vllm_annotate.results.mirror import Mirror, RemoteFiles
from vllm_annotate.storage.locations import file_system, name_of, reaching
from vllm_annotate.storage.output_paths import names_folder
from vllm_annotate.storage.shard import Shard, shards_folder
from vllm_annotate.storage.workspace import Workspace

OPENED_AT_ONCE = 16


@contextmanager
def shard_files(output: Path | str, say: Callable[[str], None]) -> Iterator[list[Files]]:
    """The files of an output, followed by those of its shards."""
    if isinstance(output, Path):
        whole = Workspace.at(output)
        yield [Files(whole), *(Files(whole.of_shard(Shard(*shard))) for shard in sorted(shards_begun(output)))]
        return
    stopped = threading.Event()
    of_kind = FolderMirror if names_folder(output) else Mirror
    files: list[RemoteFiles] = [of_kind(output, "", say, stopped)]
    files += [of_kind(output, f"{n}/{of}", say, stopped, with_whole=False) for n, of in sorted(shards_begun(output))]
    with ExitStack() as mirrors:
        with ThreadPoolExecutor(OPENED_AT_ONCE) as threads:  # each lease of a dead run takes a minute
            opening = [threads.submit(mirrors.enter_context, mirror) for mirror in files]
            try:
                for each in opening:
                    each.result()
            except BaseException:
                stopped.set()
                threads.shutdown(cancel_futures=True)  # waits for mirrors being entered, which `mirrors` then exits
                raise
        yield list(files)


def shards_begun(output: Path | str) -> set[tuple[int, int]]:
    """Returns (number, count) of the shards of an output that a run has started."""
    folder = str(output).removesuffix(".jsonl") + ".shards"
    try:
        if isinstance(output, Path):
            names = os.listdir(shards_folder(Workspace.at(output).output))  # noqa: PTH208 - only names are needed
        else:
            fs, path = file_system(folder)
            with reaching(folder):
                names = [name_of(name) for name in fs.ls(path, detail=False)]
    except FileNotFoundError:
        return set()
    found = (re.match(r"(\d+)-of-(\d+)\.", name) for name in names)
    return {(int(match[1]), int(match[2])) for match in found if match}


def shards_left(output: Path | str) -> set[tuple[int, int]]:
    """Returns (number, count) of the shards of an output with answers or failures, merged into the shard or not."""
    folder = str(output).removesuffix(".jsonl") + ".shards"
    if isinstance(output, Path):
        folder = str(shards_folder(Workspace.at(output).output))
        names = [path.as_posix() for path in Path(folder).glob("**/*.jsonl") if path.stat().st_size]
    else:
        fs, path = file_system(folder)
        with reaching(folder):
            names = [name for name, info in fs.find(path, detail=True).items() if info["size"]]
    found = (re.search(r"/(\d+)-of-(\d+)(?:\.failures)?(?:\.jsonl|\.work/parts/.*\.jsonl)$", name) for name in names)
    return {(int(match[1]), int(match[2])) for match in found if match}


def check_count(output: Path | str, count: int = 0) -> None:
    """Raises UsageError if shards of another count hold answers, which this run would request again.

    Without a count, it is a run of the whole.
    """
    if others := {of for _, of in shards_left(output)} - {count}:
        raise UsageError(
            f"{output} has unmerged answers from a run in {min(others)} shards: go on with {min(others)} shards, or "
            "merge them first (vllm-annotate merge-shards)"
        )
