"""Several input files: parts of them, mistakes in all of them, and folders of other kinds."""

import subprocess
from collections.abc import Callable

import polars as pl
import pytest

from stand_in.process import StandIn
from tests.conftest import Job, lines_of
from tests.support.corpus import Corpus, command

MakeJob = Callable[..., Job]


def test_failures_of_images_that_a_run_does_not_select_stay(make_job: MakeJob, stand_in: StandIn) -> None:
    corpus = Corpus(make_job(12), 2)
    stand_in.set_faults({"kind": "400", "count": None, "match": "000[58]"})
    assert corpus.run(stand_in).returncode == 1
    before = corpus.failures.read_bytes()
    assert before.count(b"\n") == 2
    for more in (("--limit", "3"), ("--sample", "2")):
        corpus.run(stand_in, *more)
        assert corpus.failures.read_bytes() == before, more
    one = [word if word != str(corpus.folder) else f"{word}/*/01.jsonl" for word in corpus.arguments(stand_in)]
    corpus.job.run_with(one)
    assert sorted(row["image_path"] for row in lines_of(corpus.failures)) == ["0005.jpg", "0008.jpg"]
    stand_in.set_faults()
    assert corpus.run(stand_in).returncode == 0
    assert not corpus.failures.exists()
    assert {name: sorted(paths) for name, paths in corpus.answers().items()} == corpus.asked()


def test_a_mistake_that_is_common_to_all_files_is_refused_after_some(make_job: MakeJob, stand_in: StandIn) -> None:
    corpus = Corpus(make_job(60), 30)
    refused = corpus.run(stand_in, "--caption-column", "text")
    assert refused.returncode == 2
    assert "error: none of the first 10 input files can be read: input" in refused.stderr
    assert "has no column 'text'" in refused.stderr
    assert refused.stderr.count("has no column 'text'") < 30, "of 60, in log and console"
    assert corpus.run(stand_in).returncode == 0


def test_an_input_folder_may_be_called_like_a_file(make_job: MakeJob, stand_in: StandIn) -> None:
    corpus = Corpus(make_job(8), 2)
    for number in "01":
        corpus.folder.joinpath(number).rename(corpus.folder / f"{number}.parquet")
    assert corpus.run(stand_in).returncode == 0
    table = corpus.job.folder / "table.parquet"
    exported = command("export", "--output", corpus.output, "--format", "parquet", "--to", table)
    assert exported.returncode == 0, exported.stderr
    assert pl.read_parquet(table).height == 8


def test_an_output_folder_that_cannot_be_written_is_refused_at_once(make_job: MakeJob, stand_in: StandIn) -> None:
    corpus = Corpus(make_job(4), 2)
    corpus.output.mkdir()
    if subprocess.run(["chattr", "+i", corpus.output], check=False).returncode:
        pytest.skip("root may write everywhere, and this file system has no immutable folders")
    try:
        refused = corpus.run(stand_in)
    finally:
        subprocess.run(["chattr", "-i", corpus.output], check=True)
    assert refused.returncode == 2
    assert f"cannot write beside output {corpus.output}" in refused.stderr
    assert not stand_in.asked()
