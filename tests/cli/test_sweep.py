"""A sweep from the command line: several servers and recipes on one sample, and the price of a good box."""

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stand_in.process import StandIn
from tests.cli.conftest import Done
from tests.conftest import Job, lines_of
from tests.evaluation.scenes import write_rows
from tests.support.canned_http import canned_http
from tests.support.corpus import Corpus
from vllm_annotate.inference.keys import NO_KEY
from vllm_annotate.pipeline.sweep import Variant, variant_fields

Command = Callable[..., Done]
MakeJob = Callable[..., Job]
SAMPLE = 36
NO_BOX = {"kind": "text", "text": '{"rationale": "-", "objects": []}', "count": None}


@pytest.fixture(scope="module")
def slow() -> Iterator[StandIn]:
    """A server that takes ten times as long as the fast one, whatever it is asked."""
    with StandIn.started("--slots", "4", "--prefill-seconds", "0.1") as server:
        yield server


@pytest.fixture(scope="module")
def fast() -> Iterator[StandIn]:
    """A server with the same slots."""
    with StandIn.started("--slots", "4", "--prefill-seconds", "0.01") as server:
        yield server


def variant(name: str, server: StandIn | str, **recipe: Any) -> dict[str, Any]:
    url = server if isinstance(server, str) else server.url
    return {"name": name, "server": {"endpoints": [f"{url}/v1"]}, "recipe": recipe}


def sweep_of(job: Job, *variants: Any) -> list[str]:
    """The arguments of a sweep over these variants."""
    file = job.folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(list(variants)))
    paths = ["--input", job.input, "--image-root", job.images, "--output", job.output, "--sweep", file]
    return ["pilot", *map(str, paths), "--sample", str(SAMPLE), "--max-concurrency", "8", "--canary-every", "0"]


def truth_of(command: Command, job: Job, server: StandIn) -> Path:
    """What the stand-in sees, which is right, as the truth."""
    truth = job.folder / "truth.jsonl"
    assert command("annotate", *job.arguments(server.url), "--without-prefect").code == 0
    job.output.rename(truth)
    job.work.rename(job.folder / "truth.work")
    return truth


def figures_of(done: Done) -> dict[str, Any]:
    assert done.code in (0, 1), done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


@pytest.mark.alone  # it measures rates
def test_speed_and_errors_decide_the_price_of_a_good_box(
    command: Command, make_job: MakeJob, slow: StandIn, fast: StandIn, rng: random.Random, fuzzing: bool
) -> None:
    job = make_job(60)
    fast.renew()
    truth = truth_of(command, job, fast)
    for repetition in range(10 if fuzzing else 3):
        # Of the captions 0000 to 0059, these digits at the end get no box: three in ten.
        wrong = "".join(rng.sample("0123456789", 3))
        slow.renew()
        fast.renew()
        faulty = {**NO_BOX, "match": rf"[{wrong}]\.jpg"}
        slow.set_faults(faulty)
        variants = [variant("slow-and-wrong", slow), variant("fast-and-right", fast)]
        rng.shuffle(variants)
        arguments = [
            *sweep_of(job, *variants),
            "--sample-seed",
            repetition,
            "--output",
            job.folder / f"{repetition}.jsonl",
        ]
        found = figures_of(command(*arguments, "--truth", truth, "--json"))
        best, worst = found["variants"]
        assert (best["name"], worst["name"]) == ("fast-and-right", "slow-and-wrong")
        assert best["quality"] == 1
        assert worst["quality"] < 0.95
        assert worst["quality_interval"][0] < worst["quality"] < worst["quality_interval"][1]
        assert best["price"]["high"] < worst["price"]["low"]
        assert (best["front"], worst["front"]) == (True, False)


