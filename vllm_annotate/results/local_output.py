"""An output to read: it is here, or in an object store and copied for as long as it is read."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from fsspec import AbstractFileSystem

from vllm_annotate.errors import UsageError
from vllm_annotate.results.written import BESIDE
from vllm_annotate.storage.disk_errors import disk_is_full, explained
from vllm_annotate.storage.locations import file_system, name_of, output_location, reaching, unreachable
from vllm_annotate.storage.packed import ENDINGS
from vllm_annotate.storage.state_folder import state_folder
from vllm_annotate.storage.uploads import upload, version_there
from vllm_annotate.storage.workspace import Workspace

READ_TOO = (".report.json", ".reviewed.jsonl", ".audit.jsonl", ".work/job.json")  # beside an output
GIB = 1 << 30


@dataclass(frozen=True)
class LocalOutput:
    """An output, and the path where it can be read."""

    where: Path | str
    path: Path
    versions: dict[str, str | None] = field(default_factory=dict)  # of what is beside it in the store, by name

    def publish(self, files: Sequence[Path]) -> list[Path | str]:
        """Uploads what was written beside a copy; returns where it is then.

        Raises OSError, ObjectChangedError if it is a file that was read and that another program has written meanwhile.
        """
        if isinstance(self.where, Path):
            return list(files)
        fs, there = file_system(self.where)
        with reaching(self.where):
            for file in files:
                target = f"{there.rpartition('/')[0]}/{file.name}"
                if file.name in self.versions:
                    upload(fs, file, target, self.versions[file.name])
                else:
                    fs.put_file(str(file), target)
        return [f"{self.where.rpartition('/')[0]}/{file.name}" for file in files]


def given_output(where: Path | str, option: str) -> Path | str:
    """Returns the location of an output that an option names. Raises UsageError."""
    try:
        found: Path | str = output_location(where)
    except ValueError as error:
        raise UsageError(f"{option} {str(where)!r}: {error}") from None
    return found


@contextmanager
def local_output(where: Path | str) -> Iterator[LocalOutput]:
    """The output at a path; or a copy of one at a URL, with report, reviewed rows and audit, which goes at the end.

    Raises UsageError if there is none, or no room for a copy.
    """
    if isinstance(where, Path):
        yield LocalOutput(where, where.expanduser())
        return
    store = state_folder() / "reading"
    try:
        store.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(dir=store)
    except OSError as error:
        raise UsageError(f"no copy of {where} can be made: {explained(error, store)}") from None
    with folder:
        path = Path(folder.name) / name_of(where)
        versions = _copy(where, path)
        try:
            yield LocalOutput(where, path, versions)
        except UsageError as error:  # it says where the copy is
            raise UsageError(str(error).replace(folder.name, where.rpartition("/")[0])) from None


def _copy(url: str, path: Path) -> dict[str, str | None]:
    """Returns the versions of what lies beside the output, and is copied too."""
    fs, there = file_system(url)
    try:
        with reaching(url):
            sizes = _files_of(fs, there)
            if not sizes:
                raise UsageError(f"output {url!r} has no .jsonl, .jsonl.zst or .parquet file: name the output of a run")
            _check_room(url, sum(sizes.values()), path.parent)
            copies = {name: Path(f"{path}{name.removeprefix(there)}") for name in sizes}
            stem = Workspace.of_file(Path(name_of(url))).output.stem
            beside = {stem + ending: f"{there.rpartition('/')[0]}/{stem}{ending}" for ending in READ_TOO}
            versions = {name: version_there(fs, remote) for name, remote in beside.items()}
            copies |= {beside[name]: path.parent / name for name, version in versions.items() if version is not None}
            for copy in copies.values():
                copy.parent.mkdir(parents=True, exist_ok=True)
            fs.get(list(copies), list(map(str, copies.values())))
            return versions
    except FileNotFoundError:
        raise UsageError(f"output {url!r} does not exist: name the output of a run") from None
    except OSError as error:
        if disk_is_full(error):
            raise UsageError(explained(error, path)) from None
        raise unreachable(url, error) from None


def _files_of(fs: AbstractFileSystem, there: str) -> dict[str, int]:
    """The objects of an output, with their sizes in bytes. Raises FileNotFoundError if there is nothing."""
    found = {name: int(info.get("size") or 0) for name, info in fs.find(there, detail=True).items()}
    if not found:
        raise FileNotFoundError(there)
    if there in found:
        return found
    outputs = (name for name in found if name.endswith(ENDINGS) and not name.endswith(BESIDE))
    return {name: found[name] for name in outputs}


def _check_room(url: str, size: int, folder: Path) -> None:
    if size > (free := shutil.disk_usage(folder).free):
        raise UsageError(
            f"output {url!r} has {size / GIB:.1f} GiB, and {folder.parent} has room for {free / GIB:.1f}: set "
            "XDG_STATE_HOME to a folder on a larger disk"
        )
