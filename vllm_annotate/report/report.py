"""The content of report.json, typed and versioned."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.plan_file import Counts
from vllm_annotate.report.estimate import Estimate
from vllm_annotate.storage.atomic import read_json, write_json
from vllm_annotate.telemetry.bottleneck import Verdict


class Figures(BaseModel):
    """Base that tolerates unknown fields: reports of later versions may have more."""

    model_config = ConfigDict(extra="allow")


class Images(Figures):
    """Counts of images. `answered` includes those of an interrupted run, `already_done` does not."""

    input: int  # lines that are not blank
    distinct: int  # of those selected
    not_selected: int = 0  # distinct images that limit or sample left out
    already_done: int  # in the output before the run
    answered: int  # rows added to the output
    answered_before_an_interruption: int = 0
    taken_from_pilot: int = 0
    without_caption: int = 0
    failed: int
    annotations_error: int = 0  # answers without an annotation


class SkippedLines(Figures):
    """Lines of the input without a new image, and unreadable lines of the output."""

    malformed: int = 0
    without_path: int = 0
    duplicates: int = 0
    broken_in_output: int = 0

    @classmethod
    def counted(cls, counts: Counts) -> Self:
        """The counts of a plan."""
        names = ("malformed", "without_path", "duplicates", "broken_in_output")
        return cls(**{name: getattr(counts, name) for name in names})


class Tokens(Figures):
    """Tokens of this run, without those of an interrupted run."""

    prompt: int = 0
    completion: int = 0


class Seen(Figures):
    """Means and extremes of GPUs (by index and name), servers (by URL) and client; None if not measured."""

    samples: int = 0
    missing: list[str] = []  # what could not be measured, and why
    gpus: dict[str, dict[str, float | None]] = {}
    servers: dict[str, dict[str, float | None]] = {}
    client: dict[str, float | None] = {}


class Proof(Figures):
    """What an endpoint showed: a `proof.finding.Finding`, and the same in words."""

    text: list[str] = []


class InputFiles(Figures):
    """What came of the input files, if the output is a folder."""

    inputs: int
    finished: int  # all their images have an answer or a failure
    failed: dict[str, str] = {}  # why one could not be read, by name
    not_begun: int = 0  # the server went away before


class Whole(Figures):
    """The whole output, whichever runs wrote it. The quality is that of all its answers, or of a sample."""

    images: int
    quality: dict[str, Any]


class Report(Figures):
    """The content of report.json.

    Rates refer to `annotating_seconds`; `seconds` also includes starting servers, the plan and the merge. `quality` is
    that of this run's answers, `output` has that of all.
    """

    version: Literal[1] = 1
    images: Images
    skipped_lines: SkippedLines = SkippedLines()
    failures: dict[str, int]  # by kind
    failures_left_alone: int = 0  # that were not asked again
    failed_chunks: list[str]
    started: str  # ISO 8601, UTC
    seconds: float = Field(ge=0)
    annotating_seconds: float = Field(ge=0)
    images_per_second: float
    tokens: Tokens
    images_sent: dict[str, int] = {}  # of this run, by `sent_as`
    quality: dict[str, Any]
    recipe: str
    made_by: list[dict[str, Any]] = []
    family: str
    model: str
    endpoints: list[str]
    servers: dict[str, dict[str, Any]]  # by URL: version, answers, concurrency
    proof: dict[str, Proof] = {}  # by URL; empty if the run asked for no image
    bottleneck: Verdict
    telemetry: Seen
    estimate: Estimate | None = None  # of the images that were not selected
    input: str = ""
    files: InputFiles | None = None
    output: Whole | None = None
    last_run: "Report | None" = None  # the last run that had something to do, if this one had nothing
    shards: dict[str, dict[str, Any]] | None = None  # by name, if the output was merged from shards

    @property
    def is_complete(self) -> bool:
        """Whether each image has an answer."""
        files = self.files
        return not (self.images.failed or self.failed_chunks or (files and (files.failed or files.not_begun)))

    @property
    def came_to_its_end(self) -> bool:
        """Whether each image has an answer or a failure."""
        files = self.files
        return not (self.failed_chunks or (files and (files.failed or files.not_begun)))

    @property
    def quality_of_output(self) -> dict[str, Any]:
        """The quality of the whole output, or of this run's answers if that is all that is known."""
        return self.output.quality if self.output else self.quality

    @property
    def last(self) -> "Report":
        """The report of the last run that had something to do."""
        return self.last_run or self


def write_report(path: Path, report: Report) -> None:
    """Replaces report.json."""
    content = report.model_dump(mode="json")
    for each in (content, content["last_run"] or {}):
        for name in ("estimate", "shards", "files", "output", "last_run"):
            if each.get(name) is None:
                each.pop(name, None)
    write_json(path, content)


def read_report(path: Path) -> Report | None:
    """The report in `path`; None if there is none. Raises UsageError if it is corrupt or of another version."""
    try:
        report = read_json(path)
        return None if report is None else Report.model_validate(report)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except ValueError as error:
        why = f"{error!s:.100}"
    raise UsageError(f"{path} is corrupt or of another version ({why}): run the annotation again to rewrite it")
