"""`vllm-annotate audit` against a stand-in whose answers are unsure, with the truth at hand."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo.scenes import caption, draw_scene, truth
from stand_in.process import StandIn
from tests.cli.conftest import Done
from tests.conftest import Job, lines_of
from tests.evaluation.scenes import write_rows

Command = Callable[..., Done]
REPETITIONS = range(8)
VLLM_ANNOTATE = Path(sys.executable).with_name("vllm-annotate")


def annotated(
    folder: Path, command: Command, server: StandIn, count: int, seed: int, recipe: dict[str, Any] | None = None
) -> tuple[Job, Path]:
    """An output of an unsure model, and the truth about its images."""
    job = Job(folder, [f"{number:04d}.jpg" for number in range(count)])
    job.images.mkdir(parents=True)
    rng = random.Random(seed)
    rows, truths = [], []
    for name in job.names:
        scene = draw_scene(rng, 196, 168, 3)
        scene.image.save(job.images / name, quality=90)
        rows.append({"image_path": name, "caption": caption(scene, chinese=False)})
        truths.append({"image_path": name, "objects": truth(scene)})
    job.write_input(rows)
    server.set_faults({"kind": "unsure", "count": None, "seed": seed})
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    own = ["--recipe", folder / "recipe.yaml"] if recipe else []
    done = command("annotate", *job.arguments(server.url), "--without-prefect", *own)
    assert done.code == 0, done.err
    return job, write_rows(folder / "truth.jsonl", truths)


def figures(done: Done) -> Any:
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.mark.long
def test_agreement_finds_wrong_boxes_and_the_interval_of_right_ones_holds_the_truth(
    command: Command, stand_in: StandIn, tmp_path: Path
) -> None:
    held = []
    for seed in REPETITIONS:
        job, known = annotated(tmp_path / str(seed), command, stand_in, 80, seed)
        before = job.output.read_bytes()
        some = write_rows(tmp_path / f"{seed}.jsonl", lines_of(known)[::2])  # agreement has to speak for the others
        audited = figures(command("audit", "--output", job.output, "--sample", 40, "--truth", some, "--json"))
        assert audited["calibration"]["boxes"] < 0.8 * audited["boxes"]
        assert audited["calibration"]["auroc"] >= 0.70, audited["calibration"]
        whole = figures(command("evaluate", "--output", job.output, "--truth", known, "--json"))
        low, high = audited["calibration"]["precision_interval"]
        held.append(low <= whole["precision"]["0.5"] <= high)
        assert job.output.read_bytes() == before
    assert sum(held) >= 7, held


@pytest.fixture
def small(command: Command, stand_in: StandIn, tmp_path: Path) -> tuple[Job, Path]:
    return annotated(tmp_path / "small", command, stand_in, 12, 3)


def test_it_writes_figures_page_and_rows_beside_the_output(command: Command, small: tuple[Job, Path]) -> None:
    job, known = small
    done = command("audit", "--output", job.output, "--sample", 10, "--truth", known)
    assert done.code == 0, done.err
    assert "10 of 12 answered images, each compared with 3 other answers." in done.out
    assert "AUROC of agreement:" in done.out
    rows = lines_of(job.folder / "labeled.audit.jsonl")
    answers = {row["image_path"]: row for row in lines_of(job.output)}
    assert len(rows) == 10
    for row in rows:
        assert row["answers"] == 3
        assert 0 <= row["agreement"] <= 1
        boxes = [each["bbox"] for each in answers[row["image_path"]]["objects"]]
        assert [each["bbox"] for each in row["objects"]] == boxes
        assert {round(each["agreement"] * 3, 5) for each in row["objects"]} <= {0, 1, 2, 3}
    written = json.loads((job.folder / "labeled.audit.json").read_text())
    assert written["agreement"] == pytest.approx(sum(row["agreement"] for row in rows) / 10, abs=1e-5)
    assert written["doubtful"][0]["agreement"] == min(row["agreement"] for row in rows)
    page = (job.folder / "labeled.audit.html").read_text()
    assert page.index(written["doubtful"][0]["image_path"]) < page.index(written["doubtful"][-1]["image_path"])


def test_without_a_truth_it_tells_the_agreement_alone(command: Command, small: tuple[Job, Path]) -> None:
    audited = figures(command("audit", "--output", small[0].output, "--asks", 2, "--json"))
    assert audited["calibration"] is None
    assert audited["images"] == {"answered": 12, "unparsed": 0, "audited": 12, "sampled": 12}
    low, high = audited["agreement_interval"]
    assert low <= audited["agreement"] <= high


def test_reviewed_rows_are_the_truth_if_none_is_given(command: Command, small: tuple[Job, Path]) -> None:
    job, known = small
    write_rows(job.folder / "labeled.reviewed.jsonl", [row | {"reviewed": True} for row in lines_of(known)])
    audited = figures(command("audit", "--output", job.output, "--asks", 1, "--json"))
    assert audited["truth"].endswith("labeled.reviewed.jsonl")
    assert audited["calibration"]["boxes"] > 20


def test_reviewed_rows_that_cannot_be_used_are_refused_by_their_own_name(
    command: Command, small: tuple[Job, Path], stand_in: StandIn
) -> None:
    job = small[0]
    reviewed = job.folder / "labeled.reviewed.jsonl"
    reviewed.write_text("[]\n")
    stand_in.forget()
    done = command("audit", "--output", job.output)
    assert done.code == 2
    assert f"line 1 of the reviewed rows '{reviewed}'" in done.err
    assert not stand_in.asked()


def test_a_truth_of_other_images_is_told_and_nothing_is_calibrated(command: Command, small: tuple[Job, Path]) -> None:
    job, known = small
    write_rows(known, [{"image_path": "elsewhere.jpg", "objects": []}])
    audited = figures(command("audit", "--output", job.output, "--asks", 1, "--truth", known, "--json"))
    assert audited["calibration"] is None
    assert any(note.startswith("the truth has no image of the sample") for note in audited["notes"])


def test_a_second_audit_asks_only_what_has_no_answer_yet(
    command: Command, small: tuple[Job, Path], stand_in: StandIn
) -> None:
    first = ["audit", "--output", small[0].output, "--json"]
    command(*first, "--sample", 5)
    stand_in.forget()
    command(*first, "--sample", 5)
    assert not stand_in.asked()
    assert figures(command(*first, "--sample", 8))["images"]["audited"] == 8
    assert sum(stand_in.asked().values()) == 9, "three images more, three times each"
    stand_in.forget()
    command(*first, "--sample", 5, "--temperature", "0.3")
    assert sum(stand_in.asked().values()) == 15, "other settings, other answers"


@pytest.mark.parametrize("seed", [1, 3, 2**31 - 1])
def test_no_request_of_a_sampled_output_is_sent_again(
    seed: int, command: Command, stand_in: StandIn, tmp_path: Path
) -> None:
    job, _ = annotated(tmp_path / "sampled", command, stand_in, 12, 5, {"temperature": 0.7, "seed": seed})
    audited = figures(command("audit", "--output", job.output, "--asks", 3, "--json"))
    first = {row["image_path"]: row["objects"] for row in lines_of(job.output)}
    asks = list((job.folder / "labeled.audit").glob("*/ask-?.jsonl"))
    assert len(asks) == 3
    for ask in asks:
        assert {row["image_path"]: row["objects"] for row in lines_of(ask)} != first
    assert audited["agreement"] < 1


def test_other_pictures_or_another_server_have_answers_of_their_own(
    command: Command, small: tuple[Job, Path], stand_in: StandIn
) -> None:
    job = small[0]
    shutil.copytree(job.images, job.folder / "others")
    arguments = ["audit", "--output", job.output, "--asks", 1, "--json"]
    asked = []
    for more in ([], ["--image-root", job.folder / "others"], ["--api-base", f"http://localhost:{stand_in.port}/v1"]):
        stand_in.forget()
        figures(command(*arguments, *more))
        asked.append(sum(stand_in.asked().values()))
    assert asked == [12, 12, 12]
    stand_in.forget()
    (job.folder / "link").symlink_to(job.images)
    figures(command(*arguments, "--image-root", job.folder / "link"))
    assert not stand_in.asked(), "the same folder by another name"


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_stopped_audit_resumes_and_ends_as_if_it_had_not_been(
    stop: signal.Signals, code: int, command: Command, small: tuple[Job, Path], stand_in: StandIn
) -> None:
    job = small[0]
    arguments = ["audit", "--output", str(job.output), "--max-concurrency", "1"]
    unsure: dict[str, Any] = {"kind": "unsure", "seed": 3}
    stand_in.set_faults(unsure | {"count": 15}, {"kind": "stall", "seconds": 60})
    stand_in.forget()
    process = subprocess.Popen([VLLM_ANNOTATE, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while sum(stand_in.asked().values()) < 16:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(stop)
    assert process.wait() == code
    stand_in.set_faults(unsure | {"count": None})
    resumed = figures(command(*arguments, "--json"))
    assert sum(stand_in.asked().values()) == 3 * 12 + 1
    rows = (job.folder / "labeled.audit.jsonl").read_bytes()
    shutil.rmtree(job.folder / "labeled.audit")
    assert figures(command(*arguments, "--json")) == resumed
    assert (job.folder / "labeled.audit.jsonl").read_bytes() == rows


def test_images_without_a_further_answer_make_exit_code_1(command: Command, small: tuple[Job, Path]) -> None:
    job = small[0]
    (job.images / job.names[0]).unlink()
    done = command("audit", "--output", job.output, "--asks", 1, "--json")
    assert done.code == 1
    assert json.loads(done.out)["images"] == {"answered": 12, "unparsed": 0, "audited": 11, "sampled": 12}


def test_answers_to_another_caption_are_refused(command: Command, small: tuple[Job, Path]) -> None:
    job = small[0]
    assert command("audit", "--output", job.output, "--asks", 1).code == 0
    write_rows(job.output, [row | {"caption": "another one"} for row in lines_of(job.output)])
    done = command("audit", "--output", job.output, "--asks", 1)
    assert done.code == 2
    assert "has answers to another caption of" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--output: required"),
        (["--output", "none.jsonl"], "no run of"),
        (["--output", "s3://b/o.jsonl"], "is a URL, and only local files"),
        (["--output", "labeled.jsonl", "--truth", "none"], "--truth 'none' does not exist"),
        (["--output", "labeled.jsonl", "--synonyms", "none"], "cannot be read"),
        (["--output", "labeled.jsonl", "--sample", "0"], "--sample '0'"),
        (["--output", "labeled.jsonl", "--asks", "many"], "--asks 'many'"),
        (["--output", "labeled.jsonl", "--temperature", "nan"], "--temperature 'nan'"),
        (["--output", "labeled.jsonl", "--image-root", "none"], "--image-root 'none' is not"),
        (["--output", "labeled.jsonl", "--recipe", "a-block"], "reads no saved blocks"),
        (["--output", "labeled.jsonl", "--model-name", "none"], "none"),
        (["--output", "input.jsonl", "--image-root", "images"], "has no row with image_path, objects"),
    ],
)
def test_what_cannot_be_audited_is_refused_and_nothing_is_asked(
    arguments: list[str],
    message: str,
    command: Command,
    small: tuple[Job, Path],
    stand_in: StandIn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = small[0]
    monkeypatch.chdir(job.folder)
    stand_in.forget()
    done = command("audit", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert not stand_in.asked()
    assert not list(job.folder.glob("labeled.audit.*"))


def test_hostile_rows_cost_only_themselves(command: Command, small: tuple[Job, Path]) -> None:
    job = small[0]
    good, rows = job.output.read_bytes(), lines_of(job.output)
    hostile: list[dict[str, Any]] = [
        {"image_path": "../outside.jpg", "objects": []},
        {"image_path": "<script>alert(1)</script>.jpg", "objects": [{"name": ["x"], "bbox": [1, 2, 3]}]},
        {"image_path": 7, "objects": []},
        {"image_path": "a.jpg", "objects": {}},
        {"image_path": "b.jpg", "objects": [], "annotations_error": True},
        rows[0] | {"objects": [{"name": "x", "bbox": [None, 0, 1, "2"]}, 7, None, {"bbox": [0, 0, 1e400, 5]}]},
    ]
    junk = b"".join(json.dumps(row).encode() + b"\n" for row in hostile)
    job.output.write_bytes(junk + b'{"image_path": "torn\n\xff\xfe\n[1]\n' + b"[" * 5000 + b"\n" + good)
    before = job.output.read_bytes()
    done = command("audit", "--output", job.output, "--asks", 1, "--json")
    assert done.code == 1, done.err
    assert json.loads(done.out)["images"]["audited"] == 12
    assert job.output.read_bytes() == before
    assert "<script>" not in (job.folder / "labeled.audit.html").read_text()