def test_a_variant_whose_server_is_gone_is_told_and_the_others_finish_and_a_second_try_asks_nothing_again(
    command: Command, make_job: MakeJob, fast: StandIn, nobody: str
) -> None:
    job = make_job(40, distinct=4)
    fast.renew()
    arguments = sweep_of(job, variant("a", fast), variant("gone", nobody), variant("b", fast, max_visual_tokens=400))
    done = command(*arguments)
    assert done.code == 1
    assert re.search(rf"^gone has no figures: .*no vLLM server.*{nobody}", done.out, re.MULTILINE), done.out
    assert "Quality is agreement: mean F1 at IoU 0.5 with each of the others. Hours are for all 40 images." in done.out
    assert re.search(r"^a( \*)? +1\.000 \(1\.000–1\.000\) ", done.out, re.MULTILINE)
    figures = json.loads((job.folder / "labeled.sweep.json").read_text())
    assert list(figures["failed"]) == ["gone"]
    assert {each["name"]: each["answered"] for each in figures["variants"]} == {"a": SAMPLE, "b": SAMPLE}
    page = (job.folder / "labeled.sweep.html").read_text()
    assert "<svg" in page
    assert "<b>gone</b> has no figures" in page
    assert {path.name for path in job.folder.glob("labeled*")} == {
        "labeled.sweep", "labeled.sweep.json", "labeled.sweep.html",
    }  # fmt: skip

    fast.forget()
    assert command(*arguments).code == 1
    assert not fast.images()
    again = json.loads((job.folder / "labeled.sweep.json").read_text())
    assert again["variants"] == figures["variants"]


def test_of_several_files_all_variants_get_one_sample_and_none_of_their_answers_is_an_input(
    command: Command, make_job: MakeJob, fast: StandIn, nobody: str
) -> None:
    job = make_job(60, distinct=4)
    corpus = Corpus(job, 15)
    several = ["--input", corpus.folder, "--output", corpus.folder / "labeled"]
    fast.renew()
    given = sweep_of(job, variant("a", fast), variant("gone", nobody), variant("b", fast, max_visual_tokens=400))
    done = command(*given, *several, "--output-format", "parquet")
    assert done.code == 1
    assert "Hours are for all 60 images." in done.out
    assert re.search(r"^a( \*)? +1\.000 \(1\.000–1\.000\) ", done.out, re.MULTILINE), done.out
    figures = json.loads((corpus.folder / "labeled.sweep.json").read_text())
    answered = {each["name"]: each["answered"] for each in figures["variants"]}
    assert answered == {"a": SAMPLE, "b": SAMPLE}
    assert Path(figures["variants"][0]["output"]).is_dir()
    assert sum(fast.images().values()) == 2 * SAMPLE
    fast.forget()
    again = command(*sweep_of(job, variant("a", fast), variant("b", fast, max_visual_tokens=400)), *several, "--json")
    assert again.code == 0, again.err
    assert not fast.images()
    (corpus.folder / "0/00.jsonl").unlink()
    changed = figures_of(command(*sweep_of(job, variant("a", fast), variant("c", fast)), *several, "--json"))
    assert "a has answers of" in changed["failed"]["a"]
    assert [each["name"] for each in changed["variants"]] == ["c"]


def test_a_variant_with_another_server_is_not_taken_for_the_one_that_was_measured(
    command: Command, make_job: MakeJob, fast: StandIn, slow: StandIn
) -> None:
    job = make_job(40, distinct=4)
    fast.renew()
    slow.renew()
    assert command(*sweep_of(job, variant("a", fast), variant("b", fast, max_visual_tokens=400))).code == 0
    done = command(*sweep_of(job, variant("a", slow), variant("b", fast, max_visual_tokens=400)))
    assert done.code == 1
    assert "a.jsonl was measured with another server: give the variant another name, or remove" in done.out
    assert not slow.images()


