"""The dataset card of an export: a README.md in Markdown, with the front matter of Hugging Face."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from vllm_annotate.export.export import Export
from vllm_annotate.export.survey import in_words
from vllm_annotate.report.markdown import plain, table
from vllm_annotate.results.provenance import made_by
from vllm_annotate.storage.atomic import read_json
from vllm_annotate.version import VERSION

MOST_NAMES = 20
SIZES = {  # Hugging Face's words for fewer images than
    10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M", 10**8: "10M<n<100M",
}  # fmt: skip
LIMITS = """\
- A model wrote all names, boxes and rationales. {checked}
- Names are free text, not classes: one thing can have several names, and one name can mean several things.
- A missing box does not mean that the thing is not in the image.
- Boxes are of the upright image: apply the EXIF orientation before you draw or train.
"""
LICENCE = """\
Not stated yet. State it here and as `license` in the front matter. It depends on the images and captions, and on the
terms of the model that wrote the annotations. The images are not part of this dataset.
"""


def card(done: Export, output: Path, where: Path) -> str:
    """Returns the card of an export of `output`, to be written to `where`."""
    report = _report(output)
    images, objects = sum(done.images.values()), sum(done.objects.values())
    first = next(iter(done.files.values()))
    title = first.name.partition(".")[0] or "Dataset"
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(done, images, where), sort_keys=False)}---\n",
        f"# {plain(title)}\n",
        f"{images:,} images with {objects:,} named boxes and a rationale for each image, written by a vision-language "
        f"model. Made with vllm-annotate {VERSION}.\n",
        "## Content\n",
        table([["split", "file", "images", "objects"], *_content(done)]),
        f"Left out: {plain(left_out)}.\n" if (left_out := in_words(done.found)) else "",
        "## How the annotations were made\n",
        _makers(report),
        *_quality(report),
        *_names(done),
        f"## Limits\n\n{LIMITS.format(checked=_checked(done))}",
        f"## Licence\n\n{LICENCE}",
    ]
    return "\n".join(filter(None, parts))


def _report(output: Path) -> dict[str, Any]:
    with suppress(ValueError, OSError):
        return read_json(output.with_name(f"{output.stem}.report.json")) or {}
    return {}


def _front_matter(done: Export, images: int, where: Path) -> dict[str, Any]:
    size = next((text for limit, text in SIZES.items() if images < limit), "n>100M")
    fields: dict[str, Any] = {"task_categories": ["object-detection"], "size_categories": [size]}
    if all(path.suffix == ".parquet" for path in done.files.values()):
        fields["configs"] = [{"config_name": "default", "data_files": [
            {"split": split.replace("-", "_") or "train", "path": os.path.relpath(path, where.parent)}
            for split, path in done.files.items() if done.images[split]
        ]}]  # fmt: skip
    return fields


def _content(done: Export) -> Iterable[list[str]]:
    for split, path in done.files.items():
        yield [split or "all", path.name, f"{done.images[split]:,}", f"{done.objects[split]:,}"]


def _makers(report: Mapping[str, Any]) -> str:
    rows = [_maker(maker) for maker in made_by(report.get("made_by"))]
    if not rows:
        return "Not recorded: the output had no report.json beside it.\n"
    return table([["model", "revision", "recipe", "vLLM", "from", "to"], *rows])


def _maker(maker: Mapping[str, Any]) -> list[str]:
    """A row about a model and its recipe. Prompts of your own are not shown."""
    settings = maker.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    own = any(settings.get(name) is not None for name in ("system_prompt", "user_prompt"))
    prompts = "own prompts" if own else f"built-in prompts ({settings.get('language', 'en')})"
    recipe = (
        f"{maker['recipe']}: {prompts}, family {settings.get('family', '?')}, temperature "
        f"{settings.get('temperature', '?')}, up to {settings.get('max_visual_tokens', '?')} visual tokens"
    )
    vllm = maker.get("vllm")
    versions = ", ".join(map(str, vllm)) if isinstance(vllm, list) else ""
    return [
        str(maker.get("model")), str(maker.get("model_revision") or "unknown"), recipe, versions,
        str(maker["first"])[:10], str(maker["last"])[:10],
    ]  # fmt: skip


def _checked(done: Export) -> str:
    reviewed = done.found.reviewed
    return f"People corrected {reviewed:,} images; nobody checked the others." if reviewed else "Nobody checked them."


def _quality(report: Mapping[str, Any]) -> list[str]:
    """How the model's answers could be read, and what was flagged; before anything was left out."""
    whole = report.get("output")  # missing in reports of earlier versions
    found = whole.get("quality") if isinstance(whole, dict) else report.get("quality")
    if not isinstance(found, dict):
        return []
    counts = {"answers": found.get("answers"), "objects": found.get("objects")}
    for what, name in (("parsed as", "parse_stages"), ("flag", "flags")):
        each = found.get(name)
        counts |= {f"{what} {key}": count for key, count in each.items()} if isinstance(each, dict) else {}
    rows = [[name, f"{count:,}"] for name, count in counts.items() if type(count) is int]
    if not rows:
        return []
    intro = f"{_whose(found.get('answers'), whole)}, before anything was left out:\n"
    return ["## Quality\n", intro, table([["", "count"], *rows])]


def _whose(answers: Any, whole: Any) -> str:
    """Which answers the quality is of."""
    if not isinstance(whole, dict):
        return "Of the answers of the last run"
    images = whole.get("images")
    if type(images) is int and type(answers) is int and answers < images:
        return f"Of a sample of {answers:,} of {images:,} answers"
    return "Of all answers"


def _names(done: Export) -> list[str]:
    categories = list((done.categories or {}).values())
    if not categories:
        return ["## Names\n", f"Over {len(done.found.spellings):,} different names.\n"]
    rows = [[category.name, f"{category.count:,}"] for category in categories[:MOST_NAMES]]
    intro = f"{len(categories):,} different names without regard to case and width. The most frequent:\n"
    return ["## Names\n", intro, table([["name", "objects"], *rows])]
