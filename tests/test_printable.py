"""Texts of others, as they reach a terminal, a log, a page and Prefect; rows keep them as they are."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stand_in.process import StandIn
from tests.conftest import Job, ask_prefect, lines_of
from vllm_annotate.cli.main import main
from vllm_annotate.errors import ImageFailure, UsageError
from vllm_annotate.printable import UNPRINTABLE, Printable, printable
from vllm_annotate.report.charts import Line, chart
from vllm_annotate.report.markdown import code, plain

MakeJob = Callable[..., Job]
# Sets the title, clears the screen, in seven bits and eight; overwrites the line; turns the direction; hides.
HOSTILE = "a\x1b]0;owned\x07\x1b[2J\x9b2Jb\rc\u202ed\u2066e\u200ff\x7fg\U000e0041h"


@pytest.mark.parametrize(
    "letter", [*map(chr, [*range(9), *range(11, 32), *range(127, 160)]), *"\u202e\u2066\u200f\ud800"]
)
def test_what_changes_a_terminal_or_turns_a_text_is_replaced(letter: str) -> None:
    assert printable(f"a{letter}b") == "a\ufffdb"


@pytest.mark.parametrize("text", ["", "a\tb\nc", "图，说明", "שלום עולם", "مرحبا", "👩‍👩‍👧 é ñ", "a\u00a0b"])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert printable(text) == text


def test_errors_log_records_artifacts_and_charts_are_printable() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "model %s", (HOSTILE,), None)
    assert Printable().filter(record)
    failure = ImageFailure("missing", HOSTILE)
    shown = [
        str(UsageError(HOSTILE)),
        str(failure),
        failure.message,
        record.getMessage(),
        plain(HOSTILE),
        code(HOSTILE),
    ]
    shown.append(chart(HOSTILE, [Line(HOSTILE, [(0, 1)]), Line("b", [(0, 1)])]))
    assert not [text for text in shown if UNPRINTABLE.search(text)]
    assert all("g" in text for text in shown)


@pytest.mark.parametrize(
    "arguments", [["--model-path", HOSTILE], ["--server", HOSTILE], [HOSTILE], ["--gpus", HOSTILE]]
)
def test_check_server_prints_nothing_unprintable(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["check-server", *arguments])
    shown = "".join(capsys.readouterr())
    assert "owned" in shown
    assert not UNPRINTABLE.search(shown)


def hostile_job(make_job: MakeJob) -> Job:
    """A job whose captions and file names are hostile; one image is missing, one is refused, one is not parsed."""
    job = make_job(6)
    names = [f"{number}{HOSTILE}.jpg" for number in range(6)]
    for old, new in zip(job.names, names, strict=True):
        (job.images / old).rename(job.images / new)
    (job.images / names[0]).unlink()
    job.names[:] = names
    job.write_input([{"image_path": name, "caption": f"{name} {HOSTILE}", "id": HOSTILE} for name in names])
    return job


@pytest.mark.parametrize("without_prefect", [True, False])
def test_a_whole_run_shows_nothing_unprintable_and_keeps_its_rows(
    make_job: MakeJob, prefect_api: str, tmp_path: Path, without_prefect: bool
) -> None:
    job = hostile_job(make_job)
    answer = json.dumps({"rationale": HOSTILE, "objects": [{"bbox_2d": [28, 28, 84, 84], "label": HOSTILE}]})
    with StandIn.started("--model", f"qwen2.5-vl {HOSTILE}") as server:
        server.set_faults(
            {"kind": "echo", "count": None, "text": HOSTILE, "match": "^1|\n1|: 1a"},
            {"kind": "text", "count": None, "text": HOSTILE, "match": "^2|\n2|: 2a"},
            {"kind": "text", "count": None, "text": answer},
        )
        more = ["--without-prefect", "--log-json"] if without_prefect else []
        ran = job.run(server.url, *more)
    assert ran.returncode == 1, ran.stderr
    assert not UNPRINTABLE.search(ran.stdout + ran.stderr)
    assert "d\ufffde" in ran.stderr, "the model's name"
    page = (job.folder / "labeled.report.html").read_text()
    assert not UNPRINTABLE.search(page)
    assert page.count("owned") > 6
    rows = {row["image_path"]: row for row in lines_of(job.output) + lines_of(job.failures)}
    assert sorted(rows) == sorted(job.names)
    assert all(row["caption"] == f"{name} {HOSTILE}" and row["id"] == HOSTILE for name, row in rows.items())
    assert rows[job.names[5]]["vlm_output"] == answer
    messages = [row["failure"]["message"] for row in lines_of(job.failures)]
    assert len(messages) >= 2
    assert not UNPRINTABLE.search("".join(messages))
    if not without_prefect:
        for what in ("artifacts", "logs", "flow_runs", "task_runs"):
            found = ask_prefect(prefect_api, f"/{what}/filter", limit=200)
            assert not [text for text in texts_in(found) if UNPRINTABLE.search(text)], what


def texts_in(value: Any) -> Iterator[str]:
    """All texts in what an API answers, but for the parameters of runs: those are as they were given."""
    if isinstance(value, str):
        yield value
    for name, inner in (
        value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    ):
        if name != "parameters":
            yield from texts_in(inner)