@pytest.mark.parametrize(
    ("option", "value", "field"),
    [("--sample-seed", 5, "sample_seed"), ("--caption-column", "", "caption_column")],
)
def test_a_variant_of_another_sample_or_other_columns_is_not_compared_with_the_others(
    option: str, value: object, field: str, command: Command, make_job: MakeJob, fast: StandIn, nobody: str
) -> None:
    job = make_job(40, distinct=4)
    fast.renew()
    assert command(*sweep_of(job, variant("a", fast), variant("b", nobody))).code == 1
    done = command(*sweep_of(job, variant("a", fast), variant("b", fast)), option, value, "--json")
    figures = figures_of(done)
    assert done.code == 1
    assert f"a.jsonl was measured with another {field}: give the variant another name, or" in figures["failed"]["a"]
    assert [each["name"] for each in figures["variants"]] == ["b"]


def test_a_larger_sample_adds_to_all_variants_and_a_smaller_one_is_refused_to_those_with_more(
    command: Command, make_job: MakeJob, fast: StandIn, nobody: str
) -> None:
    job = make_job(40, distinct=4)
    fast.renew()
    assert command(*sweep_of(job, variant("a", fast), variant("b", nobody)), "--sample", 20).code == 1
    both = sweep_of(job, variant("a", fast), variant("b", fast))
    larger = figures_of(command(*both, "--sample", 30, "--json"))
    assert [each["answered"] for each in larger["variants"]] == [30, 30]
    third = sweep_of(job, variant("a", fast), variant("c", fast))
    smaller = figures_of(command(*third, "--sample", 10, "--json"))
    assert "a.jsonl has answers of 20 images that are not in this sample" in smaller["failed"]["a"]
    assert [each["name"] for each in smaller["variants"]] == ["c"]


def test_a_variant_of_an_input_that_has_changed_is_not_compared_with_the_others(
    command: Command, make_job: MakeJob, fast: StandIn, nobody: str
) -> None:
    job = make_job(60, distinct=4)
    fast.renew()
    rows = lines_of(job.input)
    job.write_input(rows[:40])
    assert command(*sweep_of(job, variant("a", fast), variant("b", nobody))).code == 1
    job.write_input(rows)
    done = command(*sweep_of(job, variant("a", fast), variant("b", fast)), "--json")
    figures = figures_of(done)
    assert re.search(
        r"a.jsonl has answers of \d+ images that are not in this sample, as .*input.jsonl has changed", done.out
    )
    assert list(figures["failed"]) == ["a"]
    assert [each["answered"] for each in figures["variants"]] == [SAMPLE]


def test_reviewed_rows_that_cannot_be_used_are_refused_before_anything_is_asked(
    command: Command, make_job: MakeJob, nobody: str
) -> None:
    job = make_job(1)
    reviewed = job.folder / "labeled.reviewed.jsonl"
    reviewed.write_text("[]\n")
    done = command(*sweep_of(job, variant("a", nobody), variant("b", nobody)))
    assert done.code == 2
    assert f"line 1 of the reviewed rows '{reviewed}'" in done.err
    assert not (job.folder / "labeled.sweep").exists()


def test_a_sweep_is_beside_the_file_that_its_output_links_to(
    command: Command, make_job: MakeJob, fast: StandIn
) -> None:
    job = make_job(4)
    fast.renew()
    (job.folder / "real").mkdir()
    truth = truth_of(command, job, fast)
    (job.folder / "real" / "labeled.reviewed.jsonl").write_bytes(truth.read_bytes())
    job.output.symlink_to(job.folder / "real" / "labeled.jsonl")
    found = figures_of(command(*sweep_of(job, variant("a", fast), variant("b", fast)), "--json"))
    assert found["quality"] == "reviewed"
    assert {path.name for path in (job.folder / "real").iterdir()} == {
        "labeled.reviewed.jsonl", "labeled.sweep", "labeled.sweep.html", "labeled.sweep.json",
    }  # fmt: skip


