"""The parameters of a run, declared once. Flow signatures, the command line and docs/parameters.md follow."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from vllm_annotate.inputs.listing import names_one_file
from vllm_annotate.recipe.settings import Recipe
from vllm_annotate.serving.settings import Server
from vllm_annotate.storage.atomic import write_json
from vllm_annotate.storage.json_text import json_object
from vllm_annotate.storage.locations import (
    WILD,
    Given,
    OptionalLocation,
    Output,
    first_object,
    locations,
    read_object,
)
from vllm_annotate.storage.output_paths import OutputPaths, names_folder
from vllm_annotate.storage.shard import shards_folder
from vllm_annotate.storage.workspace import Workspace

SELECTING = ("limit", "sample", "sample_seed")  # the fields that say which images of the input
MaxConcurrency = Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"]


class Job(BaseModel):
    """What a run does: which images, which server and recipe, how many requests, and when it gives up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Given = Field(
        description="The images: a .jsonl (also .gz, .zst) or .parquet file with an image path and a caption per row, "
        "or a WebDataset .tar or a .parquet file with the images inside. A path, a URL such as "
        "s3://bucket/captions.jsonl, a folder, a pattern such as tars/*.tar, or several of these."
    )
    image_root: OptionalLocation = Field(
        default=None,
        description="Folder or URL that image paths are relative to; nothing outside it is read. Empty if the images "
        "are inside the input.",
    )
    output: Output = Field(
        description="The result: a .jsonl file or URL, or without that ending a folder with a file for each input "
        "file. Images that are already in it are skipped."
    )
    server: Server | None = Field(
        default=None,
        description="Endpoints of vLLM, or how to start it; empty uses http://localhost:8000/v1 and the model it "
        "serves.",
    )
    recipe: Recipe | None = Field(
        default=None, description="Prompts, sampling, schema and image budget; empty uses the built-in recipe."
    )
    max_concurrency: MaxConcurrency = Field(
        default="auto", description="Maximum requests in flight; auto finds and follows what each server can use."
    )
    chunk_size: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=500,
        description="Images per chunk, at least: of over 1,000,000 images chunks are larger, so that there are at most "
        "2,000. Each chunk is one task run.",
    )
    image_column: Annotated[str, Field(min_length=1)] = Field(
        default="image_path", description="Input column with the image path."
    )
    caption_column: str = Field(
        default="caption", description="Input column with the caption; empty if there are no captions."
    )
    shard: str = Field(default="", description="Share of the input to annotate, such as 3/16; empty for all of it.")
    error_budget: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5,
        description="Share of the last 500 images that may fail before the chunk at work stops. Ten failures are "
        "always allowed, unless it is 0.",
    )
    server_wait_seconds: Annotated[float, Field(ge=0)] = Field(
        default=300, description="How long requests wait for a server that is down."
    )
    request_timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        default=600, description="How long one request may take."
    )
    chunk_retries: Annotated[int, Field(ge=0, le=10)] = Field(
        default=1, description="How often to retry a chunk whose server went down."
    )

    canary_every: Annotated[int, Field(ge=0)] = Field(
        default=500,
        description="Answers of an endpoint between two drawn test scenes, which show whether its boxes are still "
        "right; 0 for none.",
    )
    limit: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Only the first so many distinct images of the input; 0 for all."
    )
    sample: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="Only so many distinct images of the input, at random; a larger sample contains a smaller one. 0 "
        "for all.",
    )
    sample_seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default=0, description="Another seed draws another sample."
    )
    own_names: Literal["keep", "drop"] = Field(
        default="keep",
        description="Whether answers keep the columns of image_column and caption_column under their own names too, "
        "beside image_path and caption.",
    )
    output_format: Literal["jsonl", "jsonl.zst", "parquet"] = Field(
        default="jsonl",
        description="Form of new files of an output that is a folder, from when they are finished: lines, compressed "
        "lines, or a table.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def is_no_yes_or_no(cls, value: Any) -> Any:
        """Refuses a boolean, which pydantic takes for 0 or 1: in YAML, `yes` and `on` are booleans."""
        if isinstance(value, bool):
            raise ValueError("no field of a job is true or false")  # noqa: TRY004
        return value

    @field_validator("limit", "sample")
    @classmethod
    def is_alone(cls, value: int, info: ValidationInfo) -> int:
        """Refuses what would select twice."""
        if value and info.data.get("shard"):
            raise ValueError("selects from the whole input: leave shard empty")
        if value and info.field_name == "sample" and info.data.get("limit"):
            raise ValueError("cannot be combined with limit: set one of them")
        return value

    @field_validator("output_format")
    @classmethod
    def has_a_folder(cls, value: str, info: ValidationInfo) -> str:
        """Refuses a form that an output of one file, which grows, cannot have."""
        if value != "jsonl" and not names_folder(info.data.get("output", "")):
            raise ValueError("is for an output that is a folder: leave out the ending of output")
        return value

    @property
    def selects(self) -> bool:
        """Whether it is of some images only."""
        return bool(self.limit or self.sample)

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read of an input: with others, its images have other paths or captions."""
        return {"image": self.image_column, "caption": self.caption_column}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Self:
        """Returns the job in a flow's parameters, and ignores those of other names."""
        return cls(**{name: value for name, value in parameters.items() if name in cls.model_fields})

    def remember(self, path: Path) -> None:
        """Saves the job for later commands on the same output."""
        write_json(path, self.without_secrets())

    def without_secrets(self) -> dict[str, Any]:
        """The fields that are not at their default, for files; paths are absolute.

        Without the API key and the secret variables of a start: the environment has to provide them.
        """
        fields = self.model_dump(mode="json", exclude={"server"}, exclude_defaults=True)
        if self.server is not None:
            fields["server"] = self.server.without_secrets()
        for name in ("input", "image_root", "output"):
            if (where := getattr(self, name)) is not None:
                fields[name] = [absolute(each) for each in where] if isinstance(where, list) else absolute(where)
        return fields


def absolute(where: Path | str) -> str:
    """A URL, or a path that is the same wherever a command runs; of a pattern, the folder before it is resolved."""
    if isinstance(where, str):
        return where
    path = where.expanduser()
    fixed = next((at for at, part in enumerate(path.parts) if WILD.search(part)), len(path.parts))
    if path.exists() or fixed == len(path.parts):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(Path(*path.parts[:fixed])), *path.parts[fixed:])  # noqa: PTH118


