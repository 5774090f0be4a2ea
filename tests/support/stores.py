"""A plan with parts that tests fill."""

import json
from pathlib import Path

from tests.conftest import lines_of
from vllm_annotate.errors import ImageFailure
from vllm_annotate.images.prepare import PreparedImage
from vllm_annotate.inputs.plan import make_plan, open_plan
from vllm_annotate.inputs.plan_file import Plan
from vllm_annotate.inputs.rows import Row
from vllm_annotate.inputs.source import Source
from vllm_annotate.results.lines import answer_line
from vllm_annotate.results.merge import Merge
from vllm_annotate.results.parts import Part, pending_rows
from vllm_annotate.storage.workspace import Workspace

IMAGE = PreparedImage(b"", 640, 480, 644, 476)
PARSED = {"annotations": {"rationale": "", "objects": []}, "objects": []}


class Store:
    """A workspace with a plan over `count` rows in chunks of three."""

    def __init__(self, folder: Path, count: int) -> None:
        self.workspace = Workspace.at(folder / "labeled.jsonl")
        self.workspace.parts.mkdir(parents=True)
        self.input = folder / "input.jsonl"
        self.write_input(range(count))
        self.plan = self.replan()

    def write_input(self, numbers: range | list[int]) -> None:
        rows = [{"image_path": f"{n}.jpg", "caption": f"caption {n}", "other": [n]} for n in numbers]
        self.input.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def replan(self) -> Plan:
        return make_plan(Source(self.input), self.workspace, 3)

    def reopen(self) -> Plan:
        plan = open_plan(self.workspace)
        assert plan is not None
        return plan

    def pending(self) -> list[Row]:
        return [row for chunk in self.plan.chunks for row in pending_rows(self.workspace, chunk, Source(self.input))]

    def answer(self, *numbers: int, failing: tuple[int, ...] = ()) -> None:
        """Answers rows in the order given, as completions arrive."""
        for chunk in self.plan.chunks:
            rows = {row.image_path: row for row in pending_rows(self.workspace, chunk, Source(self.input))}
            part = Part(self.workspace, chunk)
            for number in numbers:
                if (row := rows.get(f"{number}.jpg")) is not None:
                    part.answer(row, answer_line(row, IMAGE, f"text {number}", PARSED))
            for number in failing:
                if (row := rows.get(f"{number}.jpg")) is not None:
                    part.fail(row, ImageFailure("rejected", "no", 2))
            part.close()

    def merge(self, stopped: dict[int, ImageFailure] | None = None) -> None:
        merge = Merge(self.workspace, self.plan)
        merge.stopped |= stopped or {}
        merge.finish()

    def output(self) -> list[str]:
        return [row["image_path"].removesuffix(".jpg") for row in lines_of(self.workspace.output)]

    def failures(self) -> dict[str, str]:
        rows = lines_of(self.workspace.failures)
        return {row["image_path"].removesuffix(".jpg"): row["failure"]["kind"] for row in rows}
