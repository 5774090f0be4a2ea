"""Outputs to export, and the command that exports them."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Done, command

os.environ["HF_HUB_OFFLINE"] = "1"  # datasets reads it when it is imported; the tests need no network
__all__ = ["Done", "command"]  # a fixture
NAMES = ("cat", "Cat", "沙发", "red  cup", "ﬁsh", "Straße", "قط", "🐈 <b>&amp;", 'a "quoted" name')


def row(number: int, rng: random.Random, **more: Any) -> dict[str, Any]:
    """A row as a run writes it."""
    objects = []
    for _ in range(rng.randint(1, 6)):
        (left, right), (top, bottom) = (sorted(rng.sample(range(1001), 2)) for _ in range(2))
        objects.append({"name": rng.choice(NAMES), "bbox": [left, top, right, bottom]})
    rationale = f"In image {number} …"
    return {
        "image_path": f"部分/{number:05d} é.jpg", "caption": f"a cat on a sofa, {number}", "vlm_output": "…",
        "annotations": {"rationale": rationale, "objects": objects}, "objects": objects,
        "width": rng.randint(1, 4000), "height": rng.randint(1, 4000), "sent_size": [644, 476],
    } | more  # fmt: skip


@pytest.fixture
def rows(rng: random.Random) -> list[dict[str, Any]]:
    """A hundred rows."""
    return [row(number, rng) for number in range(100)]


@pytest.fixture
def write_output(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows, or lines, as labeled.jsonl."""

    def write(*lines: Any, end: str = "\n") -> Path:
        path = tmp_path / "labeled.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
        path.write_text("\n".join(texts) + end, encoding="utf-8")
        return path

    return write


def write_audit(folder: Path, agreement: dict[str, float]) -> None:
    """Writes what an audit found about images beside labeled.jsonl."""
    rows = ({"image_path": image, "agreement": share} for image, share in agreement.items())
    (folder / "labeled.audit.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def export(command: Callable[..., Done]) -> Callable[..., Done]:
    """Runs `vllm-annotate export` with these options."""

    def run(output: Path, form: str, to: Path, *more: object) -> Done:
        return command("export", "--output", output, "--format", form, "--to", to, *more)

    return run
