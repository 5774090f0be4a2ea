"""Each system call of a run that changes a file, killed, and many failed: the next run ends as if nothing had been."""

import errno
import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard

from tests.conftest import lines_of
from tests.faults.conftest import Steps

PATHS = [f"{number:02d}.jpg" for number in range(8)]
MEMORY = Path("/dev/shm")
KILLED, FAILING = 1 / 2, 1 / 6  # of the calls are killed, and fail, drawn at random; in `make prove` all of them
pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(900)]


@dataclass
class Scenario:
    """A folder as a step finds it, and the step."""

    folder: Path
    steps: Steps
    step: str = "annotate"
    exact: bool = True  # the result does not depend on how often the step is begun
    parameters: dict[str, Any] = field(default_factory=dict)

    def do(self, faults: dict[str, str] | None = None) -> Any:
        """Does the step."""
        given = {f"FAULT_{name}": value for name, value in (faults or {}).items()}
        faults = {"FAULT_PREFIX": f"{self.folder}/"} | given if given else {}
        return self.steps.do(self.step, folder=str(self.folder), faults=faults, **self.parameters)

    def prepare(self, step: str, **parameters: Any) -> None:
        """Does a step that comes before."""
        outcome = self.steps.do(step, folder=str(self.folder), **parameters)
        assert outcome.code == 0, outcome.said

    def write_input(self, paths: list[str], name: str = "input.jsonl") -> None:
        rows = [{"image_path": path, "caption": f"caption of {path}", "big": 2**70} for path in paths]
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write_inputs(self, files: dict[str, list[str]]) -> None:
        """Writes several input files; one that has the same rows stays as it is."""
        (self.folder / "input.jsonl").unlink(missing_ok=True)
        (self.folder / "inputs").mkdir(exist_ok=True)
        for name, paths in files.items():
            path = self.folder / "inputs" / name
            if [row["image_path"] for row in lines_of(path)] != paths:
                self.write_input(paths, f"inputs/{name}")


def new(scenario: Scenario) -> None:
    scenario.parameters = {"failing": ["02.jpg"]}


def after_another_script(scenario: Scenario) -> None:
    """Its last line is torn; an older failures file lies beside."""
    new(scenario)
    rows = '{"image_path": "old.jpg", "own": 1}\n{"image_path": "01.jpg", "own": NaN}\n{"image_pa'
    (scenario.folder / "labeled.jsonl").write_text(rows)
    failure = {"image_path": "03.jpg", "failure": {"kind": "missing", "message": "", "attempts": 0}}
    (scenario.folder / "labeled.failures.jsonl").write_text(json.dumps(failure) + "\n")


def with_another_input(scenario: Scenario) -> None:
    """A run was killed half-way and its input edited since: what it left is settled, and the rest planned again."""
    new(scenario)
    parts = f"{scenario.folder}/labeled.work/parts/"
    killed = scenario.steps.do(
        "annotate", folder=str(scenario.folder), faults={"FAULT_PREFIX": parts, "FAULT_AT": "14", "FAULT_MODE": "kill"}
    )
    assert killed.code == -9
    scenario.write_input([*PATHS[:2], "new.jpg", *PATHS[3:]])


def after_a_chunk_was_stopped(scenario: Scenario) -> None:
    scenario.prepare("annotate", stopping=[2])
    new(scenario)


def with_a_chunk_that_is_stopped(scenario: Scenario) -> None:
    scenario.parameters, scenario.exact = {"stopping": [2]}, False


def merging_shards(scenario: Scenario) -> None:
    for shard in ("1/2", "2/2"):
        scenario.prepare("annotate", shard=shard, failing=["02.jpg"])
    scenario.step = "merge_all"


def of_a_shard(scenario: Scenario) -> None:
    scenario.prepare("annotate", shard="2/2")
    scenario.parameters = {"shard": "1/2"}


def retrying(scenario: Scenario) -> None:
    scenario.prepare("annotate", failing=["02.jpg", "04.jpg"])
    scenario.step, scenario.parameters = "retry", {"failing": ["04.jpg"]}


def of_a_folder(scenario: Scenario) -> None:
    """Two input files, each a chunk."""
    scenario.write_inputs({"0.jsonl": PATHS[:3], "1.jsonl": PATHS[3:5]})
    scenario.step, scenario.parameters = "annotate_folder", {"failing": ["02.jpg"]}


def of_a_folder_whose_files_are_others(scenario: Scenario) -> None:
    """One has a failure and has grown since, the other was only touched."""
    scenario.write_inputs({"0.jsonl": PATHS[:2], "1.jsonl": PATHS[2:4]})
    scenario.prepare("annotate_folder", failing=["01.jpg"])
    scenario.write_inputs({"0.jsonl": [PATHS[0], "new.jpg", PATHS[1]]})
    os.utime(scenario.folder / "inputs" / "1.jsonl", (1, 1))
    scenario.step, scenario.parameters = "annotate_folder", {"failing": ["new.jpg"]}


def of_a_folder_with_a_chunk_that_was_stopped(scenario: Scenario) -> None:
    scenario.write_inputs({"0.jsonl": PATHS[:5], "1.jsonl": PATHS[5:]})
    scenario.prepare("annotate_folder", stopping=[2])
    scenario.step, scenario.parameters = "annotate_folder", {"failing": ["02.jpg"]}


def of_a_folder_that_is_compressed(scenario: Scenario, output_format: str = "jsonl.zst") -> None:
    """One file has a failure, which is answered now, and the other is new."""
    scenario.write_inputs({"0.jsonl": PATHS[:3]})
    scenario.prepare("annotate_folder", failing=["01.jpg"], output_format=output_format)
    scenario.write_inputs({"1.jsonl": PATHS[3:5]})
    scenario.step, scenario.parameters = "annotate_folder", {"output_format": output_format}


