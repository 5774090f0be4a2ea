"""Parses the stored texts of an output again without the model: with a newer parser, or for another family."""

import shutil
from pathlib import Path
from typing import Any

from vllm_annotate.errors import UsageError
from vllm_annotate.grounding.answers import answer_fields, read_answer
from vllm_annotate.grounding.quality import Quality
from vllm_annotate.recipe.families import FAMILIES, Family, resolve_family
from vllm_annotate.recipe.guard import read_recipe
from vllm_annotate.results.lines import OUR_FIELDS, other_members
from vllm_annotate.results.written import lines_of, written_files
from vllm_annotate.storage.atomic import sync_file, sync_folder, unfinished_name
from vllm_annotate.storage.json_text import dumped, json_object, object_line, raw_members
from vllm_annotate.storage.new_files import check_new, creating, exclusively
from vllm_annotate.storage.packed import names_of
from vllm_annotate.storage.workspace import Workspace

KEPT = ("vlm_output", "width", "height", "sent_size", "sent_as")


def family_of(output: Path) -> Family:
    """Returns the family in the recipe of an output. Raises UsageError if it is no file or no recipe is recorded."""
    _check_file(output)
    recipe = read_recipe(Workspace.at(output))
    if recipe is None:
        raise UsageError(f"no recipe is recorded beside {output}: set --family to the model's family")
    family, model = (str(recipe["settings"].get(name, "")) for name in ("family", "model"))
    if family not in FAMILIES:
        raise UsageError(
            f"the recipe beside {output} has an unknown family, {family!r:.60}: set --family to one of "
            f"{', '.join(FAMILIES)}"
        )
    return resolve_family(family, model)  # type: ignore[arg-type]


def _check_file(source: Path) -> None:
    if not written_files(source):
        raise UsageError(f"input {str(source)!r} is not a file, nor a folder of them: name the output of a run")


def reparse(source: Path, target: Path, family: Family) -> Quality:
    """Writes every row of `source` to `target`, with its `vlm_output` parsed again; of a folder, to a new folder.

    Lines without a `vlm_output` are copied unchanged. Raises UsageError if a row lacks the sizes that parsing needs.
    """
    _check_file(source)
    quality = Quality()
    if not source.is_dir():
        with creating("output", target) as [unfinished]:
            _reparse_file(source, unfinished, family, quality)
        return quality
    _check_new_folder(source, target)
    with exclusively(target, f"output {str(target)!r}"):
        folder = target.with_name(unfinished_name(target.name))
        shutil.rmtree(folder, ignore_errors=True)
        try:
            for path in written_files(source):
                copy = folder / names_of(str(path.relative_to(source)))[0]
                copy.parent.mkdir(parents=True, exist_ok=True)
                _reparse_file(path, copy, family, quality)
                sync_file(copy)
            folder.rename(target)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return quality


def _check_new_folder(source: Path, target: Path) -> None:
    """Raises UsageError unless the answers of a folder can go into a new folder."""
    check_new("output", target)
    if target.suffix:
        raise UsageError(f"output {str(target)!r} has an ending, but the answers of a folder go into one: leave it out")
    if target.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"output {str(target)!r} is inside the input: choose another")


def _reparse_file(source: Path, target: Path, family: Family, quality: Quality) -> None:
    with target.open("wb") as file:
        for number, line in enumerate(lines_of(source), start=1):
            row = json_object(line)
            if row is None or not isinstance(row.get("vlm_output"), str):
                file.write(line)
                continue
            fields = reparsed(row, family, f"line {number} of {source}")
            quality.add(fields)
            text = line.decode(errors="replace")
            kept = {name: f"{written}:{value}" for name, (written, value) in raw_members(text).items() if name in KEPT}
            answer = kept.pop("vlm_output")
            file.write(object_line(*other_members(text, *OUR_FIELDS), answer, dumped(fields), *kept.values()))


def reparsed(row: dict[str, Any], family: Family, where: str) -> dict[str, Any]:
    """Returns the fields of a row after parsing its text as one of `family`."""
    sent_size = row.get("sent_size")
    if family.space == "pixels" and not _is_size(sent_size):
        raise UsageError(
            f"{where} has no sent_size, the size of the image that the model saw, which boxes of {family.name} need: "
            "set another --family, or annotate again"
        )
    size = (sent_size[0], sent_size[1]) if _is_size(sent_size) and sent_size else (1, 1)
    flags = row.get("flags")
    whole = not (isinstance(flags, list) and "truncated" in flags)
    attempts = row.get("attempts", 1)
    answer = read_answer(row["vlm_output"], family, size, whole=whole)
    return answer_fields(answer, attempts if type(attempts) is int else 1)


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(side, int) and side > 0 for side in value)
