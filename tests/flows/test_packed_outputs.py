"""Outputs that are compressed, or made a table, once their input file is finished."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard

from stand_in.process import StandIn
from tests.conftest import Job
from tests.support.corpus import Corpus, command

MakeJob = Callable[..., Job]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a table, or of a compressed file whose frames are all whole."""
    if path.suffix == ".parquet":
        return [json.loads(row) for row in pl.read_parquet(path)["row"]]
    with path.open("rb") as file:
        text = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
    return [json.loads(line) for line in io.BytesIO(text)]


def answers(corpus: Corpus, form: str) -> dict[str, list[str]]:
    """The image paths in each file, by the name that it would have with plain lines."""
    return {
        str(path.relative_to(corpus.output)).removesuffix(form) + "jsonl": [row["image_path"] for row in rows_of(path)]
        for path in sorted(corpus.output.rglob(f"*.{form}"))
    }


@pytest.fixture(params=["jsonl.zst", "parquet"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def corpus(make_job: MakeJob) -> Corpus:
    """Three files of four images."""
    return Corpus(make_job(12), 3)


def test_each_file_has_its_form_when_it_is_finished_and_not_opened_again(
    corpus: Corpus, stand_in: StandIn, form: str
) -> None:
    done = corpus.run(stand_in, "--output-format", form)
    assert done.returncode == 0, done.stderr
    assert answers(corpus, form) == corpus.asked()
    assert not list(corpus.output.rglob("*.jsonl"))
    assert not list(corpus.work.joinpath("files").iterdir())
    report = json.loads(corpus.job.folder.joinpath("labeled.report.json").read_text())
    assert (report["output"]["images"], report["output"]["quality"]["answers"]) == (12, 12)
    assert corpus.job.folder.joinpath("labeled.report.html").read_text().count("data:image/jpeg;base64,") == 12
    again = corpus.run(stand_in)
    assert "3 input files: 3 are finished, 0 to do" in again.stderr
    assert max(stand_in.asked().values()) == 1


def test_later_answers_come_behind_what_was_there(corpus: Corpus, stand_in: StandIn, form: str) -> None:
    stand_in.set_faults({"kind": "400", "count": None, "match": "0001"})
    assert corpus.run(stand_in, "--output-format", form).returncode == 1
    path = corpus.output / f"0/00.{form}"
    before, rows, others = path.read_bytes(), rows_of(path), corpus.output.joinpath(f"0/02.{form}").stat()
    stand_in.set_faults()
    corpus.write("1/01.jsonl", corpus.job.rows()[4:9])
    retried = corpus.run(stand_in)  # a file that is there stays as it is, whatever the option
    assert retried.returncode == 0, retried.stderr
    assert form == "parquet" or path.read_bytes().startswith(before), "a frame behind those that were there"
    assert rows_of(path)[: len(rows)] == rows
    assert len(rows_of(path)) == len(rows) + 1
    assert corpus.output.joinpath(f"0/02.{form}").stat() == others
    assert {name: sorted(paths) for name, paths in answers(corpus, form).items()} == corpus.asked()
    assert sum(stand_in.asked().values()) == 12 + 1 + 1


def test_plain_files_stay_plain_and_new_ones_have_the_form(corpus: Corpus, stand_in: StandIn, form: str) -> None:
    assert corpus.run(stand_in).returncode == 0
    plain = {path: path.stat() for path in corpus.output.rglob("*.jsonl")}
    corpus.write("2/new.jsonl", corpus.job.rows()[:2])
    assert corpus.run(stand_in, "--output-format", form).returncode == 0
    assert {path: path.stat() for path in corpus.output.rglob("*.jsonl")} == plain
    assert [path.name for path in corpus.output.rglob(f"*.{form}")] == [f"new.{form}"]


def test_a_file_that_breaks_off_is_named_and_left_alone(corpus: Corpus, stand_in: StandIn, form: str) -> None:
    assert corpus.run(stand_in, "--output-format", form).returncode == 0
    path = corpus.output / f"0/00.{form}"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    stand_in.forget()
    done = corpus.run(stand_in, "--output-format", form)
    assert done.returncode == 1
    assert f"{path} is truncated or corrupt" in done.stderr
    assert path.read_bytes() == whole[: len(whole) // 2]
    assert not stand_in.asked()
    evaluated = command("export", "--output", corpus.output, "--format", "odvg", "--to", corpus.job.folder / "boxes")
    assert evaluated.returncode == 2
    assert f"{path} is truncated or corrupt" in evaluated.stderr
    path.write_bytes(whole)
    assert corpus.run(stand_in, "--output-format", form).returncode == 0


@pytest.mark.fuzz
def test_a_run_that_is_killed_again_and_again_loses_and_repeats_nothing(
    make_job: MakeJob, form: str, fuzzing: bool
) -> None:
    corpus, kills = Corpus(make_job(100, distinct=10), 10), 5 if fuzzing else 3
    with StandIn.started("--canned", "--prefill-seconds", "0.02") as server:
        corpus.run_killed(server, kills, 80 // kills, "--chunk-size", "3", "--output-format", form)
    assert answers(corpus, form) == corpus.asked()


def test_commands_read_outputs_of_any_form(corpus: Corpus, stand_in: StandIn, form: str) -> None:
    assert corpus.run(stand_in, "--output-format", form).returncode == 0
    again, truth = corpus.job.folder / "again", corpus.job.folder / "truth.jsonl"
    assert command("reparse", "--input", corpus.output, "--output", again).returncode == 0
    assert sorted(str(path.relative_to(again)) for path in again.rglob("*.jsonl")) == list(corpus.asked())
    truth.write_bytes(b"".join(path.read_bytes() for path in again.rglob("*.jsonl")))
    for output, count in ((corpus.output, 12), (corpus.output / f"0/00.{form}", 4)):
        evaluated = command("evaluate", "--output", output, "--truth", truth, "--json")
        assert evaluated.returncode == 0, evaluated.stderr
        assert json.loads(evaluated.stdout)["images"]["scored"] == count
        to = corpus.job.folder / f"{count}.parquet"
        exported = command("export", "--output", output, "--format", "parquet", "--to", to)
        assert exported.stdout.startswith(f"{count} images, ")


def test_a_table_with_a_column_more_is_named_before_an_image_is_asked(corpus: Corpus, stand_in: StandIn) -> None:
    assert corpus.run(stand_in, "--output-format", "parquet").returncode == 0
    path = corpus.output / "0/00.parquet"
    pl.read_parquet(path).with_columns(mine=1).write_parquet(path)
    before, asked = path.read_bytes(), stand_in.asked()
    corpus.write("0/00.jsonl", corpus.job.rows()[:6])
    done = corpus.run(stand_in)
    assert done.returncode == 1
    assert f"{path} has other columns than a run writes: move it away" in done.stderr
    assert path.read_bytes() == before
    assert stand_in.asked() == asked