def of_a_folder_of_tables(scenario: Scenario) -> None:
    of_a_folder_that_is_compressed(scenario, "parquet")


SCENARIOS: list[Any] = [
    new, after_another_script, with_another_input, after_a_chunk_was_stopped, with_a_chunk_that_is_stopped,
    merging_shards, of_a_shard, retrying, of_a_folder, of_a_folder_with_a_chunk_that_was_stopped,
    pytest.param(of_a_folder_whose_files_are_others, marks=pytest.mark.prove),
    pytest.param(of_a_folder_that_is_compressed, marks=pytest.mark.prove),
    pytest.param(of_a_folder_of_tables, marks=pytest.mark.prove),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a file system: it is synced thousands of times."""
    made = MEMORY / f"vllm-annotate-{os.getpid()}" if os.access(MEMORY, os.W_OK) else tmp_path / "job"
    made.mkdir()
    yield made
    shutil.rmtree(made)


@pytest.fixture(params=SCENARIOS, ids=lambda scenario: getattr(scenario, "__name__", None))
def scenario(request: pytest.FixtureRequest, folder: Path, steps: Steps) -> Scenario:
    made = Scenario(folder, steps)
    made.write_input(PATHS)
    request.param(made)
    return made


def files_of(folder: Path) -> dict[str, Any]:
    """What is written of the images, and what is left over in the work folder."""
    seen: dict[str, Any] = {path.name: path.read_bytes() for path in folder.glob("labeled.*jsonl")}
    # Chunks of several files are at work at once, and one that is stopped does not hold back the next one's answers.
    seen |= {path.name: sorted(content_of(path).splitlines()) for path in folder.glob("labeled/*")}
    files = [path for path in folder.rglob("*") if path.is_file()]
    left = [path for path in files if path.parent.name == "parts" or path.name.startswith(("plan", "."))]
    left += folder.glob("labeled.work/files/*/growing.jsonl")
    return seen | {"left over": sorted(path.name for path in left if path.name != "plan.keys")}


def content_of(path: Path) -> bytes:
    """The content of an output file in lines; if it is compressed, its frames are whole."""
    if path.suffix == ".parquet":
        return b"".join(row.encode() + b"\n" for row in pl.read_parquet(path)["row"])
    if path.suffix != ".zst":
        return path.read_bytes()
    with path.open("rb") as file:
        return bytes(zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read())


def unlike(files: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Which files are others than expected."""
    return [
        f"{name}: {files.get(name)}, not {expected.get(name)}"
        for name in sorted(files | expected)
        if files.get(name) != expected.get(name)
    ]


def rows_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in content_of(path).splitlines()]


def broken_rules(scenario: Scenario) -> list[str]:
    """Every image in the output or the failures, in one of them, once."""
    folder = scenario.folder
    answered, failed, wanted = (
        [row["image_path"] for path in paths if path.exists() for row in rows_of(path) if isinstance(row, dict)]
        for paths in (
            [folder / "labeled.jsonl", *folder.glob("labeled/*")],
            [folder / "labeled.failures.jsonl"],
            [folder / "input.jsonl", *folder.glob("inputs/*")],
        )
    )
    missing = set(wanted) - set(answered) - set(failed) if "shard" not in scenario.parameters else set()
    both = set(answered) & set(failed)
    twice = [path for path in set(answered) if answered.count(path) > 1]
    return [f"{rule}: {sorted(of)}" for rule, of in (("missing", missing), ("both", both), ("twice", twice)) if of]


def test_a_call_that_is_killed_or_fails_changes_nothing_of_the_result(
    scenario: Scenario, tmp_path: Path, rng: random.Random, fuzzing: bool
) -> None:
    before, log = tmp_path / "before", tmp_path / "calls"
    shutil.copytree(scenario.folder, before)
    assert scenario.do({"LOG": str(log)}).code == 0
    expected, calls = files_of(scenario.folder), log.read_text().splitlines()
    assert broken_rules(scenario) == []
    wrong = []
    for number, call in enumerate(calls, start=1):
        drawn = rng.random()
        if not fuzzing and drawn >= KILLED:
            continue
        for mode in modes(call, failing=fuzzing or drawn < FAILING):
            shutil.rmtree(scenario.folder)
            shutil.copytree(before, scenario.folder)
            at = f"{number}-{number + 1}" if mode.startswith("short") else str(number)
            first = scenario.do({"AT": at, "MODE": mode})
            if first.code == 1 or (first.code == 0 and files_of(scenario.folder) != expected and scenario.exact):
                wrong.append(f"{mode} at {call}: ended with {first}")
            if fuzzing:  # it is killed a second time, somewhere
                scenario.do({"AT": str(rng.randint(1, len(calls))), "MODE": "kill"})
            again = scenario.do()
            other = unlike(files_of(scenario.folder), expected) if scenario.exact else []
            if again.code or other or broken_rules(scenario):
                wrong.append(f"{mode} at {call}: {again} {broken_rules(scenario)} {other}")
    print(f"{len(calls)} calls")
    assert wrong == [], "\n".join(wrong)


def modes(call: str, *, failing: bool) -> list[str]:
    """What is done to a call."""
    if not failing:
        return ["kill"]
    if call.split()[1] == "write":
        return ["kill", f"error:{errno.ENOSPC}", f"short:{errno.ENOSPC}"]
    return ["kill", f"error:{errno.EIO}"]
