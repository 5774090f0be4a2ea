"""An input of several files, its output, and the commands for that."""

import json
import os
import subprocess
import time
from typing import Any

from stand_in.process import StandIn
from tests.conftest import Job, lines_of
from tests.support.command import FORKS


def command(*words: Any) -> "subprocess.CompletedProcess[str]":
    """Runs `vllm-annotate` with these words to its end."""
    return FORKS.run("tests.support.program", [str(word) for word in words], os.environ)


class Corpus:
    """A folder of JSONL files over the images of a job, and its output folder."""

    def __init__(self, job: Job, files: int) -> None:
        self.job = job
        self.folder = job.folder / "corpus"
        self.output = job.folder / "labeled"
        self.work = job.folder / "labeled.work"
        self.failures = job.folder / "labeled.failures.jsonl"
        each = len(job.names) // files
        for number in range(files):
            self.write(f"{number % 2}/{number:02d}.jsonl", job.rows()[number * each : (number + 1) * each])

    def write(self, name: str, rows: list[dict[str, Any]]) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def arguments(self, server: StandIn, *more: str) -> list[str]:
        paths = ["--input", str(self.folder), "--image-root", str(self.job.images), "--output", str(self.output)]
        return [*paths, "--api-base", f"{server.url}/v1", "--without-prefect", *more]

    def run(self, server: StandIn, *more: str) -> "subprocess.CompletedProcess[str]":
        return self.job.run_with(self.arguments(server, *more))

    def run_killed(self, server: StandIn, kills: int, each: int, *more: str) -> None:
        """Annotates, killed whenever so many more images were asked, and then to the end."""
        given = self.arguments(server, "--max-concurrency", "4", *more)
        for kill in range(1, kills + 1):
            run = self.job.start_with(given)
            while sum(server.asked().values()) < each * kill and run.poll() is None:
                time.sleep(0.002)
            run.kill()
            run.communicate()
        done = self.job.run_with(given)
        assert done.returncode == 0, done.stderr
        assert sum(server.asked().values()) <= len(self.job.names) + kills * 4, "what was in flight is asked again"

    def answers(self) -> dict[str, list[str]]:
        """The image paths in each file of the output."""
        files = sorted(self.output.rglob("*.jsonl"))
        return {str(path.relative_to(self.output)): [row["image_path"] for row in lines_of(path)] for path in files}

    def asked(self) -> dict[str, list[str]]:
        """The image paths in each file of the input."""
        files = sorted(self.folder.rglob("*.jsonl"))
        return {str(path.relative_to(self.folder)): [row["image_path"] for row in lines_of(path)] for path in files}
