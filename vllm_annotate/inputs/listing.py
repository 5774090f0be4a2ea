"""The input files of a run: of a file, a glob, a folder or a list of these, here or in an object store."""

import glob
import os
import posixpath
import re
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from heapq import heapify, heapreplace
from math import log
from pathlib import Path
from typing import Any

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.earlier_outputs import of_outputs, outputs_in
from vllm_annotate.inputs.ranks import rank_of
from vllm_annotate.storage.file_states import Version, file_version
from vllm_annotate.storage.locations import WILD, Given, file_system, reaching, unreachable, version_of
from vllm_annotate.storage.packed import BESIDE
from vllm_annotate.storage.shard import Shard

Found = tuple[str, Version, int]  # where, version and size in bytes
SAMPLED_FILES = 20  # that a sample is drawn from, at most: each is read whole, and a corpus may have thousands
ENDING = re.compile(
    r"\.(?:(?P<jsonl>(?:jsonl|ndjson)(?:\.gz|\.zst)?)|(?P<parquet>parquet|pq|parq)|(?P<tar>tar))$", re.I
)
SAYS = "give a .jsonl (also .gz, .zst), .parquet or .tar file"


def output_name(name: str, output_format: str = "jsonl") -> str:
    """The name of the output file of an input file of this name, in one of the forms that it may have."""
    return f"{ENDING.sub('', name)}.{output_format}"


@dataclass(frozen=True)
class InputFile:
    """A file of the input. Its name is its path below the folder that all files of the input have in common."""

    name: str
    where: Path | str
    version: Version
    size: int  # bytes
    output_format: str = "jsonl"  # of its output when it is new
    sample: int = 0  # its share of a sample, images

    @property
    def output_name(self) -> str:
        """The name of its answers below the output folder, when they are new."""
        return output_name(self.name, self.output_format)

    @property
    def form(self) -> str:
        """What its name says: jsonl, parquet or tar."""
        found = ENDING.search(self.name)
        return next((form for form, ending in found.groupdict().items() if ending), "") if found else "jsonl"


@dataclass(frozen=True)
class Inputs:
    """The files of an input, sorted by name, below a common folder."""

    folder: str  # ends with a slash
    files: list[InputFile]
    of_runs: Sequence[str] = ()  # outputs of earlier runs, which are no inputs

    def has(self, name: str) -> bool:
        """Whether a file of this name is there, given or not; in an object store that is not looked up."""
        return "://" in self.folder or Path(self.folder, name).is_file()

    def sampled(self, sample: int, seed: int) -> "Inputs":
        """The same files, some of them with shares of a sample.

        Of many files some are drawn at random, the larger ones more often, and have equal shares; few have shares by
        their sizes: each image of the whole is about as likely as another. With a larger sample no share is smaller.
        """
        by_chance = sorted(self.files, key=lambda file: -log(_chance(file.name, seed)) / max(1, file.size))
        is_all = len(self.files) <= SAMPLED_FILES
        weights = [(file.name, max(1, file.size) if is_all else 1) for file in by_chance[:SAMPLED_FILES]]
        shares = _dealt(sample, weights)
        return replace(self, files=[replace(file, sample=shares.get(file.name, 0)) for file in self.files])

    def bytes_for_drawn_one(self, unread: Container[str] = ()) -> float:
        """How many bytes all files have for each of those that were drawn for a sample and read; 1 without one."""
        drawn = sum(file.size for file in self.files if file.sample and file.name not in unread)
        return sum(file.size for file in self.files) / drawn if drawn else 1.0

    def of_shard(self, shard: Shard) -> "Inputs":
        """The files that a shard has to do: dealt in turn, so that shards have equally many.

        Raises UsageError if it has none.
        """
        if shard.count > len(self.files):
            raise UsageError(
                f"there are {len(self.files)} input files and {shard.count} shards, and each shard needs a file: use "
                f"at most {len(self.files)} shards; to split one file, run it alone, with an output that ends in .jsonl"
            )
        return replace(self, files=self.files[shard.number - 1 :: shard.count])


