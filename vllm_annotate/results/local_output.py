"""An output to read: it is here, or in an object store and copied for as long as it is read."""

import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from fsspec import AbstractFileSystem

from vllm_annotate.errors import UsageError
from vllm_annotate.job import remembered_job
from vllm_annotate.storage.atomic import write_json
from vllm_annotate.storage.disk_errors import disk_is_full, explained
from vllm_annotate.storage.downloads import POLL_SECONDS, download
from vllm_annotate.storage.locations import file_system, name_of, output_location, reaching, unreachable, without_login
from vllm_annotate.storage.lock import AlreadyLockedError, locked
from vllm_annotate.storage.packed import BESIDE, ENDINGS
from vllm_annotate.storage.state_folder import state_folder
from vllm_annotate.storage.uploads import upload, version_there
from vllm_annotate.storage.workspace import Workspace

READ_TOO = (".report.json", ".reviewed.jsonl", ".audit.jsonl")  # beside an output
AT_ONCE = 8  # objects that are copied
LEFT_SECONDS = 600.0  # a copy this old that nobody holds is of a killed process
GIB = 1 << 30


@dataclass(frozen=True)
class LocalOutput:
    """An output, and the path where it can be read."""

    where: Path | str
    path: Path
    versions: Mapping[str, str | None] = field(default_factory=dict)  # of what is beside it in the store, by name

    def publish(self, files: Sequence[Path], instead: Path | None = None) -> list[Path | str]:
        """Uploads what was written beside a copy; returns where it is then.

        A store that refuses costs nothing where there is a folder for the files `instead`. Else raises OSError, and
        ObjectChangedError if it is a file that was read and that another program has written meanwhile.
        """
        if isinstance(self.where, Path):
            return list(files)
        fs, there = file_system(self.where)
        try:
            with reaching(self.where):
                if self.where.startswith(("http:", "https:")):
                    raise PermissionError(f"{self.where} can only be read")
                for file in files:
                    target = f"{there.rpartition('/')[0]}/{file.name}"
                    if file.name in self.versions:
                        upload(fs, file, target, self.versions[file.name])
                    else:
                        fs.put_file(str(file), target)
        except OSError:
            if instead is None:
                raise
            return [Path(shutil.copy(file, instead)) for file in files]
        return [f"{self.where.rpartition('/')[0]}/{file.name}" for file in files]


def given_output(where: Path | str, option: str) -> Path | str:
    """Returns the location of an output that an option names. Raises UsageError."""
    try:
        found: Path | str = output_location(where)
    except ValueError as error:
        raise UsageError(f"{option} {without_login(str(where))!r}: {error}") from None
    return found


@contextmanager
def local_output(where: Path | str, stopped: threading.Event | None = None) -> Iterator[LocalOutput]:
    """The output at a path; or a copy of one at a URL, with report, reviewed rows and audit, which goes at the end.

    Setting `stopped` ends the copying. Raises UsageError if there is none, or no room for a copy.
    """
    if isinstance(where, Path):
        yield LocalOutput(where, where.expanduser())
        return
    with _folder(where) as folder:
        path = folder / name_of(where)
        versions = _copy(where, path, stopped or threading.Event())
        try:
            yield LocalOutput(where, path, versions)
        except UsageError as error:  # it says where the copy is
            raise UsageError(str(error).replace(str(folder), where.rpartition("/")[0])) from None


@contextmanager
def _folder(url: str) -> Iterator[Path]:
    """A folder for a copy, locked; those of killed processes go."""
    store = state_folder() / "reading"
    try:
        store.mkdir(parents=True, exist_ok=True)
        for left in store.iterdir():
            with suppress(OSError, AlreadyLockedError):
                if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                    with locked(left / "lock"):
                        shutil.rmtree(left)
        folder = Path(mkdtemp(dir=store))
    except OSError as error:
        raise UsageError(f"no copy of {url} can be made: {explained(error, store)}") from None
    try:
        with locked(folder / "lock"):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy(url: str, path: Path, stopped: threading.Event) -> dict[str, str | None]:
    """Returns the versions of what lies beside the output, and is copied too."""
    fs, there = file_system(url)
    stem = Workspace.of_file(path).output.stem
    try:
        with reaching(url):
            sizes = _files_of(fs, there, url)
            if not sizes:
                raise UsageError(f"output {url!r} has no .jsonl, .jsonl.zst or .parquet file: name the output of a run")
            _check_room(url, sum(sizes.values()), path.parent)
            copies = {name: Path(f"{path}{name.removeprefix(there)}") for name in sizes}
            beside = {stem + ending: f"{there.rpartition('/')[0]}/{stem}{ending}" for ending in READ_TOO}
            versions = {name: version_there(fs, remote) for name, remote in beside.items()}
            copies |= {beside[name]: path.parent / name for name, version in versions.items() if version is not None}
            _download(fs, copies, stopped)
        job = Workspace.of_file(path).job
        job.parent.mkdir(exist_ok=True)
        write_json(job, _job_of(url))
    except FileNotFoundError:
        raise UsageError(f"output {url!r} does not exist: name the output of a run") from None
    except OSError as error:
        if disk_is_full(error) or str(error.filename or "").startswith(str(path.parent)):
            raise UsageError(f"no copy of {url} can be made: {explained(error, path)}") from None
        raise unreachable(url, error) from None
    return versions


def _download(fs: AbstractFileSystem, copies: Mapping[str, Path], stopped: threading.Event) -> None:
    for folder in {copy.parent for copy in copies.values()}:
        folder.mkdir(parents=True, exist_ok=True)
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        left = {pool.submit(download, fs, name, copy, stopped) for name, copy in copies.items()}
        while left:
            # Not without a time: Polars handles SIGINT too, and has the kernel go on with a wait that it interrupts.
            done, left = wait(left, POLL_SECONDS, FIRST_EXCEPTION)
            for each in done:
                each.result()
    except BaseException:  # Ctrl-C, too: nothing may be written into a folder that goes
        stopped.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _files_of(fs: AbstractFileSystem, there: str, url: str) -> dict[str, int]:
    """The objects of an output, with their sizes in bytes. Raises FileNotFoundError if there is nothing."""
    if (info := fs.info(there))["type"] == "file":
        return {there: int(info.get("size") or 0)}
    found = {name: int(info.get("size") or 0) for name, info in fs.find(there, detail=True).items()}
    outputs = [name for name in found if name.endswith(ENDINGS) and not name.endswith(BESIDE)]
    for name in outputs:
        if not {"", ".", ".."}.isdisjoint(name.removeprefix(f"{there}/").split("/")):  # keys may be anything
            raise UsageError(f"output {url!r} has an object {name!r}, whose name no path can have: rename it")
    return {name: found[name] for name in outputs}


def _job_of(url: str) -> dict[str, Any]:
    """The job that wrote an output, or the folder that it is in; nothing if no run did."""
    while url.count("/") > 2:  # those of a URL without a path
        if job := remembered_job(url):
            return job
        url = url.rpartition("/")[0]
    return {}


def _check_room(url: str, size: int, folder: Path) -> None:
    if size > (free := shutil.disk_usage(folder).free):
        raise UsageError(
            f"output {url!r} has {size / GIB:.1f} GiB, and {folder.parent} has room for {free / GIB:.1f}: set "
            "XDG_STATE_HOME to a folder on a larger disk"
        )
