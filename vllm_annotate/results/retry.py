"""The failures of an output to retry."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from vllm_annotate.errors import UsageError
from vllm_annotate.results.asked_failures import put_back_asked
from vllm_annotate.results.output_files import output_files
from vllm_annotate.storage.atomic import replacing
from vllm_annotate.storage.json_text import json_object
from vllm_annotate.storage.workspace import Workspace

EXAMPLES_IN = 10_000  # lines


def chosen_failures(output: Path | str, kinds: Sequence[str]) -> tuple[Workspace, Counter[str], Counter[str]]:
    """Splits the failures of an output at a path or URL; returns its workspace and the result of `split_failures`."""
    with output_files(output) as files, files.workspace.locked():
        if files.workspace.is_folder:
            return files.workspace, _counted_failures(output, files.workspace, kinds), Counter()
        put_back_asked(files.workspace)
        return files.workspace, *split_failures(files.workspace, kinds)


def _counted_failures(output: Path | str, workspace: Workspace, kinds: Sequence[str]) -> Counter[str]:
    """Counts the failures of a folder, all of which are retried. Raises UsageError if only some kinds should be."""
    if kinds:
        raise UsageError(f"output {str(output)!r} is a folder, of which all failures are retried: leave out kinds")
    if not workspace.failures.exists():
        return Counter()
    with workspace.failures.open("rb") as failures:
        return Counter(map(_kind_of, failures))


def _kind_of(line: bytes) -> str:
    failure = (json_object(line) or {}).get("failure")
    return str(failure.get("kind")) if isinstance(failure, dict) else "unknown"


def split_failures(workspace: Workspace, kinds: Sequence[str]) -> tuple[Counter[str], Counter[str]]:
    """Writes the rows to retry; returns counts by kind of these rows, and of those that stay in the failures file."""
    chosen, others = Counter[str](), Counter[str]()
    if not workspace.failures.exists():
        return chosen, others
    with workspace.failures.open("rb") as failures, replacing(workspace.retried) as retried:
        for line in failures:
            kind = _kind_of(line)
            if kind in kinds or not kinds:
                chosen[kind] += 1
                retried.write(line)
            else:
                others[kind] += 1
    return chosen, others


def examples_of(failures: Path) -> list[str]:
    """The first failure of each kind in a failures file, of its first 10,000 lines: image path, kind and message."""
    found: dict[str, str] = {}
    with suppress(FileNotFoundError), failures.open("rb") as lines:
        for line in islice(lines, EXAMPLES_IN):
            row = json_object(line) or {}
            if isinstance(failure := row.get("failure"), dict):
                why = f"{row.get('image_path')!r:.200} ({failure.get('kind')}): {failure.get('message')!s:.300}"
                found.setdefault(str(failure.get("kind")), why)
    return list(found.values())


def counted(kinds: Counter[str]) -> str:
    """Returns counts as text, such as `3 timeout, 1 missing`."""
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def nothing_to_retry(others: Counter[str], workspace: Workspace) -> str:
    """The message of a retry whose kinds of failure do not occur."""
    return f"nothing to retry: {counted(others) or 'no'} failures in {workspace.failures}"
