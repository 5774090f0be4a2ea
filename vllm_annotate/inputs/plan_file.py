"""plan.json: the chunks of the plan in progress, typed and versioned."""

from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from vllm_annotate.storage.atomic import write_json
from vllm_annotate.storage.workspace import Workspace

Count = Annotated[int, Field(ge=0, lt=2**40)]
# Prefect records each chunk as a task run, and the rows of a chunk are in memory. More images than the product of both
# make more chunks.
MOST_CHUNKS, MOST_IMAGES = 2_000, 20_000


@dataclass(frozen=True)
class Chunk:
    """`length` consecutive rows of the plan; `digest` names its image paths."""

    number: Count  # from 1
    offset: Count
    length: Count
    digest: str

    @property
    def name(self) -> str:
        """The name in its part files and its task run."""
        return f"{self.number:06d}"


@dataclass(frozen=True)
class Counts:
    """Counts of the input. `already_done` are the distinct images that were in the output before the plan."""

    input: int = 0  # lines that are not blank
    distinct: int = 0  # of those selected
    not_selected: int = 0  # distinct images that limit or sample leave out
    already_done: int = 0
    malformed: int = 0
    without_path: int = 0
    duplicates: int = 0
    broken_in_output: int = 0  # output lines that are torn, malformed or without a path; their images are sent
    taken: int = 0  # of the pilot's answers
    first_broken: int = 0  # line number of the first, from 1

    def plus(self, other: "Counts") -> "Counts":
        """The counts of both inputs."""
        both = {each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)}
        return Counts(**both | {"first_broken": self.first_broken or other.first_broken})


@dataclass(frozen=True)
class Plan:
    """Rows without an answer, split into chunks in input order. Does not change until all chunks are complete."""

    counts: Counts
    chunks: list[Chunk]
    resumed: bool = False
    # file_version of each output when its rows were marked as merged
    outputs: list[list[int] | None] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """The number of rows in all chunks."""
        return sum(chunk.length for chunk in self.chunks)

    def other_chunk_size(self, chunk_size: int) -> int | None:
        """Returns the size of the plan's chunks if it was cut with another chunk_size; None if that does not show."""
        longest, length = max((chunk.length for chunk in self.chunks), default=0), chunk_length(self.rows, chunk_size)
        is_other = longest > length or (longest < length and len(self.chunks) > 1)
        return longest if is_other else None


def chunk_length(images: int, chunk_size: int) -> int:
    """The length of the chunks of so many images: `chunk_size`, or more where that would make over MOST_CHUNKS."""
    return max(chunk_size, min(MOST_IMAGES, -(-images // MOST_CHUNKS)))


@dataclass(frozen=True)
class PlanFile:
    """The content of plan.json."""

    source: dict[str, Any]
    counts: Counts
    chunks: list[Chunk]
    outputs: list[list[int] | None] = field(default_factory=list)
    version: Literal[1] = 1


PLAN_FILE = TypeAdapter(PlanFile)


def read_plan_file(workspace: Workspace) -> PlanFile | None:
    """Returns the content of plan.json; None if it is missing or damaged."""
    try:
        return PLAN_FILE.validate_json(workspace.plan_file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def write_plan_file(workspace: Workspace, plan: PlanFile) -> None:
    """Writes plan.json. plan.parquet must be synced before."""
    write_json(workspace.plan_file, asdict(plan))
