"""The most doubtful answers of an output, as tasks for Label Studio."""

from collections import Counter
from dataclasses import replace
from heapq import heappush, heapreplace
from pathlib import Path

from vllm_annotate.errors import UsageError
from vllm_annotate.export import label_studio
from vllm_annotate.export.about import About
from vllm_annotate.export.rows import Labeled, read_fields
from vllm_annotate.export.survey import MAX_NAMES
from vllm_annotate.grounding.names import Category, categories_of
from vllm_annotate.results.audited import Audited
from vllm_annotate.results.doubt import doubt
from vllm_annotate.results.provenance import model_of
from vllm_annotate.results.reviewed import Reviewed
from vllm_annotate.results.written import Written
from vllm_annotate.storage.image_roots import ImageRoot
from vllm_annotate.storage.json_text import json_object
from vllm_annotate.storage.new_files import check_name, check_new, creating

MAX_TASKS = 100_000  # in memory together
MIN_LABELS = 500  # to choose from: names of the tasks first, then the most frequent of the output


def write_tasks(output: Path, most: int, to: Path, image_root: ImageRoot | None, image_url: str) -> tuple[int, int]:
    """Writes the most doubtful images that were not reviewed yet; returns how many, and how many had no size.

    Raises UsageError if there are none.
    """
    check_name("--to", to)
    config = to.with_suffix(".xml")
    if to == config:
        raise UsageError(f"--to {str(to)!r} is the name of the labelling config: choose one that ends in .json")
    for path in (to, config):
        check_new("--to", path)
    found, spellings = _most_doubtful(output, most)
    distinct = {row.path: row for row in reversed(found)}  # rows of other programs may repeat an image
    measured = (row.measured(image_root) for row in reversed(distinct.values()))
    rows = [row for row in measured if row.size is not None]
    if not rows:
        why = (
            "none of its images has a width and height: set --image-root"
            if found
            else "all are reviewed, or it is empty"
        )
        raise UsageError(f"{output} has no image to review: {why}")
    about = About(_categories(rows, spellings), model_of(output), image_url=image_url)
    with creating("--to", to, config) as (tasks, labels):
        label_studio.write_config(labels, about)
        label_studio.write(tasks, rows, about)
    return len(rows), len(distinct) - len(rows)


def _most_doubtful(output: Path, most: int) -> tuple[list[Labeled], Counter[str]]:
    """Returns the rows, the most doubtful first and then in the order of the output, and the output's names."""
    reviewed, audited = Reviewed(output), Audited(output)
    heap: list[tuple[float, int, Labeled]] = []
    spellings: Counter[str] = Counter()
    for number, line in enumerate(Written.of(output).lines()):
        fields = json_object(line) or {}
        row = read_fields(fields, line, unparsed=True)
        if isinstance(row, str):
            continue
        if len(spellings) < MAX_NAMES:
            spellings.update(item.name for item in row.objects)
        agreement = audited.of(row.path)
        entry = (doubt(fields, agreement), -number, replace(row, agreement=agreement, text=""))
        if row.path in reviewed or (len(heap) == most and entry < heap[0]):
            continue
        if len(heap) == most:
            heapreplace(heap, entry)
        else:
            heappush(heap, entry)
    return [row for _, _, row in sorted(heap, reverse=True)], spellings


def _categories(rows: list[Labeled], spellings: Counter[str]) -> dict[str, Category]:
    """Returns the labels to choose from; every name of the tasks is among them."""
    known = categories_of(spellings)
    needed = categories_of(Counter(item.name for row in rows for item in row.objects))
    keys = dict.fromkeys([*needed, *known])
    return {key: known.get(key) or needed[key] for key in list(keys)[: max(MIN_LABELS, len(needed))]}
