"""Corrected rows beside an output: labeled.reviewed.jsonl. The output itself does not change."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_annotate.errors import UsageError
from vllm_annotate.results.lines import OUR_FIELDS, other_members, path_of
from vllm_annotate.results.reviewed import REVIEW_FIELDS, reviewed_file
from vllm_annotate.results.written import Written
from vllm_annotate.review.label_studio_export import Review, read_reviews
from vllm_annotate.storage.atomic import replacing
from vllm_annotate.storage.json_text import dumped, json_object, object_line
from vllm_annotate.storage.new_files import exclusively


@dataclass
class Imported:
    """What an import did."""

    target: Path
    images: int = 0
    replaced: int = 0  # earlier reviews of the same images
    not_reviewed: int = 0
    invalid_boxes: int = 0
    unknown: list[str] = field(default_factory=list)  # reviewed images that the output does not have


def import_reviews(output: Path, export: Path) -> Imported:
    """Writes a row for each reviewed image of the output. A review replaces an earlier one. Raises UsageError."""
    reviews, not_reviewed = read_reviews(export)
    done = Imported(reviewed_file(output), not_reviewed=not_reviewed)
    rows = dict(_rows(output, reviews))
    done.unknown = [path for path in reviews if path not in rows]
    done.images = len(rows)
    done.invalid_boxes = sum(review.invalid for path, review in reviews.items() if path in rows)
    if not rows:
        raise UsageError(
            f"--from {str(export)!r} has no review of an image of {output}: name the output that the tasks are of, and "
            "submit at least one task before you export"
        )
    with exclusively(done.target, str(done.target), remedy="run this again when that is done"):
        _replace(done, rows)
    return done


def _rows(output: Path, reviews: dict[str, Review]) -> Iterator[tuple[str, bytes]]:
    found = set()
    for line in Written.of(output).lines():
        path = path_of(line)
        if path in reviews and path not in found:
            found.add(path)
            yield path, reviewed_line(line.decode(errors="replace"), reviews[path])


def reviewed_line(text: str, review: Review) -> bytes:
    """Returns a row of the output with the person's objects and rationale in place of the model's answer."""
    row = json_object(text) or {}
    known = {name: row[name] for name in ("width", "height") if type(row.get(name)) is int}
    if len(known) < 2 and review.size is not None:
        known = dict(zip(("width", "height"), review.size, strict=True))
    ours: dict[str, Any] = {
        "annotations": {"rationale": review.rationale, "objects": review.objects},
        "objects": review.objects,
        **known,
        "reviewed": True,
    }
    ours |= {name: value for name, value in (("reviewed_by", review.by), ("reviewed_at", review.at)) if value}
    return object_line(*other_members(text, *OUR_FIELDS, *REVIEW_FIELDS), dumped(ours))


def _replace(done: Imported, rows: dict[str, bytes]) -> None:
    """Replaces the file: earlier reviews of other images as they are, then the new ones."""
    with replacing(done.target) as file:
        if done.target.exists():
            with done.target.open("rb") as earlier:
                for line in earlier:
                    if path_of(line) in rows:
                        done.replaced += 1
                    else:
                        file.write(line if line.endswith(b"\n") else line + b"\n")
        file.writelines(rows.values())
