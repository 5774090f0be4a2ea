"""Label Studio: tasks to import, each with one prediction, and the labelling config that shows them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import orjson

from vllm_annotate.errors import UsageError
from vllm_annotate.export.about import About
from vllm_annotate.export.rows import Labeled, Named
from vllm_annotate.grounding.names import name_key
from vllm_annotate.printable import printable

IMAGE, LABEL, RATIONALE = "image", "label", "rationale"  # names of the config's tags
MAX_LABELS = 5000  # the page of a task lists them all
CONFIG = """<View>
  <Image name="image" value="$image" zoom="true"/>
  <Text name="caption" value="$caption"/>
  <RectangleLabels name="label" toName="image" showInline="true">
{labels}
  </RectangleLabels>
  <TextArea name="rationale" toName="image" editable="true" maxSubmissions="1" rows="4"/>
</View>
"""


def task_of(row: Labeled, about: About) -> dict[str, Any]:
    """Returns the task of a row that has a size. Boxes are in percent of the upright image."""
    width, height = row.size or (0, 0)
    size = {"original_width": width, "original_height": height, "image_rotation": 0}
    result = [
        {
            "id": f"box-{number}",
            "type": "rectanglelabels",
            "from_name": LABEL,
            "to_name": IMAGE,
            **size,
            "value": _value(item, about),
        }
        for number, item in enumerate(row.objects)
    ]
    if row.rationale.strip():
        text = {"text": [row.rationale]}
        result.append({"id": RATIONALE, "type": "textarea", "from_name": RATIONALE, "to_name": IMAGE, "value": text})
    prediction: dict[str, Any] = {"model_version": about.model or "vllm-annotate", "result": result}
    if row.agreement is not None:
        prediction["score"] = row.agreement
    data = {"image": image_url(about.image_url, row.path), "image_path": row.path, "caption": row.caption}
    return {"data": data, "predictions": [prediction]}


def _value(item: Named, about: About) -> dict[str, Any]:
    left, top, right, bottom = item.box
    sides = {"x": left / 10, "y": top / 10, "width": (right - left) / 10, "height": (bottom - top) / 10}
    rounded = {name: round(side, 4) for name, side in sides.items()}
    return rounded | {"rotation": 0, "rectanglelabels": [label_of(about.categories[name_key(item.name)].name)]}


def label_of(name: str) -> str:
    """Returns a name as XML can hold it."""
    return printable(name).replace("\ufffe", "\ufffd").replace("\uffff", "\ufffd")


def image_url(prefix: str, image_path: str) -> str:
    """Returns where Label Studio finds the image. Object stores take paths as they are, web servers quoted ones."""
    if not prefix:
        return image_path
    path = quote(image_path) if prefix.startswith(("http://", "https://", "/")) else image_path
    return f"{prefix}{'' if prefix.endswith(('/', '=')) else '/'}{path}"


def write(path: Path, rows: Iterable[Labeled], about: About) -> None:
    """Writes the tasks as one JSON document."""
    with path.open("wb") as file:
        file.write(b"[")
        for number, row in enumerate(rows):
            file.write((b",\n" if number else b"\n") + orjson.dumps(task_of(row, about)))
        file.write(b"\n]\n")


def write_config(path: Path, about: About) -> None:
    """Writes the labelling config. Raises UsageError if it would have more labels than a page can show."""
    labels = list(dict.fromkeys(label_of(category.name) for category in about.categories.values()))
    if len(labels) > MAX_LABELS:
        raise UsageError(
            f"{len(labels)} names are too many for Label Studio, whose page lists up to {MAX_LABELS}: export fewer "
            "names with --names or --min-count, or review fewer images"
        )
    lines = "\n".join(f"    <Label value={quoteattr(label)}/>" for label in labels)
    path.write_text(CONFIG.format(labels=lines), encoding="utf-8")
