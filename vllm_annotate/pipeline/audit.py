"""An audit: a sample of an output, asked again; what that says about the output, and the files that say it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field

from vllm_annotate.errors import UsageError
from vllm_annotate.evaluation.audit import Audit, audit
from vllm_annotate.evaluation.audit_page import audit_page
from vllm_annotate.evaluation.audit_sample import Sample, draw_sample
from vllm_annotate.evaluation.files import image_root_of
from vllm_annotate.evaluation.names import Names
from vllm_annotate.evaluation.report import write_files
from vllm_annotate.evaluation.truth import Truth
from vllm_annotate.evaluation.truth_file import known_truth
from vllm_annotate.inputs.input_images import InputImages
from vllm_annotate.job import Job
from vllm_annotate.pipeline.annotating import Logger
from vllm_annotate.pipeline.asking import Asking
from vllm_annotate.storage.atomic import replacing
from vllm_annotate.storage.image_roots import ImageRoot
from vllm_annotate.storage.json_text import dumped, object_line
from vllm_annotate.storage.workspace import Workspace

# Fields of the output's run that an audit takes over.
REMEMBERED = (
    "image_root", "image_column", "server", "recipe", "max_concurrency", "server_wait_seconds",
    "request_timeout_seconds",
)  # fmt: skip


class AuditSettings(BaseModel):
    """How large the sample is, and how it is asked again."""

    sample: int = Field(default=500, ge=1, le=100_000, description="Answered images, at random, to ask for again.")
    sample_seed: int = Field(default=0, ge=0, lt=2**63, description="Another seed draws another sample.")
    asks: int = Field(default=3, ge=1, le=10, description="Further answers for each image.")
    temperature: float = Field(default=0.7, ge=0, le=2, description="Sampling temperature of the further answers.")


@dataclass(frozen=True)
class Audited:
    """The figures of an audit, and the files that have them."""

    figures: dict[str, Any]
    files: list[Path]


@dataclass(frozen=True)
class Auditing:
    """An audit whose sample is drawn: `ask` for the other answers, then `conclude`."""

    output: Path
    settings: AuditSettings
    names: Names
    truth: Truth | None
    truth_file: Path | None
    image_root: ImageRoot | None
    sample: Sample
    asking: Asking

    @classmethod
    def of(cls, job: Job, settings: AuditSettings, truth: Path | None = None, synonyms: Path | None = None) -> Self:
        """Reads truth and output before the server has any work. Raises UsageError."""
        output, names = Path(job.output), Names(synonyms)
        root = image_root_of(output, job.image_root)
        inside = root if isinstance(root, InputImages) else None
        if inside is not None and inside.is_remote:
            raise UsageError(
                f"the images of {output} are inside several files of an object store, of which an audit reads none: "
                "copy some of them to this machine, annotate them into another output, and audit that"
            )
        known, source = known_truth(output, truth, names)
        sample = draw_sample(output, settings.sample, settings.sample_seed)
        asking = Asking(job, settings.asks, settings.temperature, inside)
        return cls(output, settings, names, known, source, root, sample, asking)

    async def ask(self, logger: Logger) -> bool:
        """Asks what has no answer yet; returns whether all are answered. Raises UsageError, ServerFault and OSError."""
        return await self.asking.run(self.sample.rows, logger)

    def conclude(self) -> Audited:
        """Compares the answers, and writes the files. Raises UsageError and OSError."""
        found = audit(self.asking.first, self.asking.others, self.names, self.truth)
        figures = self._about() | found.figures
        of_sample = {"answered": self.sample.answered, "unparsed": self.sample.unparsed}
        figures["images"] = of_sample | found.figures["images"]
        rows = Workspace.at(self.output).audited
        write_rows(rows, found)
        files = write_files(self.output, "audit", figures, audit_page(figures, found.doubtful, self.image_root))
        return Audited(figures, [*files, rows])

    def _about(self) -> dict[str, Any]:
        return {
            "output": str(self.output),
            "truth": None if self.truth_file is None else str(self.truth_file),
            "asks": self.settings.asks,
            "temperature": self.settings.temperature,
            "sample_seed": self.settings.sample_seed,
        }


def write_rows(path: Path, found: Audit) -> None:
    """Replaces labeled.audit.jsonl."""
    with replacing(path) as file:
        file.writelines(object_line(dumped(row)) for row in found.rows())
