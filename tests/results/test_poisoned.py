"""Rows with values that a parser cannot write back: each passes through unchanged, and stops no other."""

import json
import math
from collections.abc import Callable

import pytest

from stand_in.process import StandIn
from tests.conftest import Job
from tests.flows.test_annotate import annotate

pytestmark = pytest.mark.usefixtures("prefect_api")
DEEP = "[" * 300 + "]" * 300
POISON = {
    "0000.jpg": '"big": 123456789012345678901234567890, "nan": NaN',
    "0001.jpg": f'"deep": {DEEP}',
    "0002.jpg": '"huge": 1e400, "cents": 1.10, "neg": -0.0, "exp": 1E5, "long": 0.1000000000000000055511151231257827',
    "0003.jpg": '"lone": "\\ud83d", "caf\\u00e9": "\\u00e9", "nested": {"a": [18446744073709551616, NaN]}',
    "0004.jpg": '"twice": 1, "twice": 2, "failure": "mine", "attempts": NaN, "flags": {"a": 1}, "objects": 1e400',
}
CAPTIONS = {
    "0005.jpg": "NaN",
    "0006.jpg": "null",
    "0007.jpg": "123456789012345678901234567890",
    "0008.jpg": f"[{DEEP}]",
}


def poisoned(job: Job) -> None:
    rows = [f'{{"image_path": "{path}", "caption": "caption of {path}", {more}}}' for path, more in POISON.items()]
    rows += [f'{{"caption": {caption}, "image_path": "{path}"}}' for path, caption in CAPTIONS.items()]
    job.input.write_text("\n".join(rows) + "\n")


def members(line: str) -> str:
    """Returns the text of a line between the caption and our fields or the failure."""
    return line.partition(',"vlm_output"')[0].partition(',"failure":{"kind"')[0]


async def test_such_rows_pass_through_digit_for_digit_into_output_and_failures(
    make_job: Callable[..., Job], stand_in: StandIn
) -> None:
    job = make_job(9)
    poisoned(job)
    state = await annotate(job, stand_in, chunk_size=4)
    assert state.is_completed(), state.message
    assert "9 images: 9 answered" in str(state.message)
    lines = {json.loads(line)["image_path"]: line for line in job.output.read_text().splitlines()}
    passed = {
        "0000.jpg": '"big":123456789012345678901234567890,"nan":NaN',
        "0001.jpg": f'"deep":{DEEP}',
        "0002.jpg": POISON["0002.jpg"].replace(": ", ":").replace(", ", ","),
        "0003.jpg": '"lone":"\\ud83d","caf\\u00e9":"\\u00e9","nested":{"a": [18446744073709551616, NaN]}',
        "0004.jpg": '"twice":2,"failure":"mine"',
    }
    for path, written in passed.items():
        assert members(lines[path]) == f'{{"image_path":"{path}","caption":"caption of {path}",{written}'
    captions = {path: json.loads(lines[path])["caption"] for path in CAPTIONS}
    assert captions == {
        "0005.jpg": "",
        "0006.jpg": "",
        "0007.jpg": CAPTIONS["0007.jpg"],
        "0008.jpg": CAPTIONS["0008.jpg"],
    }
    assert json.loads((job.folder / "labeled.report.json").read_text())["images"]["without_caption"] == 2
    assert (await annotate(job, stand_in)).is_completed(), "and the output with them can be read"


async def test_failed_rows_are_retried_unchanged(make_job: Callable[..., Job], stand_in: StandIn) -> None:
    job = make_job(9)
    poisoned(job)
    stand_in.set_faults({"kind": "400", "count": None})
    state = await annotate(job, stand_in, chunk_size=4, error_budget=1)
    assert "9 failed" in str(state.message)
    assert '"big":123456789012345678901234567890,"nan":NaN' in job.failures.read_text()
    stand_in.set_faults()
    job.input.write_bytes(job.failures.read_bytes())
    state = await annotate(job, stand_in, chunk_size=4)
    assert "9 answered" in str(state.message)
    lines = {json.loads(line)["image_path"]: line for line in job.output.read_text().splitlines()}
    assert f'"deep":{DEEP}' in lines["0001.jpg"]
    assert '"cents":1.10,"neg":-0.0,"exp":1E5' in lines["0002.jpg"]
    assert math.isnan(json.loads(lines["0000.jpg"])["nan"])
    assert '"failure"' not in lines["0000.jpg"]
