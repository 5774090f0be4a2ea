"""The images inside the files of an input, by image path: for pages, which show a few of them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from vllm_annotate.errors import ImageFailure, UsageError
from vllm_annotate.inputs.inside import DEFAULT_COLUMN, Inside, image_root_at, open_inside
from vllm_annotate.inputs.listing import InputFile, list_inputs, names_one_file
from vllm_annotate.storage.image_roots import ImageRoot
from vllm_annotate.storage.locations import location, locations
from vllm_annotate.storage.output_paths import names_folder
from vllm_annotate.storage.workspace import own_paths

OPEN_FILES = 4


def images_inside(fields: Mapping[str, Any]) -> ImageRoot | None:
    """The images of a job with these fields, which are inside its input; None if it has no input. Raises UsageError."""
    if not (given := fields.get("input")):
        return None
    column = fields.get("image_column", DEFAULT_COLUMN)
    found = locations(given)
    if names_one_file(found):
        return image_root_at(found, column)
    own = own_paths(location(fields["output"])) if fields.get("output") else ()
    return InputImages(list_inputs(found, own).files, column)


def images_at(where: Path | str, fields: Mapping[str, Any]) -> ImageRoot:
    """The images of a job with these fields at a path or URL: it is their folder, or its input lies there now.

    Raises UsageError.
    """
    column, output = fields.get("image_column", DEFAULT_COLUMN), fields.get("output")
    if output and names_folder(output) and not fields.get("image_root"):
        with suppress(UsageError):  # they may be unpacked there
            return InputImages(list_inputs(where).files, column)
    return image_root_at(where, column)


class InputImages:
    """The images of files with images inside. An image path begins with the name of its file."""

    def __init__(self, files: Iterable[InputFile], image_column: str) -> None:
        self._files = {file.name: file for file in files}
        self._image_column = image_column
        self.is_remote = any(isinstance(file.where, str) for file in self._files.values())
        self._opened = lru_cache(maxsize=OPEN_FILES)(self._open)

    def __str__(self) -> str:
        return f"the {len(self._files):,} files of the input"

    def read(self, image_path: str, max_bytes: int) -> bytes:
        """Returns the first bytes of an image. Raises ImageFailure and OSError."""
        inside = self._inside(image_path)
        if inside is None:
            raise ImageFailure("missing", f"{image_path!r:.300} does not begin with the name of a file of the input")
        return inside.read(image_path, max_bytes)

    def in_turn(self, image_paths: Sequence[str]) -> Iterable[int]:
        """File by file, so that each is opened once."""
        by_name: defaultdict[str, list[int]] = defaultdict(list)
        for number, path in enumerate(image_paths):
            by_name[self._name_in(path)].append(number)
        for name, numbers in by_name.items():
            try:
                inside = self._opened(name) if name else None
            except ImageFailure:
                inside = None
            places = range(len(numbers)) if inside is None else inside.in_turn([image_paths[at] for at in numbers])
            yield from (numbers[place] for place in places)

    def is_empty(self) -> bool:
        """Whether there are no files."""
        return not self._files

    def has(self, image_path: str) -> bool:
        """Whether a file has this image."""
        try:
            inside = self._inside(image_path)
        except ImageFailure:
            return False
        return inside is not None and inside.has(image_path)

    def _inside(self, image_path: str) -> Inside | None:
        name = self._name_in(image_path)
        return self._opened(name) if name else None

    def _name_in(self, image_path: str) -> str:
        ends = [at for at, character in enumerate(image_path) if character == "/"]
        names = (image_path[:end] for end in reversed([*ends, len(image_path)]))
        return next((name for name in names if name in self._files), "")

    def _open(self, name: str) -> Inside | None:
        where = self._files[name].where
        if isinstance(where, str):  # nearly all of it would be read again
            raise ImageFailure("missing", "images inside files of an object store are not shown")
        try:
            return open_inside(where, self._image_column, name=name, prefixed=True)
        except UsageError as error:
            raise ImageFailure("unreadable", str(error)) from None