def test_reviewed_rows_are_the_truth_unless_another_is_given(
    command: Command, make_job: MakeJob, fast: StandIn
) -> None:
    job = make_job(40, distinct=4)
    fast.renew()
    truth = truth_of(command, job, fast)
    (job.folder / "labeled.reviewed.jsonl").write_bytes(truth.read_bytes())
    found = figures_of(command(*sweep_of(job, variant("a", fast), variant("b", fast)), "--json"))
    assert found["quality"] == "reviewed"
    assert [each["quality"] for each in found["variants"]] == [1, 1]


@pytest.mark.parametrize("given", [True, False])
def test_a_truth_of_other_images_is_told_and_the_variants_are_compared_with_each_other(
    given: bool, command: Command, make_job: MakeJob, fast: StandIn
) -> None:
    job = make_job(40, distinct=4)
    fast.renew()
    elsewhere = {"image_path": "elsewhere.jpg", "objects": [], "reviewed": True}
    truth = write_rows(job.folder / ("truth.jsonl" if given else "labeled.reviewed.jsonl"), [elsewhere])
    options = ["--truth", truth] if given else []
    found = figures_of(command(*sweep_of(job, variant("a", fast), variant("b", fast)), *options, "--json"))
    assert (found["quality"], found["truth"]) == ("agreement", None)
    assert [each["quality"] for each in found["variants"]] == [1, 1]
    assert f"{truth} has no image of the sample, and is not used" in found["notes"]


def test_a_variant_that_answered_no_image_of_the_truth_is_told_and_has_no_good_box(
    command: Command, make_job: MakeJob, fast: StandIn, slow: StandIn
) -> None:
    job = make_job(40, distinct=4)
    fast.renew()
    truth = truth_of(command, job, fast)
    write_rows(truth, [row for row in lines_of(truth) if row["image_path"].endswith("5.jpg")])
    slow.renew()
    slow.set_faults({"kind": "400", "match": r"5\.jpg", "count": None})
    found = figures_of(command(*sweep_of(job, variant("a", slow), variant("b", fast)), "--truth", truth, "--json"))
    assert found["quality"] == "truth"
    assert {each["name"]: each["quality"] for each in found["variants"]} == {"a": 0, "b": 1}
    assert "variant 'a' answered no image of the truth: all its boxes count as missed" in found["notes"]


def test_an_image_that_a_variant_does_not_answer_counts_as_missed(
    command: Command, make_job: MakeJob, fast: StandIn
) -> None:
    job = make_job(40, distinct=4)
    fast.renew()
    truth = truth_of(command, job, fast)
    fast.set_faults({"kind": "400", "match": r"[12]\.jpg", "count": 8})
    found = figures_of(command(*sweep_of(job, variant("a", fast), variant("b", fast)), "--truth", truth, "--json"))
    of = {each["name"]: each for each in found["variants"]}
    assert of["a"]["failed"] > 0
    assert of["a"]["quality"] < of["b"]["quality"] == 1
    assert of["a"]["precision"] == 1
    assert of["a"]["good_boxes_an_image"] < of["b"]["good_boxes_an_image"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "has 0: write a list of two variants or more"),
        ("{}", "is no list: write a list of two variants or more"),
        ("[{name: a}]", "has 1: write a list"),
        ("[a, b]", "is not a mapping: write a list"),
        ("[{name: a}, {name: A}]", "has 'A' twice: give each variant a name of its own"),
        ("[{name: é}, {name: e\u0301}]", "twice: give each variant"),
        ("[{name: 1}, {name: b}]", "has name 1: give it a name of 1 to 64 letters, digits, - and _, in quotes"),
        ("[{}, {name: b}]", "has name None: give it a name"),
        ("[{name: ../a}, {name: b}]", "has name '../a': give it a name"),
        ("[{name: a.pilot}, {name: b}]", "has name 'a.pilot': give it a name"),
        ("[{name: a, recipes: {}}, {name: b}]", "has unknown fields recipes; use any of name, server, recipe"),
        ("[{name: a, recipe: 5}, {name: b}]", "recipe is not a mapping: write its fields"),
        ("[{name: a, recipe: {token: 5}}, {name: b}]", "recipe of variant 1 of --sweep"),
        ("[{name: a, server: {url: x}}, {name: b}]", "server of variant 1 of --sweep"),
        ("[{name: a, recipe: {jpeg_quality: 5}}, {name: b}]", "variant 'a' of --sweep: recipe field jpeg_quality 5: "),
        ("[{name: a, server: {api_key: [s3cret]}}, {name: b}]", "variant 'a' of --sweep: server field api_key: "),
        ("[{name: a, server: {endpoints: ['ftp://x']}}, {name: b}]", "variant 'a' of --sweep: --api-base"),
        ("[", "is not YAML"),
    ],
)
def test_a_bad_sweep_is_refused_before_anything_is_asked_or_written(
    text: str, message: str, command: Command, make_job: MakeJob, nobody: str
) -> None:
    job = make_job(1)
    arguments = sweep_of(job)
    (job.folder / "sweep.yaml").write_text(text, encoding="utf-8")
    before = set(job.folder.rglob("*"))
    done = command(*arguments, "--api-base", nobody)
    assert done.code == 2
    assert message in done.err
    assert "s3cret" not in done.err
    assert set(job.folder.rglob("*")) == before


