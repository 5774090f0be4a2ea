"""Writes an export: one file, or one for each split."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from vllm_annotate.errors import UsageError
from vllm_annotate.export import coco, label_studio, ms_swift, odvg, parquet
from vllm_annotate.export.about import About
from vllm_annotate.export.rows import BROKEN, NO_PATH, NO_SIZE, Labeled
from vllm_annotate.export.selection import Splits
from vllm_annotate.export.survey import NOTHING_LEFT, RARE, REPEATED, Output, Survey, exported, survey
from vllm_annotate.grounding.names import Category, categories_of
from vllm_annotate.storage.new_files import check_name, check_new, creating

UNEXPECTED = (BROKEN, NO_PATH, NO_SIZE, REPEATED)  # in an output that a run wrote, nothing is left out for these


@dataclass(frozen=True)
class Format:
    """How a format is written. Boxes in pixels need the image's size, ids of categories need all names."""

    write: Callable[[Path, Iterable[Labeled], About], None]
    needs_size: bool = True
    needs_categories: bool = False
    with_columns: bool = False  # the input's other columns
    write_config: Callable[[Path, About], None] | None = None  # a file with the suffix .xml beside the export


FORMATS = {
    "coco": Format(coco.write, needs_categories=True),
    "odvg": Format(odvg.write),
    "ms-swift": Format(ms_swift.write),
    "label-studio": Format(label_studio.write, needs_categories=True, write_config=label_studio.write_config),
    "parquet": Format(parquet.write, needs_size=False, with_columns=True),
}


@dataclass
class Export:
    """What was written: files with their counts, and what was left out."""

    found: Survey
    categories: dict[str, Category] | None  # None: too many names to count
    files: dict[str, Path]  # by split
    config: Path | None = None
    images: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether all that was left out was meant to be."""
        return not any(self.found.left_out[why] for why in UNEXPECTED)

    def counted(self, rows: Iterable[Labeled], split: str) -> Iterator[Labeled]:
        """Yields the rows, and counts them as the split's."""
        self.images[split] = self.objects[split] = 0
        for row in rows:
            self.images[split] += 1
            self.objects[split] += len(row.objects)
            yield row

    def count_rare(self) -> None:
        """Counts what is in no split as left out: objects without a category, and images with no other."""
        rare = self.found.objects - sum(self.objects.values())
        empty = self.found.images - sum(self.images.values())
        self.found.objects_left_out.update({RARE: rare} if rare else {})
        self.found.left_out.update({NOTHING_LEFT: empty} if empty else {})


def new_files(name: str, to: Path, splits: Splits) -> tuple[dict[str, Path], list[Path]]:
    """The files of an export, by split, and those of its labelling config. Raises UsageError if one exists."""
    check_name("--to", to)
    files = splits.files(to)
    configs = [to.with_suffix(".xml")] if FORMATS[name].write_config else []
    if to in configs:
        raise UsageError(f"--to {str(to)!r} is the name of the labelling config: choose one that ends in .json")
    for path in [*files.values(), *configs]:
        check_new("--to", path)
    return files, configs


def export(output: Output, name: str, to: Path, splits: Splits, about: About, min_count: int = 1) -> Export:
    """Writes the chosen rows of an output in the format of that name. Raises UsageError."""
    form, (files, configs) = FORMATS[name], new_files(name, to, splits)  # before the first pass, which may take minutes
    found = survey(output, columns=form.with_columns)
    categories = _categories(found, min_count, output.path, needed=form.needs_categories or min_count > 1)
    done = Export(found, categories, files, configs[0] if configs else None)
    about = replace(about, categories=categories or {}, columns=found.columns or {})
    with creating("--to", *files.values(), *configs) as unfinished:
        for path in unfinished[len(files) :]:
            assert form.write_config is not None  # noqa: S101 - for the type checker
            form.write_config(path, about)
        for split, path in zip(files, unfinished, strict=False):
            form.write(path, done.counted(exported(output, categories, splits, split), split), about)
    done.count_rare()
    return done


def _categories(found: Survey, min_count: int, output: Path, *, needed: bool) -> dict[str, Category] | None:
    if not found.all_names:
        if needed:
            raise UsageError(
                f"{output} has over {len(found.spellings)} different names, too many to count: choose those to export "
                "with --names, or choose a format without categories (odvg, ms-swift, parquet) without --min-count"
            )
        return None
    categories = categories_of(found.spellings, min_count)
    if not categories:
        raise UsageError(f"no name in {output} has --min-count {min_count} objects: lower it")
    return categories
