"""Inputs of several files, annotated in shards, each of which has some of the files."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stand_in.process import StandIn
from tests.conftest import Job, lines_of
from tests.support.corpus import Corpus, command

MakeJob = Callable[..., Job]


@pytest.fixture
def corpus(make_job: MakeJob) -> Corpus:
    """Five files of four images."""
    return Corpus(make_job(20), 5)


def test_shards_that_run_at_once_make_the_same_folder_as_one_run(corpus: Corpus, stand_in: StandIn) -> None:
    runs = [corpus.job.start_with(corpus.arguments(stand_in, "--shard", f"{number}/2")) for number in (1, 2)]
    for run in runs:
        _, said = run.communicate(timeout=120)
        assert run.returncode == 0, said
    assert corpus.answers() == corpus.asked()
    merged = command("merge-shards", "--output", corpus.output)
    assert merged.returncode == 0, merged.stderr
    assert "20 images: 20 answered, 0 failed; 5 of 5 input files are finished" in merged.stdout + merged.stderr
    report = json.loads(corpus.job.folder.joinpath("labeled.report.json").read_text())
    assert (report["output"]["images"], list(report["shards"])) == (20, ["1-of-2", "2-of-2"])
    assert corpus.job.folder.joinpath("labeled.report.html").read_text().count("data:image/jpeg;base64,") == 20
    again = corpus.run(stand_in)
    assert "5 input files: 5 are finished, 0 to do" in again.stderr
    assert max(stand_in.asked().values()) == 1


def test_failures_of_shards_are_in_one_file_after_the_merge(corpus: Corpus, stand_in: StandIn) -> None:
    stand_in.set_faults({"kind": "400", "count": None, "match": "000[15]"})
    for number in (1, 2):
        assert corpus.run(stand_in, "--shard", f"{number}/2").returncode == 1
    merged = command("merge-shards", "--output", corpus.output)
    assert merged.returncode == 1
    assert "20 images: 18 answered, 2 failed (2 rejected); 5 of 5 input files are finished" in merged.stdout
    assert sorted(row["image_path"] for row in lines_of(corpus.failures)) == ["0001.jpg", "0005.jpg"]
    stand_in.set_faults()
    assert corpus.run(stand_in).returncode == 0
    assert {name: sorted(paths) for name, paths in corpus.answers().items()} == corpus.asked()
    assert not corpus.failures.exists()
    corpus.write("9/09.jsonl", corpus.job.rows()[:1])
    assert corpus.run(stand_in, "--shard", "2/2").returncode == 0
    merged = command("merge-shards", "--output", corpus.output)
    assert merged.returncode == 0, "what a shard said of a file before counts no more"
    assert "6 of 6 input files are finished" in merged.stdout


def test_a_merge_says_what_of_a_lost_shard_is_missing(corpus: Corpus, stand_in: StandIn) -> None:
    assert corpus.run(stand_in, "--shard", "1/2").returncode == 0
    merged = command("merge-shards", "--output", corpus.output)
    assert merged.returncode == 1
    assert "3 of 5 input files are finished, 2 are not begun" in merged.stdout


def test_another_count_of_shards_goes_on_where_the_first_stopped(corpus: Corpus, stand_in: StandIn) -> None:
    assert corpus.run(stand_in, "--shard", "2/2").returncode == 0
    for number in (1, 2, 3):
        assert corpus.run(stand_in, "--shard", f"{number}/3").returncode == 0
    assert corpus.answers() == corpus.asked()
    assert max(stand_in.asked().values()) == 1


def test_shards_of_two_recipes_are_refused_and_so_is_a_whole_run_after_them(
    corpus: Corpus, stand_in: StandIn, tmp_path: Path
) -> None:
    tmp_path.joinpath("zh.yaml").write_text("language: zh\n")
    other = ("--recipe", str(tmp_path / "zh.yaml"))
    assert corpus.run(stand_in, "--shard", "1/2").returncode == 0
    for more in (("--shard", "2/2"), ("--shard", "1/3"), ()):
        refused = corpus.run(stand_in, *more, *other)
        assert refused.returncode == 2, refused.stderr
        assert "was written with another recipe (language: 'en' → 'zh')" in refused.stderr
    assert corpus.run(stand_in, "--shard", "2/2").returncode == 0


def test_a_shard_that_was_killed_is_resumed_by_another_run(make_job: MakeJob) -> None:
    corpus = Corpus(make_job(60, distinct=5), 3)
    with StandIn.started("--canned", "--prefill-seconds", "0.02") as server:
        given = corpus.arguments(server, "--max-concurrency", "2", "--chunk-size", "5", "--shard", "1/3")
        killed = corpus.job.start_with(given)
        while sum(server.asked().values()) < 8:
            time.sleep(0.005)
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate()
        assert corpus.run(server).returncode == 0, "the whole input, not the shard"
        assert sum(server.asked().values()) <= 60 + 2
    assert corpus.answers() == corpus.asked()


def test_a_file_of_another_run_is_left_to_it(make_job: MakeJob) -> None:
    corpus = Corpus(make_job(40, distinct=5), 2)
    with StandIn.started("--canned", "--prefill-seconds", "0.1") as server:
        first = corpus.job.start_with(corpus.arguments(server, "--max-concurrency", "2", "--shard", "1/2"))
        while not server.asked():
            time.sleep(0.005)
        first.send_signal(signal.SIGSTOP)
        both = corpus.run(server)
        first.send_signal(signal.SIGCONT)
        assert both.returncode == 1
        assert "0/00.jsonl is being annotated by another run (process" in both.stderr
        assert "1 of 2 input files are finished" in both.stderr
        _, said = first.communicate(timeout=60)
        assert first.returncode == 0, said
        assert sum(server.asked().values()) == 40
    assert corpus.answers() == corpus.asked()


def test_more_shards_than_files_are_refused(corpus: Corpus, stand_in: StandIn) -> None:
    done = corpus.run(stand_in, "--shard", "1/6")
    assert done.returncode == 2
    assert "there are 5 input files and 6 shards" in done.stderr
    assert "at most 5 shards" in done.stderr
    assert not corpus.work.exists()
