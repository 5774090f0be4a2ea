"""The truth about images, in packed arrays, with an index by path."""

from dataclasses import dataclass, field

from vllm_annotate.evaluation.packed import Packed

AMBIGUOUS = -1
FORM = '{"image_path": "0001.jpg", "objects": [{"name": "cat", "bbox": [112, 240, 530, 871]}]}'
FORMS = f"a truth is one such object a line, {FORM}, or a COCO file with images, annotations and categories"


@dataclass
class Truth:
    """The truth about images, by path."""

    boxes: Packed
    index: dict[str, int]  # path → image
    kind: str  # "rows" or "coco"
    by_base_name: dict[str, int] = field(default_factory=dict)  # of COCO; AMBIGUOUS if several have it
    notes: list[str] = field(default_factory=list)
