"""An audit: a sample of an output, asked again; what that says about the output, and the files that say it."""

import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from vllm_annotate.evaluation.audit import Audit, audit
from vllm_annotate.evaluation.audit_page import audit_page
from vllm_annotate.evaluation.audit_sample import draw_sample
from vllm_annotate.evaluation.files import image_root_of
from vllm_annotate.evaluation.names import Names
from vllm_annotate.evaluation.report import write_files
from vllm_annotate.evaluation.truth_file import known_truth
from vllm_annotate.job import Job
from vllm_annotate.pipeline.asking import Asking
from vllm_annotate.storage.atomic import replacing
from vllm_annotate.storage.json_text import dumped, object_line
from vllm_annotate.storage.workspace import Workspace


class AuditSettings(BaseModel):
    """How large the sample is, and how it is asked again."""

    sample: int = Field(default=500, ge=1, le=100_000, description="Answered images, at random, to ask for again.")
    sample_seed: int = Field(default=0, ge=0, lt=2**63, description="Another seed draws another sample.")
    asks: int = Field(default=3, ge=1, le=10, description="Further answers for each image.")
    temperature: float = Field(default=0.7, ge=0, le=2, description="Sampling temperature of the further answers.")


Run = Callable[[Coroutine[Any, Any, bool]], bool]


@dataclass(frozen=True)
class Audited:
    """The figures of an audit, the files that have them, and whether every image got all its answers."""

    figures: dict[str, Any]
    files: list[Path]
    finished: bool


def audit_to_files(
    job: Job, settings: AuditSettings, truth: Path | None, synonyms: Path | None, logger: logging.Logger, run: Run
) -> Audited:
    """Asks, compares and writes; `run` runs the coroutine that asks. Raises UsageError, ServerFault and OSError."""
    output = Path(job.output)
    root = image_root_of(output, job.image_root)
    names = Names(synonyms)
    known, source = known_truth(output, truth, names)  # before the server has any work
    sample = draw_sample(output, settings.sample, settings.sample_seed)
    asking = Asking(job, settings.asks, settings.temperature)
    finished = run(asking.run(sample.rows, logger))
    found = audit(asking.first, asking.others, names, known)
    figures = _about(output, settings, source) | found.figures
    figures["images"] = {"answered": sample.answered, "unparsed": sample.unparsed} | found.figures["images"]
    write_rows(Workspace.at(output).audited, found)
    files = write_files(output, "audit", figures, audit_page(figures, found.doubtful, root))
    return Audited(figures, [*files, Workspace.at(output).audited], finished)


def write_rows(path: Path, found: Audit) -> None:
    """Replaces labeled.audit.jsonl."""
    with replacing(path) as file:
        file.writelines(object_line(dumped(row)) for row in found.rows())


def _about(output: Path, settings: AuditSettings, truth: Path | None) -> dict[str, Any]:
    return {
        "output": str(output),
        "truth": None if truth is None else str(truth),
        "asks": settings.asks,
        "temperature": settings.temperature,
        "sample_seed": settings.sample_seed,
    }