def test_options_of_a_sweep_are_refused_without_one(command: Command, make_job: MakeJob, nobody: str) -> None:
    job = make_job(1)
    done = command("pilot", *job.arguments(nobody), "--json")
    assert done.code == 2
    assert "--json belongs to a sweep: add --sweep, or leave it out" in done.err
    for options, message in (
        (["--truth", "nothing.jsonl"], "--truth 'nothing.jsonl' does not exist"),
        (["--output", "s3://bucket/labeled.jsonl"], "is a URL, and a sweep compares local files"),
        (["--recipe", "a-block"], "--recipe 'a-block' is not a file, and a sweep runs without Prefect"),
        (["--sweep", "nothing.yaml"], "--sweep 'nothing.yaml' cannot be read"),
    ):
        done = command(*sweep_of(job, variant("a", nobody), variant("b", nobody)), *options)
        assert done.code == 2
        assert message in done.err
    assert not (job.folder / "labeled.sweep").exists()


@pytest.mark.parametrize("own", [{}, {"api_key": None}, {"api_key": ""}, {"api_key": "sk-own"}])
def test_no_key_but_its_own_reaches_the_host_of_a_variant(
    own: dict[str, Any], command: Command, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sk-environment")
    job = make_job(1)
    shared = job.folder / "server.yaml"
    with canned_http(401) as (url, requests), StandIn.started("--api-key", "sk-shared") as at_home:
        shared.write_text(yaml.safe_dump({"endpoints": [f"{at_home.url}/v1"], "api_key": "sk-shared"}))
        elsewhere = {"name": "elsewhere", "server": {"endpoints": [f"{url}/v1"], **own}}
        done = command(*sweep_of(job, elsewhere, {"name": "at-home"}), "--server", shared, "--json")
    found = figures_of(done)
    assert [each["name"] for each in found["variants"]] == ["at-home"]
    assert "api_key of the block, or of the server in a sweep's variant" in found["failed"]["elsewhere"]
    keys = {headers["Authorization"] for _, headers in requests if "Authorization" in headers}
    assert keys == {f"Bearer {own.get('api_key') or NO_KEY}"}
    assert not any("sk-shared" in str(headers) or "sk-environment" in str(headers) for _, headers in requests)


def test_a_variant_without_endpoints_keeps_the_shared_server_and_its_key() -> None:
    shared: dict[str, Any] = {
        "server": {"endpoints": ["http://a/v1"], "api_key": "k", "model": "m"},
        "output": "labeled.jsonl",
    }
    other_model = Variant(name="c", server={"model": "n"})
    assert variant_fields(shared, other_model, Path("f"))["server"] == shared["server"] | {"model": "n"}
