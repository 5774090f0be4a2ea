"""Local copies of a folder in an object store, and at which versions both were equal."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
from fsspec import AbstractFileSystem

from vllm_annotate.storage.atomic import append_line, read_json, replacing
from vllm_annotate.storage.downloads import download
from vllm_annotate.storage.file_states import file_version
from vllm_annotate.storage.uploads import remove, upload, version_there

Pair = tuple[str | None, list[int] | None]  # versions in the store and here when they last matched


class Copies:
    """The files below `folder`, which are those below `remote`. Transfers only what changed since both were equal."""

    def __init__(
        self, fs: AbstractFileSystem, remote: str, folder: Path, record: Path, stopped: threading.Event
    ) -> None:
        """`record` is the file with the versions. Setting `stopped` ends a download."""
        self.fs = fs
        self.folder = folder
        self._remote = remote
        self._record = record
        self._stopped = stopped
        self._seen: dict[str, Pair] = {}
        self._recording = threading.Lock()

    def read(self) -> None:
        """Reads the record, which has to be locked."""
        self._seen, lines = _read(self._record)
        if lines > 2 * len(self._seen) + 100 or not self._record.exists():
            with replacing(self._record) as file:
                file.writelines(_line(name, pair) for name, pair in self._seen.items())

    def name(self, path: Path) -> str:
        """The name of a file below both folders."""
        return str(path.relative_to(self.folder))

    def remote(self, path: Path) -> str:
        """The object of a local file."""
        return f"{self._remote}/{self.name(path)}"

    def found(self, folder: Path) -> list[str]:
        """The names of the objects below a folder, sorted."""
        return sorted(path.removeprefix(f"{self._remote}/") for path in self.fs.find(self.remote(folder)))

    def changed_there(self, path: Path) -> bool:
        """Whether an object is another one than when both were equal, or is there and the copy is not."""
        return self._is_other(path, version_there(self.fs, self.remote(path)))

    def _is_other(self, path: Path, version: str | None) -> bool:
        return version != self._of(self.name(path))[0] or (version is not None and not path.exists())

    def changed_here(self, path: Path) -> bool:
        """Whether the local file has changes that are not in the store."""
        return file_version(path) not in (None, self._of(self.name(path))[1])

    def is_uploaded(self, path: Path, name: str) -> bool:
        """Whether the object of this name has what the file has now."""
        return self._of(name)[1] == file_version(path)

    def fetch(self, path: Path) -> None:
        """Downloads a file that changed in the store; removes one that was removed there."""
        version = version_there(self.fs, self.remote(path))
        if not self._is_other(path, version):
            return
        if version is None:
            path.unlink(missing_ok=True)
        else:
            self.download(self.name(path), path)
        self._remember(self.name(path), version, file_version(path))

    def download(self, name: str, path: Path) -> None:
        """Copies an object to a path, whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        download(self.fs, f"{self._remote}/{name}", path, self._stopped)

    def push(self, path: Path, name: str = "") -> str | None:
        """Uploads a file that changed here; removes one that was removed here. Returns the version in the store.

        Raises ObjectChangedError if it changed in the store since.
        """
        name = name or self.name(path)
        there, published = self._of(name)
        here = file_version(path)
        if here == published:
            return there
        if here is None:
            remove(self.fs, f"{self._remote}/{name}", there)
            self._remember(name, None, None)
            return None
        version = upload(self.fs, path, f"{self._remote}/{name}", there)
        self._remember(name, version, here)
        return version

    def adopt(self, names: Sequence[str]) -> None:
        """Takes objects for earlier uploads from here: a kill can come between an upload and its record."""
        for name in names:
            version = version_there(self.fs, f"{self._remote}/{name}")
            if self._of(name)[0] != version:
                self._seen[name] = (version, None)

    def remove(self, name: str) -> None:
        """Removes an object, unless another run did."""
        with suppress(FileNotFoundError):
            self.fs.rm_file(f"{self._remote}/{name}")
        self._remember(name, None, None)

    def forget(self, path: Path) -> None:
        """Removes a local file, and not its object."""
        path.unlink(missing_ok=True)
        self._remember(self.name(path), None, None)

    def _of(self, name: str) -> Pair:
        return self._seen.get(name, (None, None))

    def _remember(self, name: str, there: str | None, here: list[int] | None) -> None:
        with self._recording:
            _set(self._seen, name, (there, here))
            append_line(self._record, _line(name, (there, here)))


def _set(seen: dict[str, Pair], name: str, pair: Pair) -> None:
    if pair == (None, None):
        seen.pop(name, None)
    else:
        seen[name] = pair


def _line(name: str, pair: Pair) -> bytes:
    return orjson.dumps([name, *pair]) + b"\n"


def _read(record: Path) -> tuple[dict[str, Pair], int]:
    """The recorded versions, and how many lines they take.

    Without what is damaged: such a file is downloaded again, and does not count as published.
    """
    seen: dict[str, Pair] = {}
    try:
        lines = record.read_bytes().splitlines()
    except FileNotFoundError:
        return {name: tuple(pair) for name, pair in _of_earlier_version(record).items()}, 0
    for line in lines:
        with suppress(ValueError, TypeError):
            name, there, here = orjson.loads(line)
            _set(seen, name, (there, here))
    return seen, len(lines)


def _of_earlier_version(record: Path) -> dict[str, Any]:
    try:
        seen = read_json(record.with_suffix(".json")) or {}
    except ValueError:
        return {}
    return {name: pair for name, pair in seen.items() if isinstance(pair, list) and len(pair) == 2}
