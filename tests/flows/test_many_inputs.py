"""Inputs of several files, and an output that is a folder."""

import json
import os
import re
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.annotate import annotate_images
from stand_in.process import StandIn
from tests.conftest import Job, lines_of, read_prefect
from tests.support.corpus import Corpus, command
from tests.support.tars import write_webdataset

MakeJob = Callable[..., Job]


def running(server: StandIn) -> float:
    """The requests at work, as the server's metrics have them."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        found = re.search(r"^vllm:num_requests_running\S* (\S+)", response.read().decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_each_input_file_has_its_output_file(make_job: MakeJob, stand_in: StandIn) -> None:
    corpus = Corpus(make_job(24), 4)
    done = corpus.run(stand_in)
    assert done.returncode == 0, done.stderr
    assert corpus.answers() == corpus.asked()
    assert list(corpus.answers()) == ["0/00.jsonl", "0/02.jsonl", "1/01.jsonl", "1/03.jsonl"]
    assert "24 images: 24 answered, 0 failed; 4 of 4 input files are finished" in done.stderr
    report = json.loads(corpus.job.folder.joinpath("labeled.report.json").read_text())
    assert report["files"] == {"inputs": 4, "finished": 4, "failed": {}, "not_begun": 0}
    assert (report["images"]["answered"], report["output"]["images"], report["quality"]["answers"]) == (24, 24, 24)
    page = corpus.job.folder.joinpath("labeled.report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 24
    assert not list(corpus.work.joinpath("files").iterdir()), "no state of finished files"
    assert max(stand_in.asked().values()) == 1


def test_a_second_run_opens_no_input_and_asks_nothing(make_job: MakeJob, stand_in: StandIn) -> None:
    corpus = Corpus(make_job(8), 2)
    assert corpus.run(stand_in).returncode == 0
    before = {path: path.stat() for path in corpus.output.rglob("*.jsonl")}
    for path in corpus.folder.rglob("*.jsonl"):
        os.utime(path, ns=(0, path.stat().st_mtime_ns))  # access times
    done = corpus.run(stand_in)
    assert done.returncode == 0, done.stderr
    assert "8 images: 0 answered, 8 already answered" in done.stderr
    assert {path: path.stat() for path in corpus.output.rglob("*.jsonl")} == before
    assert max(stand_in.asked().values()) == 1
    assert "2 input files: 2 are finished, 0 to do" in done.stderr


def test_new_files_and_rows_are_all_that_is_asked(make_job: MakeJob, stand_in: StandIn) -> None:
    corpus = Corpus(make_job(12), 2)
    last = corpus.job.rows()[-3:]
    corpus.write("1/01.jsonl", corpus.job.rows()[6:9])
    assert corpus.run(stand_in).returncode == 0
    untouched, grown = corpus.output / "0/00.jsonl", corpus.output / "1/01.jsonl"
    before, inode, content = untouched.stat(), grown.stat().st_ino, grown.read_bytes()
    stand_in.forget()
    corpus.write("1/01.jsonl", corpus.job.rows()[6:10])
    corpus.write("2/new.jsonl", last[1:])
    done = corpus.run(stand_in)
    assert done.returncode == 0, done.stderr
    assert "3 input files: 1 are finished, 2 to do" in done.stderr
    assert corpus.answers() == corpus.asked()
    assert (untouched.stat(), grown.stat().st_ino) == (before, inode)
    assert grown.read_bytes().startswith(content), "what was there stays as it was"
    assert sum(stand_in.asked().values()) == 3


def test_an_output_file_that_is_gone_is_made_again_and_no_other(make_job: MakeJob, stand_in: StandIn) -> None:
    corpus = Corpus(make_job(8), 2)
    assert corpus.run(stand_in).returncode == 0
    corpus.output.joinpath("0/00.jsonl").unlink()
    stand_in.forget()
    assert corpus.run(stand_in).returncode == 0
    assert corpus.answers() == corpus.asked()
    assert sum(stand_in.asked().values()) == 4


def test_failures_of_all_files_are_in_one_and_asked_again(make_job: MakeJob, stand_in: StandIn) -> None:
    corpus = Corpus(make_job(12), 3)
    stand_in.set_faults({"kind": "400", "count": None, "match": "000[159]"})
    failed = corpus.run(stand_in)
    assert failed.returncode == 1
    assert "12 images: 9 answered, 3 failed (3 rejected); 3 of 3 input files are finished" in failed.stderr
    assert sorted(row["image_path"] for row in lines_of(corpus.failures)) == ["0001.jpg", "0005.jpg", "0009.jpg"]
    stand_in.set_faults({"kind": "400", "count": None, "match": "0005"})
    stand_in.forget()
    assert corpus.run(stand_in).returncode == 1
    assert [row["image_path"] for row in lines_of(corpus.failures)] == ["0005.jpg"]
    stand_in.set_faults()
    assert corpus.run(stand_in).returncode == 0
    assert not corpus.failures.exists()
    assert {name: sorted(paths) for name, paths in corpus.answers().items()} == corpus.asked()
    dry = corpus.job.run_with(corpus.arguments(stand_in, "--dry-run"))
    assert "0 of 12 images are open" in dry.stdout


def test_retry_asks_the_failures_of_a_folder_again(make_job: MakeJob, stand_in: StandIn) -> None:
    corpus = Corpus(make_job(12), 3)
    for path in corpus.folder.rglob("*.jsonl"):
        path.write_text(path.read_text().replace('"caption"', '"text"'))
    named = ["--caption-column", "text", "--own-names", "drop"]
    stand_in.set_faults({"kind": "400", "count": None, "match": "000[18]"})
    assert corpus.run(stand_in, "--limit", "8", *named).returncode == 1
    stand_in.set_faults()
    stand_in.forget()
    refused = command("retry", "--output", corpus.output, "--kinds", "timeout", "--without-prefect")
    assert refused.returncode == 2
    assert "is a folder, of which all failures are retried: leave out kinds" in refused.stderr
    retried = command("retry", "--output", corpus.output, "--without-prefect")
    assert retried.returncode == 0, retried.stderr
    assert "Retrying 2 rejected; not retrying none" in retried.stderr
    assert sum(stand_in.asked().values()) == 2, "and no image beyond the limit of that run"
    rows = [row for path in corpus.output.rglob("*.jsonl") for row in lines_of(path)]
    assert len(rows) == 8
    assert all("text" not in row and row["caption"].startswith("caption of") for row in rows)
    assert "nothing to retry" in command("retry", "--output", corpus.output, "--without-prefect").stderr


def test_a_file_that_cannot_be_read_fails_alone_and_is_named(make_job: MakeJob, stand_in: StandIn) -> None:
    corpus = Corpus(make_job(12), 3)
    corpus.folder.joinpath("0/02.jsonl").write_text("no JSON at all\n")
    done = corpus.run(stand_in)
    assert done.returncode == 1
    assert "2 of 3 input files are finished, 1 cannot be read: 0/02.jsonl" in done.stderr
    assert "0/02.jsonl' has no JSON object in its first 1000 lines" in done.stderr
    assert list(corpus.answers()) == ["0/00.jsonl", "1/01.jsonl"]
    corpus.write("0/02.jsonl", corpus.job.rows()[8:])
    assert corpus.run(stand_in).returncode == 0
    assert corpus.answers() == corpus.asked()


def test_an_output_file_is_whole_from_the_moment_it_is_there(make_job: MakeJob) -> None:
    corpus = Corpus(make_job(60, distinct=5), 3)
    seen: dict[str, set[int]] = {}
    with StandIn.started("--canned", "--prefill-seconds", "0.02") as server:
        run = corpus.job.start_with(corpus.arguments(server, "--max-concurrency", "4", "--chunk-size", "5"))
        while run.poll() is None:
            for path in corpus.output.rglob("*.jsonl"):
                seen.setdefault(path.name, set()).add(path.read_bytes().count(b"\n"))
            time.sleep(0.005)
        run.communicate()
    assert seen == {f"{number:02d}.jsonl": {20} for number in range(3)}


def test_the_server_has_work_between_two_files(make_job: MakeJob) -> None:
    corpus = Corpus(make_job(160, distinct=5), 8)
    waiting: list[float] = []
    with StandIn.started("--canned", "--prefill-seconds", "0.1", "--slots", "8") as server:
        run = corpus.job.start_with(corpus.arguments(server, "--max-concurrency", "8", "--canary-every", "0"))
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(0.02):
                if 20 <= sum(server.asked().values()) <= 140:
                    waiting.append(running(server))

        looking = threading.Thread(target=look)
        looking.start()
        _, said = run.communicate(timeout=120)
        stop.set()
        looking.join()
    assert run.returncode == 0, said
    assert len(waiting) > 10
    assert sum(count == 0 for count in waiting) <= len(waiting) / 10, waiting


@pytest.mark.fuzz
def test_a_run_that_is_killed_again_and_again_loses_and_repeats_nothing(make_job: MakeJob, fuzzing: bool) -> None:
    corpus, kills = Corpus(make_job(160, distinct=10), 8), 7 if fuzzing else 3
    with StandIn.started("--canned", "--prefill-seconds", "0.02") as server:
        corpus.run_killed(server, kills, 130 // kills, "--chunk-size", "7")
    assert corpus.answers() == corpus.asked()
    assert not corpus.failures.exists()


def test_tars_keep_their_folders_and_a_broken_one_fails_alone(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(6)
    corpus = Corpus(job, 1)
    corpus.folder.joinpath("0/00.jsonl").unlink()
    for name in ("a/00000.tar", "b/00000.tar", "b/00001.tar"):
        corpus.folder.joinpath(name).parent.mkdir(exist_ok=True)
        write_webdataset(corpus.folder / name, job)
    corpus.folder.joinpath("b/00001.tar").write_bytes(b"")
    given = ["--input", f"{corpus.folder}/*/*.tar", "--output", str(corpus.output), "--without-prefect"]
    done = job.run_with([*given, "--api-base", f"{stand_in.url}/v1"])
    assert done.returncode == 1
    assert "1 cannot be read: b/00001.tar" in done.stderr
    names = [Path(name).with_suffix(".jpg") for name in job.names]
    assert corpus.answers() == {
        f"{folder}/00000.jsonl": [f"{folder}/00000.tar/{name}" for name in names] for folder in ("a", "b")
    }
    page = job.folder / "labeled.report.html"
    assert page.read_text().count("data:image/jpeg;base64,") == 12
    page.unlink()
    assert command("report", "--output", corpus.output).returncode == 0
    assert page.read_text().count("data:image/jpeg;base64,") == 12
    output, truth = corpus.output / "b/00000.jsonl", job.folder / "truth.jsonl"
    box = {"name": "purple star", "bbox": [1, 2, 30, 40]}
    truth.write_text(
        "".join(json.dumps({"image_path": row["image_path"], "objects": [box]}) + "\n" for row in lines_of(output))
    )
    assert command("evaluate", "--output", output, "--truth", truth).returncode == 0
    assert corpus.output.joinpath("b/00000.evaluation.html").read_text().count("data:image/jpeg;base64,") == 6
    for audited, count in ((corpus.output, 12), (output, 6)):
        done = command("audit", "--output", audited, "--asks", "1", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["images"]["audited"] == count


def test_several_files_need_a_folder_as_output(make_job: MakeJob, stand_in: StandIn) -> None:
    corpus = Corpus(make_job(4), 2)
    done = corpus.run(stand_in, "--output", f"{corpus.output}.jsonl")
    assert done.returncode == 2
    assert f"input '{corpus.folder}' may be several files, and output '{corpus.output}.jsonl' is one" in done.stderr
    assert f"such as --output {corpus.output}" in done.stderr


def test_a_folder_that_no_run_has_made_is_not_written_into(make_job: MakeJob, stand_in: StandIn) -> None:
    corpus = Corpus(make_job(4), 2)
    done = corpus.run(stand_in, "--output", str(corpus.job.images))
    assert done.returncode == 2
    assert f"output '{corpus.job.images}' is a folder with other files, such as {corpus.job.images}/000" in done.stderr


def test_a_file_and_a_folder_of_one_name_do_not_share_a_work_folder(make_job: MakeJob, stand_in: StandIn) -> None:
    corpus = Corpus(make_job(4), 2)
    assert corpus.run(stand_in).returncode == 0
    done = corpus.run(stand_in, "--output", f"{corpus.output}.jsonl", "--input", str(corpus.folder / "0/00.jsonl"))
    assert done.returncode == 2
    assert f"{corpus.work} is of an output that is a folder: choose another --output" in done.stderr


def test_another_recipe_is_never_mixed_into_a_folder(make_job: MakeJob, stand_in: StandIn) -> None:
    corpus = Corpus(make_job(4), 2)
    assert corpus.run(stand_in).returncode == 0
    recipe = corpus.job.folder / "recipe.yaml"
    recipe.write_text("temperature: 0.5\n")
    corpus.write("0/04.jsonl", corpus.job.rows()[:1])
    done = corpus.run(stand_in, "--recipe", str(recipe))
    assert done.returncode == 2
    assert "was written with another recipe (temperature: 0.0 → 0.5)" in done.stderr


def test_a_common_folder_that_moved_up_is_refused(make_job: MakeJob, stand_in: StandIn) -> None:
    corpus = Corpus(make_job(4), 2)
    assert corpus.run(stand_in, "--input", str(corpus.folder / "0")).returncode == 0
    done = corpus.run(stand_in)
    assert done.returncode == 2
    assert f"began below {corpus.folder}/0/ before, and begin below {corpus.folder}/ now" in done.stderr
    corpus.folder.joinpath("1/01.jsonl").rename(corpus.folder / "1/00.jsonl")  # another file of the same name
    done = corpus.run(stand_in, "--input", str(corpus.folder / "1"))
    assert done.returncode == 2
    assert f"began below {corpus.folder}/0/ before, and begin below {corpus.folder}/1/ now" in done.stderr
    corpus.folder.joinpath("0").rename(corpus.job.folder / "moved")
    assert corpus.run(stand_in, "--input", str(corpus.job.folder / "moved")).returncode == 0


def test_answers_that_grow_are_kept_when_a_file_appears_in_their_place(make_job: MakeJob) -> None:
    corpus = Corpus(make_job(40, distinct=5), 1)
    with StandIn.started("--canned", "--prefill-seconds", "0.05") as server:
        run = corpus.job.start_with(corpus.arguments(server, "--max-concurrency", "2", "--chunk-size", "5"))
        while not any(path.stat().st_size for path in corpus.work.glob("files/*/growing.jsonl")):
            assert run.poll() is None
            time.sleep(0.005)
        run.kill()
        run.communicate()
        corpus.output.joinpath("0").mkdir(parents=True)
        corpus.output.joinpath("0/00.jsonl").write_text('{"image_path": "0039.jpg", "of": "another program"}\n')
        done = corpus.run(server)
        assert done.returncode == 0, done.stderr
        assert sum(server.asked().values()) <= 40 + 4
    assert {name: sorted(paths) for name, paths in corpus.answers().items()} == corpus.asked()
    assert lines_of(corpus.output / "0/00.jsonl")[0]["of"] == "another program"


def test_a_limit_counts_over_all_files(make_job: MakeJob, stand_in: StandIn) -> None:
    corpus = Corpus(make_job(12), 3)
    done = corpus.run(stand_in, "--limit", "6")
    assert done.returncode == 0, done.stderr
    assert sum(map(len, corpus.answers().values())) == 6
    assert corpus.run(stand_in).returncode == 0
    assert corpus.answers() == corpus.asked()
    assert max(stand_in.asked().values()) == 1


async def test_the_flow_shows_the_chunks_of_all_files(make_job: MakeJob, stand_in: StandIn, prefect_api: str) -> None:
    corpus = Corpus(make_job(8), 2)
    corpus.folder.joinpath("1/01.jsonl").rename(corpus.folder / "1/{b}.jsonl")
    server: Any = {"endpoints": [f"{stand_in.url}/v1"]}
    files: Any = sorted(corpus.folder.rglob("*.jsonl"))
    state = await annotate_images(files, corpus.job.images, corpus.output, server, return_state=True)
    assert state.message == "8 images: 8 answered, 0 failed; 2 of 2 input files are finished"
    assert corpus.answers() == corpus.asked()
    graph = read_prefect(prefect_api, f"/flow_runs/{state.state_details.flow_run_id}/graph")
    names = {task["name"] for task in graph}
    assert {"plan", "prove", "chunk 1 of 1 of 0/00.jsonl", "chunk 1 of 1 of 1/{b}.jsonl", "merge", "report"} == names


def test_a_sample_is_of_some_files_and_the_whole_adds_the_rest(make_job: MakeJob, stand_in: StandIn) -> None:
    corpus = Corpus(make_job(90), 30)
    stand_in.set_faults({"kind": "400", "count": None, "match": "00[0-2][0-9]"})
    first = corpus.run(stand_in, "--sample", "10")
    assert "10 images: " in first.stderr
    assert "80 not selected; 10 of 30 input files are finished" in first.stderr
    small = set(stand_in.asked())
    assert len(small) == 10
    assert "(20 of 90 are selected); nothing was sent" in corpus.run(stand_in, "--sample", "20", "--dry-run").stdout
    failed = len(lines_of(corpus.failures))
    assert 0 < failed < 10
    assert command("retry", "--output", corpus.output, "--without-prefect").returncode == 1
    assert set(stand_in.asked()) == small, "a retry is of the same sample"
    stand_in.set_faults()
    assert corpus.run(stand_in, "--sample", "5").returncode == 0
    assert len(lines_of(corpus.failures)) < failed, "those of the smaller sample are asked again, the others stay"
    assert corpus.run(stand_in, "--sample", "20").returncode == 0
    assert small < set(stand_in.asked())
    assert len(stand_in.asked()) == 20
    whole = corpus.run(stand_in)
    assert whole.returncode == 0, whole.stderr
    assert {name: sorted(paths) for name, paths in corpus.answers().items()} == corpus.asked()
    assert sum(stand_in.asked().values()) == 90 + 2 * failed
    assert not corpus.failures.exists()
