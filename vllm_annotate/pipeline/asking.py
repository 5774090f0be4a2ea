"""Asks a sample of an output again: a run of its own for each further answer, beside the output."""

import errno
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_annotate.errors import ImageFailure, UsageError
from vllm_annotate.evaluation.audit_sample import Sampled
from vllm_annotate.images.files import FILE_ERRORS, read_image
from vllm_annotate.inputs.input_images import InputImages
from vllm_annotate.job import Job, images_of
from vllm_annotate.pipeline.annotating import Logger
from vllm_annotate.pipeline.without_prefect import annotate
from vllm_annotate.recipe.settings import Recipe
from vllm_annotate.results.lines import path_of
from vllm_annotate.serving.settings import Server
from vllm_annotate.storage.atomic import replacing
from vllm_annotate.storage.json_text import dumped, json_object, object_line
from vllm_annotate.storage.workspace import Workspace

SEEDS = 2**31  # how many there are


@dataclass(frozen=True)
class Asking:
    """How a sample is asked again. The folder is another one for other settings: their answers never mix."""

    job: Job  # that of the output
    asks: int
    temperature: float
    inside: InputImages | None = None  # where images are that have no image root

    @property
    def folder(self) -> Path:
        """Where the answers are."""
        server = self.job.server or Server()
        recipe = self._recipe(0).model_dump(mode="json")
        images = images_of(self.job.without_secrets())
        settings = json.dumps([recipe, server.model, sorted(server.urls()), images], sort_keys=True).encode()
        assert isinstance(self.job.output, Path)  # noqa: S101 - for the type checker
        return Workspace.at(self.job.output).asked_again / hashlib.sha256(settings).hexdigest()[:8]

    @property
    def first(self) -> Path:
        """The sampled rows, as they are in the output."""
        return self.folder / "sample.jsonl"

    @property
    def others(self) -> list[Path]:
        """The outputs with the other answers."""
        return [self.folder / f"ask-{number}.jsonl" for number in range(1, self.asks + 1)]

    async def run(self, rows: Sequence[Sampled], logger: Logger) -> bool:
        """Asks what has no answer yet; returns whether all are answered. Raises UsageError and ServerFault."""
        self._write(rows)
        finished = True
        for number, output in enumerate(self.others, start=1):
            logger.info("Answer %d of %d to %d sampled images", number, self.asks, len(rows))
            report = await annotate(self._job(number, output), logger)
            finished = finished and not (report.images.failed or report.failed_chunks)
        return finished

    def _job(self, number: int, output: Path) -> Job:
        fields = {name: getattr(self.job, name) for name in Job.model_fields}
        asked = {"input": self._questions, "output": output, "recipe": self._recipe(number)}
        columns: dict[str, Any] = {"caption_column": "caption"}
        root = self.job.image_root if self.inside is None else self._copies
        if isinstance(root, Path) and root.expanduser().is_dir():
            columns |= {"image_root": root, "image_column": "image_path"}
        whole = {"shard": "", "limit": 0, "sample": 0}
        return Job(**{**fields, **asked, **columns, **whole})

    def _recipe(self, number: int) -> Recipe:
        """With another seed than the output's and the other answers': a request that is sent again says nothing."""
        recipe = self.job.recipe or Recipe()
        seed = ((recipe.seed or 0) + number) % SEEDS
        return recipe.model_copy(update={"temperature": self.temperature, "seed": seed})

    @property
    def _questions(self) -> Path:
        return self.folder / "input.jsonl"

    @property
    def _copies(self) -> Path:
        """Copies of the images of the sample, if they are inside several files."""
        return self.folder / "images"

    def _write(self, rows: Sequence[Sampled]) -> None:
        captions = {row.image_path: row.caption for row in rows}
        for output in self.others:
            _check_captions(output, captions)
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.first) as file:
            file.writelines(row.line for row in rows)
        with replacing(self._questions) as file:
            file.writelines(object_line(dumped(row.question)) for row in rows)
        if self.inside is not None:
            copy_images(self.inside, [row.image_path for row in rows], self._copies)


def copy_images(images: InputImages, image_paths: Sequence[str], folder: Path) -> None:
    """Copies images that are inside files to these paths below a folder. One that cannot be read is missing there.

    Raises UsageError if that is true of all.
    """
    folder.mkdir(exist_ok=True)
    copied = 0
    for number in images.in_turn(image_paths):
        copy = folder / image_paths[number]
        try:
            if copy.resolve().is_relative_to(folder.resolve()) and not copy.exists():
                content = read_image(images, image_paths[number])
                copy.parent.mkdir(parents=True, exist_ok=True)
                with replacing(copy) as file:
                    file.write(content)
            copied += copy.exists()
        except ImageFailure:
            pass
        except OSError as error:  # such as a name that is too long
            if error.errno not in {*FILE_ERRORS, errno.EEXIST}:
                raise
    if not copied:
        raise UsageError(
            f"no image of the sample can be read from {images} by its path, such as {image_paths[0]!r:.200}: name an "
            "output and the file with its images, such as --output labeled/00000.jsonl --image-root 00000.parquet"
        )


def _check_captions(output: Path, captions: dict[str, str]) -> None:
    """Raises UsageError if earlier answers are to other captions: the output is another one since."""
    if not output.is_file():
        return
    with output.open("rb") as lines:
        for line in lines:
            path = path_of(line)
            if path in captions and (json_object(line) or {}).get("caption") != captions[path]:
                raise UsageError(
                    f"{output.parent} has answers to another caption of {path!r:.200}: delete that folder, and run "
                    "the audit again"
                )