def _dealt(count: int, weights: Sequence[tuple[str, int]]) -> dict[str, int]:
    """Deals a number out by weights (Sainte-Laguë): with one more, no share is smaller."""
    next_ones = [(1 / weight, place, name, weight) for place, (name, weight) in enumerate(weights)]
    heapify(next_ones)
    shares = dict.fromkeys((name for name, _ in weights), 0)
    for _ in range(count):
        _, place, name, weight = next_ones[0]
        shares[name] += 1
        heapreplace(next_ones, ((2 * shares[name] + 1) / weight, place, name, weight))
    return shares


def _chance(name: str, seed: int) -> float:
    """A number over 0, at most 1, that a name has in the samples of this seed."""
    return (rank_of(name, seed) + 1) / 2**64


def names_one_file(given: Given) -> bool:
    """Whether an input names one file: no list of several, no glob and no folder."""
    if isinstance(given, list):
        return len(given) == 1 and names_one_file(given[0])
    if isinstance(given, Path):
        path = given.expanduser()
        return path.is_file() or not (path.is_dir() or WILD.search(str(given)))
    return not (given.endswith("/") or "*" in given or "[" in given)


def list_inputs(given: Given, but: Sequence[Path | str] = ()) -> Inputs:
    """Returns the files of an input, without those that are, or are in, other paths: the output's own.

    Raises UsageError if there are none, if they are of several forms, or if two would have one output file.
    """
    items = given if isinstance(given, list) else [given]
    listed = [_here(item) if isinstance(item, Path) else _there(item) for item in items]
    places = {found[0]: found for _, files in listed for found in files}
    real = lru_cache(os.path.realpath)
    for where in list(places):  # links may lead into an output
        folder, name = os.path.split(where)
        place = where if "://" in where else f"{real(folder)}/{name}"
        if any(f"{place}/".startswith(f"{path}/") for path in but):
            del places[where]
    earlier = outputs_in((base, [where for where, _, _ in files]) for base, files in listed)
    of_earlier = of_outputs(places, earlier)
    if len(of_earlier) < len(places):  # else they are meant; a list may be what a shell made of a pattern
        places = {where: found for where, found in places.items() if where not in of_earlier}
    else:
        of_earlier = {}
    if not places:
        raise UsageError(f"input {shown(given)!r} has no files: {SAYS}, or a folder of them")
    folder = _common_folder([base for base, _ in listed])
    local = all(isinstance(item, Path) for item in items)
    files = [
        InputFile(where[len(folder) :], Path(where) if local else where, version, size)
        for where, version, size in places.values()
    ]
    files = _without_tables_of_tars(sorted(files, key=lambda file: file.name))
    _check(files, folder)
    return Inputs(folder, files, sorted(set(of_earlier.values())))


def shown(given: Given) -> str:
    """The input in words."""
    return ", ".join(map(str, given)) if isinstance(given, list) else str(given)


def _common_folder(folders: Sequence[str]) -> str:
    """The folder that all are in or are, with a slash at its end. Raises UsageError if there is none."""
    first, *others = (folder.split("/") for folder in folders)
    count = min((_equal(first, other) for other in others), default=len(first))
    if count < (1 if first[0] == "" else 3):  # a URL begins with its scheme, nothing and a bucket
        raise UsageError(f"inputs {folders[0]!r} and {folders[1]!r} have no folder in common: run them one by one")
    return "/".join(first[:count]).rstrip("/") + "/"


