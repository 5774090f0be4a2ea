"""`make demo`, run twice."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, lines_of


@pytest.mark.usefixtures("prefect_api")
def test_the_demo_shows_correct_boxes_and_requests_nothing_the_second_time(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "demo.run", "--folder", str(tmp_path)]
    first = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True, env=os.environ)
    found = re.search(r"59 images in the output, \d+ true objects: mean IoU ([\d.]+)", first.stdout)
    assert found is not None, first.stdout
    assert float(found[1]) >= 0.95
    assert "by a stand-in that sees coloured shapes, not by a model" in " ".join(first.stdout.split())
    assert "failed: 0059.png: unreadable" in first.stdout
    before = (tmp_path / "labeled.jsonl").read_bytes()
    second = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True, env=os.environ)
    assert "Requests sent by this run: 0." in second.stdout
    assert (tmp_path / "labeled.jsonl").read_bytes() == before
    report = json.loads((tmp_path / "labeled.report.json").read_text())
    assert report["images"]["already_done"] == 59
    assert len(lines_of(tmp_path / "labeled.failures.jsonl")) == 1
