"""A pilot from the command line, and the run that takes its answers."""

import json
from collections.abc import Callable

import pytest

from stand_in.process import StandIn
from tests.cli.conftest import Done
from tests.conftest import Job, lines_of
from tests.support.corpus import Corpus

Command = Callable[..., Done]
MakeJob = Callable[..., Job]


def test_a_pilot_estimates_the_rest_and_the_run_takes_its_answers(
    command: Command, make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(60)
    arguments = [*job.arguments(stand_in.url), "--without-prefect"]
    done = command("pilot", *arguments, "--sample", "40")
    assert done.code == 0, done.err
    assert done.out.startswith("Estimate for the other 20 images, from 40 of this pilot:\n  time      ")
    assert not job.output.exists()
    pilot = lines_of(job.folder / "labeled.pilot.jsonl")
    assert len(pilot) == 40
    report = json.loads((job.folder / "labeled.pilot.report.json").read_text())
    assert report["images"]["not_selected"] == 20
    assert report["estimate"]["images"] == 20
    assert report["estimate"]["hours"].keys() == {"low", "likely", "high"}
    assert command("pilot", *arguments, "--sample", "40").out == done.out, (
        "a pilot with nothing to do keeps its estimate"
    )

    stand_in.forget()
    whole = command("annotate", *arguments)
    assert whole.code == 0
    assert "60 images: 60 answered (40 of them by the pilot), 0 failed" in whole.err
    assert sum(stand_in.images().values()) == 20
    rows = lines_of(job.output)
    assert [row["image_path"] for row in rows] == job.names
    assert [row for row in rows if row in pilot] == pilot
    assert json.loads((job.folder / "labeled.report.json").read_text())["images"]["taken_from_pilot"] == 40


def test_answers_of_another_recipe_or_caption_are_not_taken(
    command: Command, make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(6)
    arguments = [*job.arguments(stand_in.url), "--without-prefect"]
    assert command("pilot", *arguments, "--limit", "4").code == 0
    rows = lines_of(job.input)
    rows[0]["caption"] = "another one"
    job.input.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = command("annotate", *arguments)
    assert "6 images: 6 answered (3 of them by the pilot), 0 failed" in done.err
    assert lines_of(job.output)[0]["caption"] == "another one"

    job.output.unlink()
    recipe = job.folder / "recipe.yaml"
    recipe.write_text("max_tokens: 999\n")
    (job.folder / "labeled.work" / "recipe.json").unlink()
    done = command("annotate", *arguments, "--recipe", str(recipe))
    assert "6 images: 6 answered, 0 failed" in done.err


def test_without_a_number_a_pilot_takes_200_and_says_if_that_is_all(
    command: Command, make_job: MakeJob, stand_in: StandIn
) -> None:
    done = command("pilot", *make_job(3).arguments(stand_in.url), "--without-prefect")
    assert done.code == 0
    assert "3 images: 3 answered, 0 failed" in done.err
    assert done.out == (
        "No estimate: it needs 30 images or more that one run answered without an interruption, and others that are "
        "not selected; a larger --sample adds to both\n"
    )


def test_a_sample_or_limit_of_0_is_no_way_to_run_the_whole_input(
    command: Command, make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(202)
    for number, options in enumerate((["--sample", "0"], ["--limit", "0"])):
        output = ["--output", str(job.folder / f"{number}.jsonl")]
        done = command("pilot", *job.arguments(stand_in.url), "--without-prefect", *output, *options)
        assert "200 images: 200 answered, 0 failed, 2 not selected" in done.err


def test_answers_to_images_of_another_folder_are_not_taken(
    command: Command, make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(4)
    assert command("pilot", *job.arguments(stand_in.url), "--without-prefect", "--limit", "2").code == 0
    job.images.rename(job.folder / "other")
    moved = [*job.arguments(stand_in.url), "--image-root", str(job.folder / "other")]
    assert "4 images: 4 answered, 0 failed" in command("annotate", *moved, "--without-prefect").err


def test_each_shard_takes_its_part_of_the_pilot(command: Command, make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(20)
    arguments = [*job.arguments(stand_in.url), "--without-prefect"]
    assert command("pilot", *arguments, "--sample", "20").code == 0
    stand_in.forget()
    for shard in ("1/2", "2/2"):
        assert command("annotate", *arguments, "--shard", shard).code == 0
    assert stand_in.images() == {}


def test_what_annotate_refuses_a_pilot_refuses(command: Command, make_job: MakeJob, nobody: str) -> None:
    job = make_job(3)
    done = command("pilot", *job.arguments(nobody), "--without-prefect")
    assert done.code == 2
    assert "no vLLM server" in done.err
    assert command("pilot", "--input", "a.jsonl").err.count("--output is required") == 1
    assert not list(job.folder.glob("*pilot*"))


def test_a_pilot_of_a_folder_estimates_the_rest_from_some_files(
    command: Command, make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(120)
    corpus = Corpus(job, 30)
    corpus.output = corpus.folder / "labeled"  # beside the inputs, which the answers are not
    arguments = corpus.arguments(stand_in)
    done = command("pilot", *arguments, "--sample", "40")
    assert done.code == 0, done.err
    assert done.out.startswith("Estimate for the other 80 images, from 40 of this pilot:\n  time      ")
    assert "40 images: 40 answered, 0 failed, 80 not selected; 20 of 30 input files are finished" in done.err
    own = corpus.folder / "labeled-pilot"
    assert {len(lines_of(path)) for path in own.rglob("*.jsonl")} == {2}
    report = json.loads((corpus.folder / "labeled-pilot.report.json").read_text())
    size = sum(path.stat().st_size for path in own.rglob("*.jsonl"))
    assert report["estimate"]["output_bytes"]["likely"] == pytest.approx(80 * size / 40)
    assert not corpus.output.exists()
    assert "120 images: 120 answered, 0 failed; 30 of 30 input files" in command("annotate", *arguments).err
    assert "80 not selected; 20 of 30 input files" in command("pilot", *arguments, "--sample", "40").err