def _equal(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts at the beginning are equal."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _without_tables_of_tars(files: list[InputFile]) -> list[InputFile]:
    """The tars alone, if each Parquet file is of one of them: img2dataset writes its rows beside a tar."""
    tars = {ENDING.sub("", file.name) for file in files if file.form == "tar"}
    of_tars = all(
        file.form == "tar" or (file.form == "parquet" and ENDING.sub("", file.name) in tars) for file in files
    )
    return [file for file in files if file.form == "tar"] if tars and of_tars else files


def _check(files: Sequence[InputFile], folder: str) -> None:
    for file in files:
        if not {"", ".", ".."}.isdisjoint(file.name.split("/")):  # keys of an object store may be anything
            raise UsageError(
                f"the input file {file.name!r} has an empty, '.' or '..' part in its name, which no path can have: "
                "rename it"
            )
        try:
            file.name.encode()
        except UnicodeEncodeError:
            raise UsageError(f"the name {file.name!r} is not UTF-8: rename the file or folder") from None
        if file.output_name.endswith(BESIDE):
            raise UsageError(
                f"the answers to {file.name!r} would be in {file.output_name!r}, which is a name of other files of a "
                "run: rename the input file"
            )
    forms = {file.form: file.name for file in reversed(files)}
    if len(forms) > 1:
        names = " and ".join(f"{name!r} ({form})" for form, name in sorted(forms.items(), key=lambda item: item[1])[:2])
        ending = files[0].name.rpartition(".")[2]
        raise UsageError(
            f"the input has files of several forms, {names}: give those of one form, such as '{folder}*.{ending}'"
        )
    ((output_name, times),) = Counter(file.output_name for file in files).most_common(1)
    if times > 1:
        one, other, *_ = (file.name for file in files if file.output_name == output_name)
        raise UsageError(
            f"the answers to {one!r} and {other!r} would both be in {output_name!r}: rename one, or run them into two "
            "outputs"
        )


def _here(item: Path) -> tuple[str, list[Found]]:
    """The folder of a file, a folder itself or what a glob begins with; and the files."""
    path = Path(os.path.abspath(item.expanduser()))  # noqa: PTH100 - links keep their names
    if path.is_file():
        base, found = path.parent, [str(path)]
    elif path.is_dir():
        base, found = path, list(_below(path))
    elif WILD.search(str(item)):
        fixed = next(at for at, part in enumerate(path.parts) if WILD.search(part))
        base = Path(*path.parts[:fixed])
        found = [name for name in glob.glob(str(path), recursive=True) if os.path.isfile(name)]  # noqa: PTH113, PTH207
    else:
        braces = "; braces are no pattern: write * or ?, such as '*.tar'" if "{" in str(item) else ""
        raise UsageError(f"input {str(item)!r} does not exist: {SAYS}{braces}")
    versions = ((name, file_version(Path(name))) for name in found)
    return str(base), [(name, version, version[0]) for name, version in versions if version is not None]


def _below(folder: Path) -> Iterator[str]:
    seen = set[tuple[int, int]]()  # links may lead in circles
    for where, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        status = os.stat(where)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if ENDING.search(name) and not name.startswith("."):
                yield os.path.join(where, name)  # noqa: PTH118


def _refuse(error: OSError) -> None:
    raise UsageError(f"input folder {error.filename} cannot be read: {error.strerror}; change its permissions")


def _there(url: str) -> tuple[str, list[Found]]:
    """The same in an object store."""
    fs, path = file_system(url)
    found: dict[str, Any]
    try:
        with reaching(url):
            if wild := WILD.search(path):
                base, found = posixpath.dirname(path[: wild.start()]), fs.glob(path, detail=True)
            elif ENDING.search(path):
                base, found = posixpath.dirname(path), {path: fs.info(path)}
            else:
                base = path.rstrip("/")
                found = {name: info for name, info in fs.find(path, detail=True).items() if ENDING.search(name)}
            for name, info in found.items():
                if info.get("size") is None and info.get("type") == "file":  # as a web server lists it
                    found[name] = info | fs.info(name)
    except FileNotFoundError:
        raise UsageError(f"input {url!r} does not exist: {SAYS}") from None
    except OSError as error:
        raise unreachable(url, error) from None
    files = (info | {"name": name} for name, info in found.items() if info.get("type") == "file")
    return str(fs.unstrip_protocol(base)), [
        (str(fs.unstrip_protocol(info["name"])), version_of(info), int(info.get("size") or 0))
        for info in files
        if not posixpath.basename(info["name"]).startswith(".")
    ]
