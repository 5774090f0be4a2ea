"""The proof within runs: before the first image, when an endpoint comes back, and in the report."""

import hashlib
import json
import random
from collections.abc import Callable
from typing import Any

from PIL import Image

from stand_in.process import StandIn
from tests.conftest import Job, lines_of

ALONE = "--without-prefect"
MakeJob = Callable[..., Job]


def report_of(job: Job) -> dict[str, Any]:
    return dict(json.loads(job.output.with_suffix(".report.json").read_text()))


def test_a_server_whose_boxes_would_be_wrong_is_refused_before_anything_is_written(make_job: MakeJob) -> None:
    job = make_job(3)
    with StandIn.started("--family", "internvl", "--model", "Qwen2.5-VL-7B") as server:
        done = job.run(server.url, ALONE)
        assert server.asked() == {}, "no image was sent"
    assert done.returncode == 2, done.stderr
    assert "boxes are in another space than qwen2.5-vl's: they fit drawn scenes as thousandths" in done.stderr
    assert "set the recipe's family to thousandths" in done.stderr
    assert "Traceback" not in done.stderr
    assert not job.output.exists()
    assert not job.failures.exists()


def test_a_run_with_nothing_to_ask_proves_nothing(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(3)
    assert job.run(stand_in.url, ALONE).returncode == 0
    assert stand_in.proofs() == 15
    proof = report_of(job)["proof"][f"{stand_in.url}/v1"]
    assert (proof["sees"]["verdict"], proof["points"]["verdict"]) == ("agrees", "proven")
    assert "its boxes are proven: mean IoU 0.9" in "".join(proof["text"])
    assert "its boxes are proven" in job.output.with_suffix(".report.html").read_text()
    assert job.run(stand_in.url, ALONE).returncode == 0
    assert stand_in.proofs() == 15


def test_images_within_the_budget_arrive_as_they_are_once_the_server_has_shown_what_it_sees(
    make_job: MakeJob,
) -> None:
    job = make_job(2)
    for number, name in enumerate(job.names):
        size = 501 + number, 377
        noise = Image.frombytes("L", size, random.Random(number).randbytes(size[0] * size[1])).convert("RGB")
        noise.save(job.images / name, quality=80, comment=b"made by hand")
    with StandIn.started() as own:  # what another test has left behind cannot reach it
        job.run(own.url, ALONE)
        sent = own.images()
    bare = [(job.images / name).read_bytes().replace(comment_of(b"made by hand"), b"") for name in job.names]
    assert [row["sent_as"] for row in lines_of(job.output)] == ["original", "original"]
    assert sorted(sent) == sorted(hashlib.sha1(data, usedforsecurity=False).hexdigest() for data in bare)
    assert [row["sent_size"] for row in lines_of(job.output)] == [[504, 364], [504, 364]]


def comment_of(text: bytes) -> bytes:
    return b"\xff\xfe" + (len(text) + 2).to_bytes(2) + text


def test_without_usage_images_are_resized_here_and_the_log_says_why(make_job: MakeJob) -> None:
    job = make_job(2)
    for name in job.names:
        Image.effect_noise((501, 377), 60).convert("RGB").save(job.images / name)
    with StandIn.started("--no-usage") as server:
        done = job.run(server.url, ALONE)
    assert done.returncode == 0, done.stderr
    assert "what it sees is unknown, as its answers have no usage; images are resized here" in done.stderr
    assert [row["sent_as"] for row in lines_of(job.output)] == ["jpeg", "jpeg"]


def test_the_family_of_a_model_whose_name_tells_nothing_is_found_once_and_stays(make_job: MakeJob) -> None:
    job = make_job(3)
    with StandIn.started("--family", "gemini", "--model", "our-model") as server:
        done = job.run(server.url, ALONE)
        assert done.returncode == 0, done.stderr
        assert "'our-model', does not tell its family; its boxes for drawn scenes fit gemini" in done.stderr
        assert report_of(job)["family"] == "gemini"
        asked = server.proofs()
        job.write_input([*job.rows(), {"image_path": job.names[0].replace(".jpg", ".png"), "caption": "more"}])
        Image.new("RGB", (300, 300)).save(job.images / job.names[0].replace(".jpg", ".png"))
        again = job.run(server.url, ALONE)
        assert again.returncode == 0, again.stderr
        assert server.proofs() == asked + 15, "proven again, but not looked for again"
    assert len(lines_of(job.output)) == 4


def test_a_server_that_comes_back_with_another_budget_gets_no_more_images(make_job: MakeJob) -> None:
    job = make_job(200, distinct=5)
    server = StandIn("--prefill-seconds", "0.3")
    server.start()
    try:
        run = job.start(server.url, ALONE, "--max-concurrency", "4", "--server-wait-seconds", "60")
        while len(server.asked()) < 12:
            assert run.poll() is None
        server.kill()
        server.options = ("--max-visual-tokens", "300")
        server.start()
        out, err = run.communicate(timeout=120)
    finally:
        server.kill()
    assert run.returncode == 1, out + err
    assert "visual tokens, fewer than the recipe's max_visual_tokens of 1280" in err
    assert "it gets no more requests" in err
    rows, failed = lines_of(job.output), lines_of(job.failures)
    assert 8 <= len(rows) < 200
    assert {row["image_path"] for row in rows} | {row["image_path"] for row in failed} == set(job.names)


def test_an_endpoint_that_is_down_at_the_start_is_proven_when_it_comes(make_job: MakeJob) -> None:
    job = make_job(80, distinct=5)
    late = StandIn()
    with StandIn.started("--prefill-seconds", "0.5") as first:
        run = job.start(first.url, f"{late.url}/v1", ALONE, "--max-concurrency", "4")
        try:
            while not first.asked():
                assert run.poll() is None
            late.start()
            _, err = run.communicate(timeout=120)
            assert late.proofs() == 15
        finally:
            late.kill()
    assert run.returncode == 0, err
    assert set(report_of(job)["proof"]) == {f"{first.url}/v1", f"{late.url}/v1"}
