"""Any sequence of runs, kills and edits: the promises of a run hold after each step."""

import json
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.faults.conftest import Outcome, Steps

NUMBERS = st.integers(0, 11)
BROKEN = (b"broken", b'{"image_path": "7.j')
MOST_CALLS = 140  # of a run of so few images


class Runs(RuleBasedStateMachine):
    """One output, and what people and machines do to it."""

    steps: ClassVar[Steps]

    @initialize(numbers=st.lists(NUMBERS, min_size=1, unique=True))
    def begin(self, numbers: list[int]) -> None:
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="vllm-annotate-", dir=memory))
        for number in range(12):
            (self.folder / f"{number}.jpg").touch()  # an image root without any image is refused
        self.versions = 0
        self.last: Outcome | None = None  # of a run that came to its end, until something is edited
        self.captions: dict[str, set[str]] = {}  # image → all that the input ever said of it
        self.tails: set[bytes] = set()  # whole rows that were written without a line break
        self.edited = False  # by hand, since the last run that came to its end
        self.write_input(numbers)
        self.kept = b""  # of the output: what nobody may change

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def output(self) -> Path:
        return self.folder / "labeled.jsonl"

    @property
    def failures(self) -> Path:
        return self.folder / "labeled.failures.jsonl"

    def rows(self, path: Path) -> list[dict[str, Any]]:
        """The rows of a file; what was broken by hand stays so, and its end until there is something to add."""
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        whole = [line for line in lines[:-1] if line not in BROKEN] + [
            line for line in lines[-1:] if line in self.tails
        ]
        return [json.loads(line) for line in whole]

    def write_input(self, numbers: list[int]) -> None:
        self.versions += 1
        self.last = None
        rows: list[dict[str, Any]] = [
            {"image_path": f"{number}.jpg", "caption": f"{number} of {self.versions}", "n": 10**20 + number}
            for number in numbers
        ]
        for row in rows:
            self.captions.setdefault(row["image_path"], set()).add(row["caption"])
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / "input.jsonl").write_text(text + "not a row\n" + text[: text.index("\n") + 1])

    def do(self, step: str, *, kill_at: int = 0, **parameters: Any) -> Outcome:
        faults = {"FAULT_PREFIX": f"{self.folder}/", "FAULT_AT": str(kill_at), "FAULT_MODE": "kill"} if kill_at else {}
        outcome = self.steps.do(step, folder=str(self.folder), faults=faults, **parameters)
        assert outcome.code != 1, outcome.said
        self.last = outcome if outcome.code == 0 and step == "annotate" else None
        if outcome.code == 0:
            self.edited = False
        return outcome

    def recipe_on_disk(self) -> str | None:
        path = self.folder / "labeled.work" / "recipe.json"
        return str(json.loads(path.read_text())["fingerprint"]) if path.exists() else None

    def has_answers(self) -> bool:
        parts = (self.folder / "labeled.work" / "parts").glob("*.jsonl")
        return any(path.exists() and path.stat().st_size for path in [self.output, *parts])

    @rule(failing=st.sets(NUMBERS, max_size=3), recipe=st.sampled_from(["one", "one", "two"]))
    def run(self, failing: set[int], recipe: str) -> None:
        other = self.has_answers() and self.recipe_on_disk() not in (None, recipe)
        outcome = self.do("annotate", failing=[f"{number}.jpg" for number in failing], recipe=recipe)
        assert outcome.code == (2 if other else 0), outcome.said
        assert ("another recipe" in outcome.said) == other

    @rule(chunk=st.integers(1, 3))
    def run_with_a_chunk_that_is_stopped(self, chunk: int) -> None:
        recipe = self.recipe_on_disk() or "one"
        assert self.do("annotate", stopping=[chunk], recipe=recipe).code == 0

    @rule(kill_at=st.integers(1, MOST_CALLS), failing=st.sets(NUMBERS, max_size=3))
    def run_that_is_killed(self, kill_at: int, failing: set[int]) -> None:
        recipe = self.recipe_on_disk() or "one"
        given = [f"{number}.jpg" for number in failing]
        assert self.do("annotate", kill_at=kill_at, failing=given, recipe=recipe).code in (0, -9)

    @rule(kill_at=st.integers(0, MOST_CALLS))
    @precondition(lambda self: self.recipe_on_disk() == "one")
    def retry(self, kill_at: int) -> None:
        assert self.do("retry", kill_at=kill_at).code in (0, -9)
        self.last = None  # it speaks of the failures alone

    @rule(numbers=st.lists(NUMBERS, min_size=1, unique=True))
    def edit_the_input(self, numbers: list[int]) -> None:
        self.write_input(numbers)

    @rule(which=st.integers(0, 11))
    def delete_a_row_of_the_output(self, which: int) -> None:
        lines = self.output.read_bytes().splitlines(keepends=True) if self.output.exists() else []
        if lines:
            del lines[which % len(lines)]
            self.replace_output(b"".join(lines))

    @rule(number=NUMBERS)
    def append_a_row_of_another_script(self, number: int) -> None:
        path = f"{number}.jpg"
        if path not in {row.get("image_path") for row in self.rows(self.output)}:
            content = self.output.read_bytes() if self.output.exists() else b""
            content += b"\n" if content and not content.endswith(b"\n") else b""
            self.replace_output(content + json.dumps({"image_path": path, "score": float("nan")}).encode() + b"\n")

    @rule(tail=st.sampled_from([b"broken\n", b'{"image_path": "7.j', b'{"image_path": "other.jpg"}']))
    def break_the_output(self, tail: bytes) -> None:
        content = self.output.read_bytes() if self.output.exists() else b""
        if content.endswith(b"\n") and b"other.jpg" not in content:
            self.tails.update([tail] if tail.endswith(b"}") else [])
            self.replace_output(content + tail)

    def replace_output(self, content: bytes) -> None:
        edited = self.folder / "edited"
        edited.write_bytes(content)
        edited.replace(self.output)
        self.kept, self.edited, self.last = content[: content.rfind(b"\n") + 1], True, None

    @invariant()
    def no_image_is_there_twice_or_in_both_files(self) -> None:
        if not hasattr(self, "folder"):
            return
        answered = Counter(row["image_path"] for row in self.rows(self.output))
        assert not answered or max(answered.values()) == 1
        if not self.edited:
            assert not answered.keys() & {row["image_path"] for row in self.rows(self.failures)}

    @invariant()
    def what_the_output_had_stays_byte_for_byte(self) -> None:
        if not hasattr(self, "folder") or not self.output.exists():
            return
        content = self.output.read_bytes()
        assert content.startswith(self.kept)
        if not self.edited:
            self.kept = content[: content.rfind(b"\n") + 1]  # a torn end is cut away when there is more to add

    @invariant()
    def no_image_has_the_caption_of_another(self) -> None:
        for row in self.rows(self.output) if hasattr(self, "folder") else []:
            if "vlm_output" in row:
                assert row["caption"] == row["vlm_output"]
                assert row["caption"] in self.captions[row["image_path"]]
                assert row["n"] == 10**20 + int(row["image_path"].removesuffix(".jpg"))

    @invariant()
    def after_a_run_every_image_is_in_one_of_the_files(self) -> None:
        if not hasattr(self, "folder") or self.last is None:
            return
        there = {row["image_path"] for row in [*self.rows(self.output), *self.rows(self.failures)]}
        wanted = (self.folder / "input.jsonl").read_bytes().splitlines()
        assert {json.loads(line)["image_path"] for line in wanted if line.startswith(b"{")} <= there
        assert not any((self.folder / "labeled.work" / "parts").iterdir())


@pytest.mark.fuzz
@pytest.mark.timeout(1800)
def test_the_promises_of_a_run_hold_after_any_sequence_of_runs_kills_and_edits(steps: Steps, fuzzing: bool) -> None:
    Runs.steps = steps
    wanted = settings(max_examples=250 if fuzzing else 40, stateful_step_count=20, report_multiple_bugs=False)
    run_state_machine_as_test(Runs, settings=wanted)