def images_of(fields: Mapping[str, Any]) -> Any:
    """Where the images of a job with these fields are; None if it does not say, or if they are inside several files."""
    if (root := fields.get("image_root")) or not (given := fields.get("input")):
        return root
    return given if names_one_file(locations(given)) else None


def images_known(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What decides which image an image path is: where the images are, and of a file with images the column."""
    inside = {} if fields.get("image_root") else {"image_column": fields.get("image_column")}
    return {"images": images_of(fields)} | inside


class OutputOf(BaseModel):
    """The output of an earlier run, whose job is saved beside it."""

    output: Output


def remembered_job(output: Path | str) -> dict[str, Any]:
    """Returns the fields of the job that the last run of an output saved; empty if there are none."""
    if isinstance(output, Path):
        workspace = Workspace.at(output)
        shards = sorted(shards_folder(workspace.output).glob(f"*{workspace.work.suffix}/{workspace.job.name}"))
        folders = [OutputPaths(folder) for folder in workspace.output.parents[:-1]]
        of_folder = [folder.job for folder in folders if folder.finished.is_file()]  # the output is a file in one
        jobs = (workspace.job, *shards, *of_folder)
        content = next((path.read_bytes() for path in jobs if path.is_file()), b"")
    else:
        name = output.removesuffix(".jsonl")
        content = read_object(f"{name}.work/job.json") or first_object(f"{name}.shards/*.work/job.json")
    fields = json_object(content.decode(errors="replace")) or {}
    return {name: value for name, value in fields.items() if name in Job.model_fields}
